package config

import (
	"fmt"
	"strings"

	"github.com/weftmesh/weft/agent/watches"
	"github.com/weftmesh/weft/catalog"
)

func watchKeys() []Key {
	return with(Effective, "",
		Key{Name: "watches", Type: Blocks, Reload: true, Doc: "What to watch, and the command (args) or HTTP request (handler_type = \"http\" with http_handler_config) that each change starts. May be given many times."},
	)
}

func (m *merger) watch(d definition) error {
	params, _ := native(d.node.object()).(map[string]any)
	w, err := watches.Parse(params)
	if err != nil {
		return errorAt(d.pos, d.key, "%s", strings.TrimPrefix(err.Error(), catalog.ErrInvalid.Error()+": "))
	}
	if _, old := params["handler"]; old {
		m.config.Warnings = append(m.config.Warnings, fmt.Sprintf("%s: watches: handler is a former name: use args, which needs no shell", d.pos))
	}
	m.config.Watches = append(m.config.Watches, w)
	return nil
}
