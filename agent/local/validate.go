package local

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// Limits of a registration.
const (
	maxPort      = 65535
	maxWeight    = 65535
	maxName      = 512
	maxMetaPairs = 64
	maxMetaKey   = 128
	maxMetaValue = 512
)

// validate refuses a registration that no host could carry out, with an error that
// wraps catalog.ErrInvalid, and warns of what works but not everywhere.
func validate(reg *catalog.ServiceRegistration) (warnings []string, err error) {
	for _, step := range []func(*catalog.ServiceRegistration) error{
		validNames, validMeta, validWeights, validAddress, validPorts, validKind, validSidecar,
	} {
		if err := step(reg); err != nil {
			return nil, err
		}
	}
	warnings, err = validChecks(reg)
	if err != nil {
		return nil, err
	}
	return append(warnings, dnsWarnings(reg)...), nil
}

func validNames(reg *catalog.ServiceRegistration) error {
	if reg.Name == "" {
		return refuse("Missing service name")
	}
	if err := validText("service name", reg.Name); err != nil {
		return err
	}
	if err := validServiceID(serviceID(reg)); err != nil {
		return err
	}
	if reg.Name == catalog.ServerService {
		return refuse("Invalid service name %q: the servers themselves stand in the catalog under it; choose another", reg.Name)
	}
	if reg.Name == catalog.Wildcard {
		return refuse("Invalid service name %q: it stands for every service in intentions", reg.Name)
	}
	for _, t := range reg.Tags {
		if err := validText("service tag", t); err != nil {
			return err
		}
	}
	for _, t := range []struct{ field, value string }{{"Namespace", reg.Namespace}, {"Partition", reg.Partition}} {
		if t.value != "" && t.value != "default" {
			return refuse("service %s: %s %q: there is one tenancy, leave it out or say \"default\"", reg.Name, t.field, t.value)
		}
	}
	return nil
}

// validServiceID refuses an ID that is not this host's to give.
func validServiceID(id string) error {
	if id == catalog.ServerService {
		return refuse("Invalid service ID %q: the servers themselves stand in the catalog under it; choose another", id)
	}
	if most := maxName - len(catalog.ServiceMaintenancePrefix); len(id) > most {
		// The check that says that it is in maintenance has the ID of the service in its own.
		return refuse("Invalid service ID %.40q…: %d bytes, at most %d are allowed", id, len(id), most)
	}
	return validText("service ID", id)
}

// validText refuses what cannot be a key, a label or a line of a log.
func validText(what, v string) error {
	if len(v) > maxName {
		return refuse("Invalid %s %.40q…: %d bytes, at most %d are allowed", what, v, len(v), maxName)
	}
	if !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
		return refuse("Invalid %s %q: it has control characters or is no UTF-8", what, v)
	}
	return nil
}

func validCheckID(id string) error {
	if id == catalog.NodeCheckID {
		return refuse("Invalid check ID %q: the servers keep that check, which says whether the agent is alive", id)
	}
	return validText("check ID", id)
}

func validMeta(reg *catalog.ServiceRegistration) error {
	if len(reg.Meta) > maxMetaPairs {
		return refuse("Invalid Service Meta: Node metadata cannot contain more than %d key/value pairs", maxMetaPairs)
	}
	for k, v := range reg.Meta {
		var why string
		switch {
		case k == "":
			why = "Key cannot be blank"
		case len(k) > maxMetaKey:
			why = fmt.Sprintf("Key is too long (limit: %d characters)", maxMetaKey)
		case strings.ContainsFunc(k, notMetaRune):
			why = "Key contains invalid characters"
		case len(v) > maxMetaValue:
			why = fmt.Sprintf("Value is too long (limit: %d characters)", maxMetaValue)
		default:
			continue
		}
		return refuse("Invalid Service Meta: Couldn't load metadata pair ('%s', '%s'): %s", k, v, why)
	}
	return nil
}

func notMetaRune(r rune) bool { return r != '-' && r != '_' && !isAlnum(r) }

func isAlnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func validWeights(reg *catalog.ServiceRegistration) error {
	w := reg.Weights
	switch {
	case w == nil:
		return nil
	case w.Passing < 1:
		return refuse("Invalid Weights: Passing must be greater than 0")
	case w.Warning < 0:
		return refuse("Invalid Weights: Warning must be greater or equal than 0")
	case w.Passing > maxWeight || w.Warning > maxWeight:
		return refuse("Invalid Weights: DNS Weight must be between 0 and %d", maxWeight)
	}
	return nil
}

func validAddress(reg *catalog.ServiceRegistration) error {
	if ip, err := netip.ParseAddr(reg.Address); err == nil && ip.IsUnspecified() {
		return refuse("Invalid service address %q: others cannot dial a wildcard; leave it out for the address of the node", reg.Address)
	}
	if bracketed(reg.Address) {
		return refuse("Invalid service address %q: write an IPv6 address without brackets", reg.Address)
	}
	for tag, a := range reg.TaggedAddresses {
		if a.Address == "" {
			return refuse("service %s: tagged address %q has no Address", reg.Name, tag)
		}
		if a.Port < 0 || a.Port > maxPort {
			return refuse("service %s: tagged address %q: port %d is not between 0 and %d", reg.Name, tag, a.Port, maxPort)
		}
	}
	return nil
}

func validPorts(reg *catalog.ServiceRegistration) error {
	switch {
	case reg.Port < 0 || reg.Port > maxPort:
		return refuse("service %s: port %d is not between 0 and %d", reg.Name, reg.Port, maxPort)
	case reg.Port != 0 && reg.SocketPath != "":
		return refuse("service %s: Port and SocketPath exclude each other", reg.Name)
	case reg.Port != 0 && len(reg.Ports) > 0:
		return refuse("service %s: Port and Ports exclude each other", reg.Name)
	}
	names, defaults := map[string]bool{}, 0
	for i, p := range reg.Ports {
		switch {
		case p.Name == "":
			return refuse("service %s: Ports[%d] has no Name", reg.Name, i)
		case names[p.Name]:
			return refuse("service %s: port name %q is given twice", reg.Name, p.Name)
		case p.Port < 1 || p.Port > maxPort:
			return refuse("service %s: port %q: %d is not between 1 and %d", reg.Name, p.Name, p.Port, maxPort)
		}
		names[p.Name] = true
		if p.Default {
			defaults++
		}
	}
	if defaults > 1 {
		return refuse("service %s: %d ports are the default, at most one can be", reg.Name, defaults)
	}
	return nil
}

func validSidecar(reg *catalog.ServiceRegistration) error {
	if reg.Connect == nil || reg.Connect.SidecarService == nil {
		return nil
	}
	side := reg.Connect.SidecarService
	switch {
	case reg.Kind != catalog.KindTypical:
		return refuse("Validation failed: service %s: a %s cannot have a sidecar", reg.Name, reg.Kind)
	case side.ID != "":
		return refuse("Validation failed: service %s: A SidecarService cannot specify an ID as this is managed by the agent", reg.Name)
	case side.Connect != nil && side.Connect.SidecarService != nil:
		return refuse("Validation failed: service %s: A SidecarService cannot have a nested SidecarService", reg.Name)
	case side.Connect != nil && side.Connect.Native:
		return refuse("Validation failed: service %s: A SidecarService cannot be Connect native", reg.Name)
	case side.Kind != "" && side.Kind != catalog.KindConnectProxy:
		return refuse("Validation failed: service %s: the Kind of a SidecarService is connect-proxy, not %q", reg.Name, side.Kind)
	}
	return nil
}

func validChecks(reg *catalog.ServiceRegistration) (warnings []string, err error) {
	seen := map[string]bool{}
	for _, d := range reg.Checks {
		if d == nil {
			return nil, refuse("service %s: a check is empty", reg.Name)
		}
	}
	for _, d := range definitions(reg) {
		if d.Status != "" && !catalog.ValidStatus(d.Status) {
			return nil, refuse("Status for checks must 'passing', 'warning', 'critical'")
		}
		if err := validCheckID(d.CheckID); err != nil {
			return nil, err
		}
		if seen[d.CheckID] {
			return nil, refuse("service %s: check ID %q is given twice", reg.Name, d.CheckID)
		}
		seen[d.CheckID] = true
		w, err := checks.Validate(d)
		if err != nil {
			return nil, err
		}
		for _, text := range w {
			warnings = append(warnings, fmt.Sprintf("check %s: %s", d.CheckID, text))
		}
	}
	return warnings, nil
}

// dnsWarnings names what a DNS client will not find.
func dnsWarnings(reg *catalog.ServiceRegistration) []string {
	var out []string
	if why := notLabel(reg.Name); why != "" {
		out = append(out, fmt.Sprintf("Service name %q will not be discoverable via DNS %s", reg.Name, why))
	}
	for _, t := range reg.Tags {
		if why := notLabel(t); why != "" {
			out = append(out, fmt.Sprintf("Service tag %q will not be discoverable via DNS %s", t, why))
		}
	}
	return out
}

func notLabel(n string) string {
	switch {
	case len(n) == 0 || len(n) > 63:
		return "due to its length. Valid lengths are between 1 and 63 bytes."
	case strings.ContainsFunc(n, func(r rune) bool { return r != '-' && !isAlnum(r) }):
		return "due to invalid characters. Valid characters include all alpha-numerics and dashes."
	default:
		return ""
	}
}

func isEmpty(d *catalog.CheckDefinition) bool {
	return reflect.DeepEqual(d, &catalog.CheckDefinition{})
}
