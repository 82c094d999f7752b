package config

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/agent/checks"
)

// CheckSettings configures the checks of this host.
type CheckSettings struct {
	Scripts       bool `key:"enable_script_checks"`
	LocalScripts  bool `key:"enable_local_script_checks"`
	OutputMaxSize int  `key:"check_output_max_size"`
	DiscardOutput bool `key:"discard_check_output"`
	// SidecarDeregisterAfter is for checks that the agent gives to sidecars.
	SidecarDeregisterAfter time.Duration `key:"connect.default_deregister_critical_service_after"`
	AgentTLS               bool          `key:"tls.enable_agent_tls_for_checks"`
	FormerAgentTLS         bool          `key:"enable_agent_tls_for_checks"`
	ServerName             string        `key:"server_name"`
}

func checkKeys() []Key {
	return with(Effective, "",
		Key{Name: "enable_script_checks", Type: Bool, Default: "false", Flag: "enable-script-checks", Doc: "Let checks run commands, from files and from the API. Whoever reaches the API can then run anything as the agent's user: prefer enable_local_script_checks."},
		Key{Name: "enable_local_script_checks", Type: Bool, Default: "false", Flag: "enable-local-script-checks", Doc: "Let checks of configuration files run commands."},
		Key{Name: "check_output_max_size", Type: Int, Default: "4096", Doc: "How many bytes of a check's output are kept; a definition may ask for fewer."},
		Key{Name: "tls.enable_agent_tls_for_checks", Type: Bool, Default: "false", Doc: "Checks over TLS show the certificate of tls.defaults.cert_file, and trust the authorities of tls.defaults.ca_file and ca_path. The certificate is read anew for each check, the authorities once."},
		Key{Name: "enable_agent_tls_for_checks", Type: Bool, Default: "false", Doc: "Former name of tls.enable_agent_tls_for_checks."},
		Key{Name: "server_name", Type: String, Doc: "The name that services must show in checks over TLS that have no tls_server_name, with tls.enable_agent_tls_for_checks. It is used nowhere else."},
		Key{Name: "discard_check_output", Type: Bool, Default: "false", Doc: "Keep the status of checks and drop what they said."},
		Key{Name: "connect.default_deregister_critical_service_after", Type: Duration, Default: "0s", Doc: "After how long a sidecar is deregistered whose checks, those that the agent gave it, stay critical. 0s: never."},
	)
}

func (s CheckSettings) agentTLS() bool { return s.AgentTLS || s.FormerAgentTLS }

// CheckTLS is what checks over TLS show of this host and whom they trust, nil for nothing
// and the system's.
func (c *Config) CheckTLS() *tls.Config { return c.checkTLS }

func (c *Config) readCheckTLS() (*tls.Config, error) {
	if !c.CheckSettings.agentTLS() {
		return nil, nil
	}
	d, f := c.HTTPS.Defaults, c.HTTPS.Former
	files := checks.TLSFiles{
		CertFile: cmp.Or(d.CertFile, f.CertFile), KeyFile: cmp.Or(d.KeyFile, f.KeyFile),
		CAFile: cmp.Or(d.CAFile, f.CAFile), CAPath: cmp.Or(d.CAPath, f.CAPath), ServerName: c.CheckSettings.ServerName,
	}
	if files == (checks.TLSFiles{ServerName: files.ServerName}) {
		return nil, errors.New("needs a certificate or authorities to use: set tls.defaults.cert_file and key_file, or tls.defaults.ca_file")
	}
	return files.Config()
}

// ScriptGate says whose checks may run commands.
func (c *Config) ScriptGate() checks.Scripts {
	switch {
	case c.CheckSettings.Scripts:
		return checks.AllScripts
	case c.CheckSettings.LocalScripts:
		return checks.LocalScripts
	default:
		return checks.NoScripts
	}
}

func (c *Config) validateChecks() error {
	s := c.CheckSettings
	var err error
	if c.checkTLS, err = c.readCheckTLS(); err != nil {
		return c.problem(cmp.Or(c.setOf("tls.enable_agent_tls_for_checks"), "enable_agent_tls_for_checks"), "%v", err)
	}
	if s.ServerName != "" && !s.agentTLS() {
		c.Warnings = append(c.Warnings, "server_name has no effect without tls.enable_agent_tls_for_checks")
	}
	if s.OutputMaxSize < 1 || s.OutputMaxSize > maxLogValue/2 {
		return c.problem("check_output_max_size", "%d is not between 1 and %d", s.OutputMaxSize, maxLogValue/2)
	}
	if s.Scripts && len(c.AllowWriteFrom) == 0 {
		c.Warnings = append(c.Warnings, fmt.Sprintf("%s: enable_script_checks lets everybody who reaches the HTTP API run commands as the agent's user:"+
			" set enable_local_script_checks instead, or http_config.allow_write_http_from", c.where["enable_script_checks"]))
	}
	return nil
}
