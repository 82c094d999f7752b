package config

import (
	"fmt"
	"reflect"
	"time"
)

// Effective is the configuration that is in force, by key, without secrets: what
// /v1/agent/self shows as DebugConfig.
func (c *Config) Effective() map[string]any {
	out := map[string]any{}
	for key, f := range fieldsOf(c) {
		for f.Kind() == reflect.Pointer {
			if f.IsNil() {
				break
			}
			f = f.Elem()
		}
		switch v := f.Interface().(type) {
		case time.Duration:
			out[key] = v.String()
		case map[string]time.Duration:
			words := make(map[string]string, len(v))
			for name, d := range v {
				words[name] = d.String()
			}
			out[key] = words
		case map[string]any:
			out[key] = hidden(v)
		default:
			out[key] = v
		}
	}
	if c.Encrypt != "" {
		out["encrypt"] = "hidden"
	}
	out["dev"] = c.Dev
	out["services"] = len(c.Services)
	out["checks"] = len(c.Checks)
	out["files"] = c.Files
	return out
}

// hidden leaves out the values of keys that name secrets.
func hidden(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		switch inner := v.(type) {
		case map[string]any:
			out[k] = hidden(inner)
			continue
		case []any:
			out[k] = fmt.Sprintf("%d values", len(inner))
			continue
		}
		switch normalize(k) {
		case "privatekey", "token", "secret", "password", "secretid", "roleid":
			out[k] = "hidden"
		default:
			out[k] = v
		}
	}
	return out
}
