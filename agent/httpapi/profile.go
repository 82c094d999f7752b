package httpapi

import (
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/weftmesh/weft/catalog/acl"
)

const profilePath = "/debug/pprof/"

// serveProfile shows the inside of the process, where the configuration lets it. An
// answer takes as long as it asks for, so nothing bounds the writing of it.
func (h *handler) serveProfile(rec *recorder, r *http.Request) {
	if !h.cfg.EnableDebug {
		writeError(rec, http.StatusUnauthorized, "Profiles are off: set enable_debug = true and restart the agent")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		rec.Header().Set("Allow", "GET,POST")
		writeError(rec, http.StatusMethodNotAllowed, "Profiles are read by GET, and symbols by POST")
		return
	}
	auth, err := h.cfg.Authorize(tokenOf(r, r.URL.Query()))
	if err != nil || !auth.Allowed(acl.Read, acl.Operator, "") {
		writeError(rec, http.StatusForbidden, "Permission denied: profiles need the permission operator:read")
		return
	}
	r.Body = http.MaxBytesReader(rec, r.Body, bodySmall)
	w := rec.ResponseWriter
	switch strings.TrimPrefix(r.URL.Path, profilePath) {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r)
	}
}
