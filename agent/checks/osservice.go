package checks

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/weftmesh/weft/catalog"
)

// What systemd calls itself on the system bus.
const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = "/org/freedesktop/systemd1"
	systemdManager = systemdName + ".Manager"
	systemdUnit    = systemdName + ".Unit"
	systemdService = systemdName + ".Service"
	maxUnitName    = 255
)

func validUnit(name string) error {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(":-_.\\@", r)
	}
	if len(name) > maxUnitName || strings.ContainsFunc(name, bad) {
		return refuse("Invalid check: OSService %.64q is no name of a systemd unit, such as \"nginx\" or \"backup.timer\"", name)
	}
	return nil
}

// unitName is the unit that a name means: a service, where it does not say.
func unitName(name string) string {
	switch path.Ext(name) {
	case ".service", ".socket", ".timer", ".mount", ".automount", ".swap", ".target", ".path", ".slice", ".scope", ".device":
		return name
	default:
		return name + ".service"
	}
}

// osServiceProbe asks systemd for the state of a unit: active is passing, on the
// way there is warning, anything else critical.
//
// It connects anew each time: that costs little, and neither a restart of the bus
// nor one of systemd has to be noticed.
func osServiceProbe(def *catalog.CheckDefinition) probe {
	unit := unitName(def.OSService)
	return func(ctx context.Context) (catalog.Status, string) {
		u, err := askSystemd(ctx, unit)
		if err != nil {
			return catalog.StatusCritical, fmt.Sprintf("systemd was asked for %s: %v", unit, err)
		}
		return u.judge()
	}
}

// unitState is what systemd says of a unit.
type unitState struct {
	name              string
	load, active, sub string
	result            string // of a service: why it failed
	restarts          uint32
	isService         bool
}

func (u *unitState) judge() (catalog.Status, string) {
	if u.load == "not-found" {
		return catalog.StatusCritical, fmt.Sprintf("%s is not known to systemd", u.name)
	}
	text := fmt.Sprintf("%s is %s (%s)", u.name, u.active, u.sub)
	if u.isService {
		text += fmt.Sprintf(", restarted %d times by systemd", u.restarts)
		if u.result != "" && u.result != "success" {
			text += ", last result " + u.result
		}
	}
	switch u.active {
	case "active":
		return catalog.StatusPassing, text
	case "activating", "reloading", "refreshing":
		return catalog.StatusWarning, text
	default: // inactive, failed, deactivating, maintenance
		return catalog.StatusCritical, text
	}
}

func askSystemd(ctx context.Context, unit string) (*unitState, error) {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("the system bus cannot be reached: %w", err)
	}
	defer func() { _ = bus.Close() }() // what was asked is answered
	var at dbus.ObjectPath
	call := bus.Object(systemdName, systemdPath).CallWithContext(ctx, systemdManager+".LoadUnit", 0, unit)
	if err := call.Store(&at); err != nil {
		return nil, err
	}
	u := &unitState{name: unit, isService: path.Ext(unit) == ".service"}
	if err := readProperties(ctx, bus.Object(systemdName, at), systemdUnit, map[string]any{
		"LoadState": &u.load, "ActiveState": &u.active, "SubState": &u.sub,
	}); err != nil {
		return nil, err
	}
	if u.isService && u.load == "loaded" {
		err = readProperties(ctx, bus.Object(systemdName, at), systemdService, map[string]any{"NRestarts": &u.restarts, "Result": &u.result})
	}
	return u, err
}

func readProperties(ctx context.Context, unit dbus.BusObject, of string, into map[string]any) error {
	for name, to := range into {
		var v dbus.Variant
		if err := unit.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, of, name).Store(&v); err != nil {
			return fmt.Errorf("property %s: %w", name, err)
		}
		if err := v.Store(to); err != nil {
			return fmt.Errorf("property %s: %w", name, errors.New("it has another type than is known"))
		}
	}
	return nil
}
