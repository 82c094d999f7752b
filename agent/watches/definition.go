package watches

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/consul/api/watch"

	"github.com/weftmesh/weft/catalog"
)

// Kinds of handlers.
const (
	kindScript = "script"
	kindHTTP   = "http"
)

// maxTimeout bounds a request of an HTTP handler.
const maxTimeout = time.Hour

// Definition is one valid watch.
type Definition struct {
	params map[string]any
	kind   string
	args   []string // of a script
	shell  string   // a script for /bin/sh, as the former key `handler` has it
	http   *watch.HttpHandlerConfig
}

// String says what is watched, without the token.
func (d Definition) String() string {
	text := fmt.Sprint(d.params["type"])
	for _, name := range []string{"key", "prefix", "service", "service_id", "name", "state"} {
		if v, ok := d.params[name]; ok {
			text += fmt.Sprintf(" %s=%v", name, v)
		}
	}
	return text
}

// Parse reads a watch as it stands in a configuration. Errors wrap catalog.ErrInvalid.
func Parse(params map[string]any) (Definition, error) {
	d := Definition{params: maps.Clone(params)}
	plan, err := d.plan()
	if err != nil {
		return Definition{}, refuse(err)
	}
	if err := d.handlers(plan); err != nil {
		return Definition{}, refuse(err)
	}
	return d, nil
}

func refuse(err error) error { return fmt.Errorf("%w: %w", catalog.ErrInvalid, err) }

// plan makes a plan that has not run yet: none runs twice.
func (d Definition) plan() (*watch.Plan, error) {
	return watch.ParseExempt(maps.Clone(d.params), []string{"args", "handler"})
}

func (d *Definition) handlers(plan *watch.Plan) error {
	shell, hasShell := plan.Exempt["handler"]
	args, hasArgs := plan.Exempt["args"]
	d.kind = plan.HandlerType
	switch {
	case d.kind == kindHTTP:
		if hasShell || hasArgs {
			return errors.New("a watch has one handler: args or handler stand beside handler_type = \"http\"")
		}
		return d.httpHandler(plan)
	case d.kind != "" && d.kind != kindScript:
		return fmt.Errorf("handler_type %q is neither script nor http", d.kind)
	case hasShell == hasArgs:
		return errors.New("a watch has one handler: give args, a list with a command and its arguments, or handler_type = \"http\"")
	}
	d.kind = kindScript
	if hasShell {
		text, ok := shell.(string)
		if !ok || strings.TrimSpace(text) == "" || strings.ContainsRune(text, 0) {
			return errors.New("handler must be a command")
		}
		d.shell = text
		return nil
	}
	list, _ := args.([]any)
	for _, a := range list {
		text, ok := a.(string)
		if !ok || strings.ContainsRune(text, 0) {
			return errors.New("args must be a list of strings")
		}
		d.args = append(d.args, text)
	}
	if len(d.args) == 0 || d.args[0] == "" {
		return errors.New("args must name a command")
	}
	return nil
}

func (d *Definition) httpHandler(plan *watch.Plan) error {
	cfg, ok := plan.Exempt["http_handler_config"].(*watch.HttpHandlerConfig)
	if !ok {
		return errors.New("http_handler_config is missing")
	}
	u, err := url.Parse(cfg.Path)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("http_handler_config.path must be a URL such as http://127.0.0.1:8000/changed")
	}
	if cfg.Timeout <= 0 || cfg.Timeout > maxTimeout {
		return fmt.Errorf("http_handler_config.timeout %s is not between 0 and %s", cfg.Timeout, maxTimeout)
	}
	req, err := http.NewRequest(cfg.Method, cfg.Path, http.NoBody) //nolint:noctx // it is only asked whether it could be made
	if err != nil {
		return fmt.Errorf("http_handler_config: %w", err)
	}
	_ = req.Body.Close()
	d.http = cfg
	return nil
}
