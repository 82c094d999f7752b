package checks

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/weftmesh/weft/catalog"
)

// Types of checks, as the catalog shows them.
const (
	TypeHTTP        = "http"
	TypeTCP         = "tcp"
	TypeUDP         = "udp"
	TypeGRPC        = "grpc"
	TypeH2PING      = "h2ping"
	TypeTTL         = "ttl"
	TypeAlias       = "alias"
	TypeScript      = "script"
	TypeDocker      = "docker"
	TypeOSService   = "os_service"
	TypeMaintenance = "maintenance"
)

const supported = "http, tcp, udp, grpc, h2ping, ttl, alias, script and os_service"

// Refusal is an error whose text is complete as it stands and which wraps a
// sentinel of catalog.
type refusal struct {
	text string
	is   error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.is }

func refuse(format string, args ...any) error {
	return &refusal{text: fmt.Sprintf(format, args...), is: catalog.ErrInvalid}
}

// Scripts says whose checks may run commands.
type Scripts int

// Settings of Scripts. Whoever may register such a check may run anything as the
// user of the agent.
const (
	NoScripts    Scripts = iota // nobody's
	LocalScripts                // those of configuration files
	AllScripts                  // those that come over the API too
)

// ErrScripts refuses checks that run commands. It is no ErrInvalid: the definition
// is well-formed, this agent does not do it.
var ErrScripts = errors.New("Scripts are disabled on this agent") //nolint:staticcheck // Consul's words, which clients look for

// Allow refuses a check that runs a command where that is not allowed, with an error
// that wraps ErrScripts.
func (s Scripts) Allow(def *catalog.CheckDefinition, fromFile bool) error {
	switch {
	case TypeOf(def) != TypeScript, s == AllScripts, s == LocalScripts && fromFile:
		return nil
	case fromFile:
		return &refusal{ErrScripts.Error() + "; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true", ErrScripts}
	default:
		return &refusal{ErrScripts.Error() + " from remote calls; to enable, configure 'enable_script_checks' to true", ErrScripts}
	}
}

// TypeOf tells what kind of check a definition describes; ttl when it names none.
func TypeOf(def *catalog.CheckDefinition) string {
	for _, k := range kinds(def) {
		return k
	}
	return TypeTTL
}

func kinds(def *catalog.CheckDefinition) []string {
	var out []string
	for _, k := range []struct {
		set  bool
		name string
	}{
		{def.DockerContainerID != "", TypeDocker},
		{def.DockerContainerID == "" && len(def.ScriptArgs) > 0, TypeScript},
		{def.HTTP != "", TypeHTTP},
		{def.TCP != "", TypeTCP},
		{def.UDP != "", TypeUDP},
		{def.GRPC != "", TypeGRPC},
		{def.OSService != "", TypeOSService},
		{def.H2PING != "", TypeH2PING},
		{def.AliasNode != "" || def.AliasService != "", TypeAlias},
	} {
		if k.set {
			out = append(out, k.name)
		}
	}
	return out
}

// Validate refuses a definition that cannot be run, with an error that wraps
// catalog.ErrInvalid, and warns of what it would change.
func Validate(def *catalog.CheckDefinition) (warnings []string, err error) {
	named := kinds(def)
	if len(named) > 1 {
		return nil, refuse("a check has one kind: %s are given together", strings.Join(named, " and "))
	}
	for _, step := range []func(*catalog.CheckDefinition) error{
		validTenancy, validKind, validTimes, validThresholds, validTarget,
	} {
		if err := step(def); err != nil {
			return nil, err
		}
	}
	if def.Interval > 0 && def.Interval < MinInterval {
		warnings = append(warnings, fmt.Sprintf("check interval %s is below the minimum and is raised to %s", def.Interval, MinInterval))
	}
	if d := def.DeregisterCriticalServiceAfter; d > 0 && d < MinDeregisterAfter {
		warnings = append(warnings, fmt.Sprintf("deregister_critical_service_after %s is below the minimum and is raised to %s", d, MinDeregisterAfter))
	}
	return warnings, nil
}

func validTenancy(def *catalog.CheckDefinition) error {
	for _, t := range []struct{ field, value string }{{"Namespace", def.Namespace}, {"Partition", def.Partition}} {
		if t.value != "" && t.value != "default" {
			return refuse("Invalid check: %s %q: there is one tenancy, leave it out or say \"default\"", t.field, t.value)
		}
	}
	return nil
}

func validKind(def *catalog.CheckDefinition) error {
	switch kind := TypeOf(def); kind {
	case TypeDocker:
		return refuse("Invalid check: checks of type %s are not supported here; supported are %s", kind, supported)
	case TypeTTL:
		if def.Shell != "" {
			return refuse("Invalid check: shell is for checks of type docker, which are not supported here; supported are %s", supported)
		}
	}
	return nil
}

func validTimes(def *catalog.CheckDefinition) error {
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"Interval", def.Interval},
		{"Timeout", def.Timeout},
		{"TTL", def.TTL},
		{"DeregisterCriticalServiceAfter", def.DeregisterCriticalServiceAfter},
	} {
		if d.value < 0 {
			return refuse("Invalid check: %s cannot be negative (%s)", d.field, d.value)
		}
	}
	kind := TypeOf(def)
	timed := kind != TypeTTL && kind != TypeAlias
	switch {
	case def.Interval > 0 && def.TTL > 0:
		return refuse("Invalid check: Interval and TTL cannot both be specified")
	case timed && def.Interval <= 0:
		return refuse("Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
	case kind == TypeAlias && def.Interval > 0:
		return refuse("Invalid check: Interval cannot be set for alias checks")
	case kind == TypeAlias && def.TTL > 0:
		return refuse("Invalid check: TTL cannot be set for alias checks")
	case kind == TypeTTL && def.TTL <= 0:
		return refuse("Invalid check: TTL must be > 0 for TTL checks")
	}
	return nil
}

func validThresholds(def *catalog.CheckDefinition) error {
	for _, n := range []struct {
		field string
		value int
	}{
		{"SuccessBeforePassing", def.SuccessBeforePassing},
		{"FailuresBeforeWarning", def.FailuresBeforeWarning},
		{"FailuresBeforeCritical", def.FailuresBeforeCritical},
		{"OutputMaxSize", def.OutputMaxSize},
	} {
		if n.value < 0 {
			return refuse("Invalid check: %s cannot be negative (%d)", n.field, n.value)
		}
	}
	if def.FailuresBeforeWarning > def.FailuresBeforeCritical {
		return refuse("Invalid check: FailuresBeforeWarning can't be higher than FailuresBeforeCritical (%d > %d)",
			def.FailuresBeforeWarning, def.FailuresBeforeCritical)
	}
	return nil
}

func validTarget(def *catalog.CheckDefinition) error {
	switch TypeOf(def) {
	case TypeHTTP:
		return validHTTP(def)
	case TypeTCP:
		return validHostPort("TCP", def.TCP)
	case TypeUDP:
		return validHostPort("UDP", def.UDP)
	case TypeH2PING:
		return validHostPort("H2PING", def.H2PING)
	case TypeScript:
		return validScript(def)
	case TypeOSService:
		return validUnit(def.OSService)
	case TypeGRPC:
		target, _, _ := strings.Cut(def.GRPC, "/")
		if strings.TrimSpace(target) == "" {
			return refuse("Invalid check: GRPC %q: want host:port[/service]", def.GRPC)
		}
	}
	return nil
}

// bracketed is a URL whose host is an IPv4 address in brackets.
var bracketed = regexp.MustCompile(`^(https?://(?:[^/@]*@)?)\[(\d+\.\d+\.\d+\.\d+)\]`)

// PlainURL gives the URL of an HTTP check without brackets around an IPv4 address.
// RFC 3986 knows none, and net/url refuses them, but clients, fabio among them, write
// them and Consul takes them.
func PlainURL(s string) string { return bracketed.ReplaceAllString(s, "$1$2") }

func validHTTP(def *catalog.CheckDefinition) error {
	u, err := url.Parse(PlainURL(def.HTTP))
	if err != nil {
		return refuse("Invalid check: HTTP is no URL: %v", stripURL(err))
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return refuse("Invalid check: HTTP %q: want http://host[:port]/path or https://…", u.Redacted())
	}
	if def.Method != "" && !httpguts.ValidHeaderFieldName(def.Method) {
		return refuse("Invalid check: Method %q is no HTTP method", def.Method)
	}
	for name, values := range def.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return refuse("Invalid check: Header %q is no header name", name)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return refuse("Invalid check: Header %q has a value that no header can carry", name)
			}
		}
	}
	return nil
}

// stripURL keeps the reason of a URL error and drops the URL, which may hold a password.
func stripURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func validHostPort(field, addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return refuse("Invalid check: %s %q: want host:port", field, addr)
	}
	return nil
}
