package store

import (
	"github.com/weftmesh/weft/catalog"
)

// entrySource lets the pure functions of catalog read config entries, and notes
// which they asked for, those that do not exist included: an answer made by them
// changes only when one of these does.
type entrySource struct {
	r    reader
	seen map[indexKey]bool
	keys []indexKey
}

func newEntrySource(r reader) *entrySource { return &entrySource{r: r, seen: map[indexKey]bool{}} }

// Entry implements catalog.EntrySource.
func (s *entrySource) Entry(kind, name string) catalog.ConfigEntry {
	s.note(indexKey{entryClass(kind), name})
	e, ok := s.r.entry(kind, name)
	if !ok {
		return nil
	}
	return e
}

func (s *entrySource) note(k indexKey) {
	if !s.seen[k] {
		s.seen[k] = true
		s.keys = append(s.keys, k)
	}
}

// chain compiles the chain that q asks for. It is nil, with a reason, where entries
// do not fit together.
func (r reader) chain(q catalog.Query) (chain *catalog.Chain, problem string, keys []indexKey) {
	src := newEntrySource(r)
	src.note(fixed(keyClusterID))
	src.note(indexKey{classVirtualIP, q.Name})
	o, err := q.ChainOptions()
	if err != nil {
		return nil, err.Error(), src.keys
	}
	if c, ok := r.caConfig(); ok {
		o.TrustDomain = catalog.TrustDomain(c.ClusterID)
	}
	chain, err = catalog.CompileChain(src, q.Name, o)
	if err != nil {
		return nil, err.Error(), src.keys
	}
	if row, ok := r.virtualIP(q.Name); ok {
		chain.AutoVirtualIPs, chain.ManualVirtualIPs = []string{row.addr().String()}, append([]string{}, row.Manual...)
	}
	return chain, "", src.keys
}

// merged gives instances their central configuration.
func (r reader) merged(instances []*catalog.Instance) ([]*catalog.Instance, []indexKey) {
	src := newEntrySource(r)
	out := make([]*catalog.Instance, len(instances))
	for i, inst := range instances {
		out[i] = inst
		if s := catalog.MergeCentral(src, inst.Service); s != inst.Service {
			own := *inst
			own.Service = s
			out[i] = &own
		}
	}
	return out, src.keys
}

// derivedKeys lists what the answer to q depends on by way of config entries.
func (r reader) derivedKeys(q catalog.Query) []indexKey {
	switch {
	case q.Kind == catalog.QueryChain:
		_, _, keys := r.chain(q)
		return keys
	case q.Kind == catalog.QueryGateway:
		return r.gatewayKeys(q.Name)
	case q.Kind == catalog.QueryIngress:
		instances, keys := r.ingress(q.Name)
		if q.Sub == catalog.SubMerged {
			_, more := r.merged(instances)
			keys = append(keys, more...)
		}
		return keys
	case q.Kind == catalog.QueryConnect:
		_, keys := r.connectRows(q.Name)
		if q.Sub == catalog.SubMerged {
			_, more := r.merged(r.baseInstances(q))
			keys = append(keys, more...)
		}
		return keys
	case q.Sub == catalog.SubMerged:
		_, keys := r.merged(r.baseInstances(q))
		return keys
	default:
		return nil
	}
}

// References of entries to what others are about.
const (
	refService     = "service/"
	refJWT         = "jwt/"
	refTerminating = "terminating/" // of a terminating gateway, to what it speaks for
)

// referencesOf lists what an entry refers to.
func referencesOf(e catalog.ConfigEntry) []string {
	var out []string
	service := func(n catalog.Name) {
		if n != "" && n != e.EntryName() {
			out = append(out, refService+n)
		}
	}
	switch e := e.(type) {
	case *catalog.ServiceRouter:
		for _, r := range e.Routes {
			if r.Destination != nil {
				service(r.Destination.Service)
			}
		}
	case *catalog.ServiceSplitter:
		for _, s := range e.Splits {
			service(s.Service)
		}
	case *catalog.ServiceResolver:
		if e.Redirect != nil {
			service(e.Redirect.Service)
		}
		for _, f := range e.Failover {
			service(f.Service)
			for _, t := range f.Targets {
				service(t.Service)
			}
		}
	case *catalog.IngressGateway:
		for _, l := range e.Listeners {
			for _, s := range l.Services {
				service(s.Name)
			}
		}
	case *catalog.TerminatingGateway:
		for _, s := range e.Services {
			out = append(out, refTerminating+s.Name)
		}
	case *catalog.ServiceIntentions:
		for _, p := range e.JWTProviders() {
			out = append(out, refJWT+p)
		}
	}
	return out
}

// checkReferences refuses a change of an entry after which entries would not fit
// together. It is called once the change is in the tables.
func (w *writer) checkReferences(kind, name string) error {
	switch kind {
	case catalog.KindProxyDefaults:
		return w.checkAll()
	case catalog.KindServiceDefaults:
		if err := w.checkChains(name); err != nil {
			return err
		}
		if err := w.checkPermissive(kind, name); err != nil {
			return err
		}
		if e, ok := w.serviceIntentions(name); ok {
			if err := w.checkIntentions(e); err != nil {
				return err
			}
		}
		return w.checkIngressOf(name)
	case catalog.KindServiceRouter, catalog.KindServiceSplitter, catalog.KindServiceResolver:
		return w.checkChains(name)
	case catalog.KindServiceIntentions:
		if e, ok := w.serviceIntentions(name); ok {
			return w.checkIntentions(e)
		}
	case catalog.KindJWTProvider:
		return w.checkProvider(name)
	case catalog.KindIngressGatewayEntry:
		if e, ok := w.entry(kind, name); ok {
			return w.checkIngress(e.(*catalog.IngressGateway))
		}
	}
	return nil
}

// checkAll is for changes that speak of every service.
func (w *writer) checkAll() error {
	if err := w.checkPermissive(catalog.KindProxyDefaults, catalog.ProxyDefaultsName); err != nil {
		return err
	}
	for _, kind := range []string{catalog.KindServiceRouter, catalog.KindServiceSplitter, catalog.KindServiceResolver} {
		for _, row := range all[*entryRow](w.reader, tableEntries, byKind, kind) {
			if err := w.compiles(row.Entry.EntryName()); err != nil {
				return err
			}
		}
	}
	for _, row := range all[*entryRow](w.reader, tableEntries, byKind, catalog.KindServiceIntentions) {
		if err := w.checkIntentions(row.Entry.(*catalog.ServiceIntentions)); err != nil {
			return err
		}
	}
	for _, row := range all[*entryRow](w.reader, tableEntries, byKind, catalog.KindIngressGatewayEntry) {
		if err := w.checkIngress(row.Entry.(*catalog.IngressGateway)); err != nil {
			return err
		}
	}
	return nil
}

// checkChains compiles the chains that a service has a part in.
func (w *writer) checkChains(name catalog.Name) error {
	seen := map[catalog.Name]bool{name: true}
	for todo := []catalog.Name{name}; len(todo) > 0; {
		at := todo[0]
		todo = todo[1:]
		if err := w.compiles(at); err != nil {
			return err
		}
		for _, row := range all[*entryRow](w.reader, tableEntries, byReference, refService+at) {
			switch row.Entry.(type) {
			case *catalog.ServiceRouter, *catalog.ServiceSplitter, *catalog.ServiceResolver:
			default:
				continue
			}
			if n := row.Entry.EntryName(); !seen[n] {
				seen[n] = true
				todo = append(todo, n)
			}
		}
	}
	return nil
}

// compiles tells whether the chain of a service does. Where it is evaluated makes
// no difference to that.
func (w *writer) compiles(name catalog.Name) error {
	_, err := catalog.CompileChain(newEntrySource(w.reader), name, catalog.ChainOptions{Datacenter: "-"})
	return err
}

func (w *writer) protocol(service catalog.Name) string {
	return catalog.ServiceProtocol(newEntrySource(w.reader), service)
}

// checkIntentions: rules about requests need a service that has requests, and
// rules about tokens somebody to verify them.
func (w *writer) checkIntentions(e *catalog.ServiceIntentions) error {
	if e.HasPermissions() {
		if p := w.protocol(e.Name); !catalog.IsHTTP(p) {
			return catalog.Invalidf("service %q has protocol %q, which is incompatible with L7 intentions permissions", e.Name, p)
		}
	}
	for _, p := range e.JWTProviders() {
		if _, ok := w.entry(catalog.KindJWTProvider, p); !ok {
			return catalog.Invalidf("Referenced JWT provider does not exist. Provider Name: %s", p)
		}
	}
	return nil
}

// checkProvider refuses that a provider goes that intentions refer to.
func (w *writer) checkProvider(name string) error {
	if _, ok := w.entry(catalog.KindJWTProvider, name); ok {
		return nil
	}
	for _, row := range all[*entryRow](w.reader, tableEntries, byReference, refJWT+name) {
		return catalog.Invalidf("cannot delete jwt provider config entry referenced by an intention. Provider name: %s, intention name: %s",
			name, row.Entry.EntryName())
	}
	return nil
}

func (w *writer) checkIngressOf(service catalog.Name) error {
	for _, row := range all[*entryRow](w.reader, tableEntries, byReference, refService+service) {
		if g, ok := row.Entry.(*catalog.IngressGateway); ok {
			if err := w.checkIngress(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkIngress: a listener speaks the protocol of its services.
func (w *writer) checkIngress(g *catalog.IngressGateway) error {
	for _, l := range g.Listeners {
		for _, s := range l.Services {
			if s.Name == catalog.Wildcard {
				continue
			}
			if p := w.protocol(s.Name); p != l.Protocol {
				return catalog.Invalidf("service %q has protocol %q, which is incompatible with protocol %q of the listener on port %d of ingress-gateway %q",
					s.Name, p, l.Protocol, l.Port, g.Name)
			}
		}
	}
	return nil
}

// checkPermissive: plaintext is let in only where the mesh entry allows that it is asked for.
func (w *writer) checkPermissive(kind, name string) error {
	e, ok := w.entry(kind, name)
	if !ok {
		return nil
	}
	var mode string
	switch e := e.(type) {
	case *catalog.ServiceDefaults:
		mode = e.MutualTLSMode
	case *catalog.ProxyDefaults:
		mode = e.MutualTLSMode
	}
	if mode != "permissive" {
		return nil
	}
	if m, ok := w.entry(catalog.KindMesh, catalog.MeshName); ok && m.(*catalog.Mesh).AllowEnablingPermissiveMutualTLS {
		return nil
	}
	return catalog.Invalidf("%s %s: cannot set MutualTLSMode=permissive because AllowEnablingPermissiveMutualTLS=false in the mesh config entry", kind, name)
}
