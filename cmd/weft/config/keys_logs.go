package config

import (
	"slices"
	"strings"
	"time"
)

// LogSettings configures where the log goes beside standard output.
type LogSettings struct {
	RotateBytes    int           `key:"log_rotate_bytes"`
	RotateDuration time.Duration `key:"log_rotate_duration"`
	RotateMaxFiles int           `key:"log_rotate_max_files"`
	Syslog         bool          `key:"enable_syslog"`
	SyslogFacility string        `key:"syslog_facility"`
}

func logFileKeys() []Key {
	return with(Effective, "",
		Key{Name: "log_rotate_bytes", Type: Int, Default: "0", Flag: "log-rotate-bytes", Doc: "The size at which log_file is moved aside, to a name with the time in it, and begun anew. 0: whatever its size."},
		Key{Name: "log_rotate_duration", Type: Duration, Default: "24h", Flag: "log-rotate-duration", Doc: "The age at which log_file is moved aside. 0s: whatever its age."},
		Key{Name: "log_rotate_max_files", Type: Int, Default: "0", Flag: "log-rotate-max-files", Doc: "How many files moved aside are kept. 0: all; -1: none."},
		Key{Name: "enable_syslog", Type: Bool, Default: "false", Flag: "syslog", Doc: "Send the log to the syslog of this host too. journald keeps standard output by itself."},
		Key{Name: "syslog_facility", Type: String, Default: "LOCAL0", Doc: "The facility of lines in syslog: KERN, USER, MAIL, DAEMON, AUTH, SYSLOG, LPR, NEWS, UUCP, CRON, AUTHPRIV, FTP or LOCAL0 to LOCAL7."},
	)
}

// syslogFacilities are in the order of their numbers; those between FTP and LOCAL0
// have no names.
var syslogFacilities = []string{
	"KERN", "USER", "MAIL", "DAEMON", "AUTH", "SYSLOG", "LPR", "NEWS", "UUCP", "CRON", "AUTHPRIV", "FTP", "", "", "", "",
	"LOCAL0", "LOCAL1", "LOCAL2", "LOCAL3", "LOCAL4", "LOCAL5", "LOCAL6", "LOCAL7",
}

// SyslogFacility is the number of the facility, not shifted.
func (c *Config) SyslogFacility() int {
	return slices.Index(syslogFacilities, strings.ToUpper(c.Log.SyslogFacility))
}

func (c *Config) validateLogs() error {
	if c.Log.RotateBytes < 0 {
		return c.problem("log_rotate_bytes", "must not be below 0")
	}
	if c.Log.RotateMaxFiles < -1 {
		return c.problem("log_rotate_max_files", "%d is below -1, which keeps none", c.Log.RotateMaxFiles)
	}
	if c.Log.SyslogFacility == "" || c.SyslogFacility() < 0 {
		return c.problem("syslog_facility", "%q is no facility of syslog such as LOCAL0", c.Log.SyslogFacility)
	}
	return nil
}
