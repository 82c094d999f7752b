package store

import "github.com/weftmesh/weft/catalog"

// Counts is how much is stored, for metrics.
type Counts struct {
	Nodes     int
	Services  int // names
	Instances int
	// Mesh counts the instances that are proxies or gateways, by kind; native ones
	// are under "connect-native".
	Mesh map[string]int
	// Entries counts config entries by kind.
	Entries map[string]int
}

// Counts counts what is stored now. It walks the tables: for metrics, not for requests.
func (s *Store) Counts() Counts {
	r := s.state.Load().read()
	c := Counts{Mesh: map[string]int{}, Entries: map[string]int{}}
	c.Nodes = r.count(tableNodes, func(any) {})
	names := map[catalog.Name]struct{}{}
	c.Instances = r.count(tableServices, func(row any) {
		svc := row.(*serviceRow).Service
		names[svc.Service] = struct{}{}
		if svc.Kind != catalog.KindTypical {
			c.Mesh[string(svc.Kind)]++
		} else if svc.Connect.Native {
			c.Mesh["connect-native"]++
		}
	})
	c.Services = len(names)
	r.count(tableEntries, func(row any) { c.Entries[row.(*entryRow).Entry.EntryKind()]++ })
	return c
}

func (r reader) count(t *table, each func(row any)) int {
	n := 0
	for row := range r.rows(t, byID) {
		each(row)
		n++
	}
	return n
}
