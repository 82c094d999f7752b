package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	webDB     = `{"ID":"","SourceName":"web","DestinationName":"db","SourceType":"consul","Action":"allow","Precedence":9}`
	exactPath = "/v1/connect/intentions/exact?destination=db&source=web"
)

// commandCase is a command, what a fake agent answers, and what must come of it.
type commandCase struct {
	name    string
	args    []string
	answers map[string]string
	code    int
	out     string // exact
	err     string // contained
	asked   string // contained
}

func runCases(t *testing.T, cases []commandCase) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeAgent(t, tc.answers)
			code, out, errs := call(f.env(), tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if out != tc.out {
				t.Errorf("stdout:\n%s\nwant:\n%s", out, tc.out)
			}
			if (tc.err == "") != (errs == "") || !strings.Contains(errs, tc.err) {
				t.Errorf("stderr:\n%s\nwant: %s", errs, tc.err)
			}
			if !strings.Contains(f.asked(), tc.asked) {
				t.Errorf("asked:\n%s\nwant: %s", f.asked(), tc.asked)
			}
			if strings.Contains(errs, "Unexpected response") {
				t.Errorf("stderr speaks of codes: %s", errs)
			}
		})
	}
}

// inFile writes text to a file of its own and gives its path.
func inFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	writeFile(t, path, text)
	return path
}

func TestIntentionCommands(t *testing.T) {
	rules := inFile(t, "rules.json", `[{"SourceName":"a","DestinationName":"b","Action":"deny"}]`)
	runCases(t, []commandCase{
		{
			name: "intention create", args: []string{"intention", "create", "web", "db"},
			answers: map[string]string{"GET " + exactPath: "404 not found", "PUT /v1/connect/intentions/exact": "true"},
			out:     "Created: web => db (allow)\n", asked: "PUT " + exactPath + ` {`,
		},
		{
			name: "intention create twice", args: []string{"intention", "create", "-deny", "web", "db"},
			answers: map[string]string{"GET " + exactPath: webDB},
			code:    1, err: "Error: intention web => db: it exists already (allow); -replace changes it",
		},
		{
			name: "intention replace", args: []string{"intention", "create", "-deny", "-replace", "web", "db"},
			answers: map[string]string{"GET " + exactPath: webDB, "PUT /v1/connect/intentions/exact": "true"},
			out:     "Created: web => db (deny)\n", asked: `"Action":"deny"`,
		},
		{
			name: "intention with metadata", args: []string{"intention", "create", "--meta", "why=x=y", "web", "db"},
			answers: map[string]string{"GET " + exactPath: "404 not found", "POST /v1/connect/intentions": `{"ID":"1"}`},
			out:     "Created: web => db (allow)\n", asked: `"Meta":{"why":"x=y"}`,
		},
		{
			name: "intention files", args: []string{"intention", "create", "-file", rules},
			answers: map[string]string{"GET /v1/connect/intentions/exact": "404 none", "PUT /v1/connect/intentions/exact": "true"},
			out:     "Created: a => b (deny)\n",
		},
		{
			name: "intention refused", args: []string{"intention", "create", "web", "db"},
			answers: map[string]string{"GET " + exactPath: "404 x", "PUT /v1/connect/intentions/exact": "500 no cluster leader"},
			code:    1, err: "Error: intention web => db: no cluster leader\n",
		},
		{
			name: "intention create and wait", args: []string{"intention", "create", "-wait", "2s", "web", "db"},
			answers: map[string]string{
				"GET " + exactPath: "404 not found", "PUT /v1/connect/intentions/exact": "true",
				"GET /v1/connect/intentions/enforced": `{"Index":7,"Enforced":false,"Proxies":[{"Node":"n1","Proxy":"p1","Service":"db","Enforced":true},` +
					`{"Node":"n2","Proxy":"p2","Service":"db","Why":"its agent sleeps"}]}`,
			},
			code: 1, out: "Created: web => db (allow)\n", asked: "destination=db&wait=2s",
			err: "Not enforced by p2 on n2: its agent sleeps\nIt is written; 1 of 2 proxies did not enforce it within 2s.\n",
		},
		{
			name: "cert revoke", args: []string{"cert", "revoke", "-reason", "lost", "0A1B"},
			answers: map[string]string{"PUT /v1/connect/ca/revocations": "true"},
			out:     "Revoked: 0a:1b\n", asked: `"Description":"lost","Serial":"0a:1b"`,
		},
		{name: "cert revoke nonsense", args: []string{"cert", "revoke", "web"}, code: 2, err: "is no serial of a certificate"},
		{
			name: "cert unrevoke", args: []string{"cert", "unrevoke", "spiffe://d/ns/default/dc/dc1/svc/web"},
			answers: map[string]string{"DELETE /v1/connect/ca/revocations": "true"},
			out:     "Trusted again: spiffe://d/ns/default/dc/dc1/svc/web\n", asked: "uri=spiffe",
		},
		{
			name: "cert revocations", args: []string{"cert", "revocations"},
			answers: map[string]string{"GET /v1/connect/ca/revocations": "[]"}, err: "Nothing is revoked.\n",
		},
		{name: "allow and deny", args: []string{"intention", "create", "-allow", "-deny", "a", "b"}, code: 2, err: "exclude each other"},
		{
			name: "intention check allowed", args: []string{"intention", "check", "web", "db"},
			answers: map[string]string{"GET /v1/connect/intentions/check": `{"Allowed":true,"Reason":"allow by intention web → db (precedence 9)"}`},
			out:     "Allowed\n", err: "allow by intention", asked: "destination=db&source=web",
		},
		{
			name: "intention check denied", args: []string{"intention", "check", "web", "db"},
			answers: map[string]string{"GET /v1/connect/intentions/check": `{"Allowed":false}`},
			code:    1, out: "Denied\n",
		},
		{
			name: "intention check failed", args: []string{"intention", "check", "web", "db"},
			answers: map[string]string{"GET /v1/connect/intentions/check": "500 no cluster leader"},
			code:    2, err: "Error: no cluster leader\n",
		},
		{
			name: "intention match", args: []string{"intention", "match", "db"},
			answers: map[string]string{"GET /v1/connect/intentions/match": `{"db":[` + webDB + `]}`},
			out:     "web => db (allow)\n", asked: "by=destination",
		},
		{
			name: "intention match of a peer", args: []string{"intention", "match", "db"},
			answers: map[string]string{"GET /v1/connect/intentions/match": `{"db":[` + strings.Replace(webDB, `"Dest`, `"SourcePeer":"east","Dest`, 1) + `]}`},
			out:     "peer:east/web => db (allow)\n",
		},
		{
			name: "intention list with a peer", args: []string{"intention", "list"},
			answers: map[string]string{"GET /v1/connect/intentions": `[` + webDB + `,` + strings.Replace(webDB, `"Dest`, `"SourcePeer":"east","Dest`, 1) + `]`},
			out: "ID  Source Peer  Source  Action  Destination  Precedence\n" +
				"                 web     allow   db           9\n" +
				"    east         web     allow   db           9\n",
		},
		{
			name: "intention match source", args: []string{"intention", "match", "-source", "web"},
			answers: map[string]string{"GET /v1/connect/intentions/match": `{"web":[` + webDB + `]}`},
			out:     "web => db (allow)\n", asked: "by=source",
		},
		{
			name: "intention get", args: []string{"intention", "get", "web", "db"},
			answers: map[string]string{"GET " + exactPath: webDB},
			out:     "Source:       web\nDestination:  db\nAction:       allow\nPrecedence:   9\n",
		},
		{
			name: "intention get none", args: []string{"intention", "get", "web", "db"},
			code: 1, err: "Error: there is no intention web => db\n",
		},
		{
			name: "intention list", args: []string{"intention", "list"},
			answers: map[string]string{"GET /v1/connect/intentions": "[" + webDB + "]"},
			out:     "ID  Source  Action  Destination  Precedence\n    web     allow   db           9\n",
		},
		{
			name: "intention delete", args: []string{"intention", "delete", "web", "db"},
			answers: map[string]string{"GET " + exactPath: webDB, "DELETE " + exactPath: "true"},
			out:     "Intention deleted.\n", asked: "DELETE " + exactPath,
		},
	})
}

func TestServiceCatalogAndConfigCommands(t *testing.T) {
	web := inFile(t, "web.hcl", `service { name = "web" port = 80 check { ttl = "10s" } connect { sidecar_service {} } }`)
	entry := inFile(t, "db.hcl", "kind = \"service-intentions\"\nname = \"db\"\nsources = [{ name = \"web\", action = \"allow\" }]")
	runCases(t, []commandCase{
		{
			name: "services register file", args: []string{"services", "register", web},
			answers: map[string]string{"PUT /v1/agent/service/register": ""},
			out:     "Registered service: web\n", asked: `"TTL":10000000000`,
		},
		{
			name: "services register flags", args: []string{"services", "register", "-name=web", "-port=80", "-tag=a", "-tag=b,c", "-meta=k=v", "-tagged-address=lan=1.2.3.4:5"},
			answers: map[string]string{"PUT /v1/agent/service/register": ""},
			out:     "Registered service: web\n", asked: `"Tags":["a","b,c"],"Port":80`,
		},
		{
			name: "services deregister", args: []string{"services", "deregister", web},
			answers: map[string]string{"PUT /v1/agent/service/deregister/web": ""},
			out:     "Deregistered service: web\n",
		},
		{
			name: "services deregister unknown", args: []string{"services", "deregister", "-id=nope"},
			answers: map[string]string{"PUT /v1/agent/service/deregister/nope": `404 Unknown service ID "nope"`},
			code:    1, err: "Error: service nope: Unknown service ID \"nope\"\n",
		},
		{name: "services register both", args: []string{"services", "register", "-port=1", web}, code: 2, err: "-port describes a service without a file"},
		{name: "services register nothing", args: []string{"services", "register"}, code: 2, err: "name a file, or a service with -name"},
		{
			name: "catalog services", args: []string{"catalog", "services", "-tags"},
			answers: map[string]string{"GET /v1/catalog/services": `{"web":["a","b"],"consul":[]}`},
			out:     "consul  \nweb     a,b\n",
		},
		{
			name: "catalog nodes", args: []string{"catalog", "nodes"},
			answers: map[string]string{"GET /v1/catalog/nodes": `[{"ID":"0af1c2d3-1","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1"}]`},
			out:     "Node  ID        Address   DC\nn1    0af1c2d3  10.0.0.1  dc1\n",
		},
		{
			name: "catalog datacenters", args: []string{"catalog", "datacenters"},
			answers: map[string]string{"GET /v1/catalog/datacenters": `["dc1"]`}, out: "dc1\n",
		},
		{
			name: "config write", args: []string{"config", "write", entry},
			answers: map[string]string{"PUT /v1/config": "true"},
			out:     "Config entry written: service-intentions/db\n", asked: `"Kind":"service-intentions"`,
		},
		{
			name: "config write lost", args: []string{"config", "write", "-cas", "-modify-index=4", entry},
			answers: map[string]string{"PUT /v1/config?cas=4": "false"},
			code:    1, err: "was changed by another: its index is not 4",
		},
		{
			name: "config list", args: []string{"config", "list", "-kind", "service-intentions"},
			answers: map[string]string{"GET /v1/config/service-intentions": `[{"Kind":"service-intentions","Name":"db"}]`}, out: "db\n",
		},
		{
			name: "config delete", args: []string{"config", "delete", "-filename", entry},
			answers: map[string]string{"DELETE /v1/config/service-intentions/db": "{}"},
			out:     "Config entry deleted: service-intentions/db\n",
		},
		{name: "config read without name", args: []string{"config", "read", "-kind", "x"}, code: 2, err: "-kind and -name are both needed"},
	})
}

func TestConnectCommands(t *testing.T) {
	ca := inFile(t, "ca.hcl", "provider = \"consul\"\nconfig { leaf_cert_ttl = \"1h\" }")
	runCases(t, []commandCase{
		{
			name: "connect ca set-config", args: []string{"connect", "ca", "set-config", "-config-file", ca},
			answers: map[string]string{"PUT /v1/connect/ca/configuration": ""},
			out:     "Configuration updated!\n", asked: `"leaf_cert_ttl":"1h"`,
		},
		{
			name: "connect status", args: []string{"connect", "status"},
			answers: map[string]string{"GET /v1/agent/connect/proxies": `[{"Proxy":"web-sidecar-proxy","Service":"web","Applied":12,"Ready":false,"Problem":"no certificate",
				"Inbound":{"Addr":"0.0.0.0:21000","Listening":true,"Local":"127.0.0.1:80","Refused":[
				{"Time":"2026-01-02T03:04:05Z","Count":4,"Reason":"tls_failed","Addr":"10.0.0.1:6","Error":"it asks for nobody here"}]},"Upstreams":[{"Name":"db","Listener":{"Addr":"127.0.0.1:9191","Error":"in use"},"Instances":[]}],"Errors":[
				{"Time":"2026-01-02T03:04:05Z","Count":37,"Reason":"denied","Source":"api","Destination":"web","Addr":"10.0.0.1:5","Rule":"default","Error":"permission denied","Hint":"weft intention create api web"},
				{"Time":"2026-01-02T03:04:05Z","Reason":"denied","Source":"web","Destination":"db","Error":"stream reset by the peer: refused"},
				{"Time":"2026-01-02T03:04:05Z","Reason":"dial_failed","Source":"api","Destination":"web","Rule":"api → web (precedence 9)","Error":"the application does not answer"},
				{"Time":"2026-01-02T03:04:05Z","Reason":"tls_failed","Destination":"web","Addr":"10.0.0.1:5","Error":"tls: client didn't provide a certificate"}]}]`},
			code: 1,
			out: "web-sidecar-proxy (not ready: no certificate, policy version 12)\n" +
				"  Inbound:        0.0.0.0:21000, for the application at 127.0.0.1:80\n" +
				"  Upstream:       db at 127.0.0.1:9191 (not listening: in use), 0 instances\n" +
				"  Refused or failed, the newest last:\n" +
				"    " + time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.TimeOnly) + " denied: api => web, by default (37 times)\n" +
				"      hint: weft intention create api web\n" +
				"    " + time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.TimeOnly) + " denied: web => db, by the far end\n" +
				"    " + time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.TimeOnly) + " dial_failed: api => web, the application does not answer\n" +
				"    " + time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.TimeOnly) + " tls_failed: 10.0.0.1:5 => web, tls: client didn't provide a certificate\n" +
				"\nThe mesh port 0.0.0.0:21000\n" +
				"  Refused for all that share it, the newest last:\n" +
				"    " + time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.TimeOnly) + " tls_failed: 10.0.0.1:6 => ?, it asks for nobody here (4 times)\n",
		},
		{
			name: "connect status of what runs outside and drains", args: []string{"connect", "status", "web"},
			answers: map[string]string{"GET /v1/agent/connect/proxies": `[{"Proxy":"web-sidecar-proxy","Service":"web","Applied":3,"Ready":true,"External":true,
				"Peers":[{"Direction":"inbound","Source":"api","Destination":"web","Peer":"spiffe://x","Open":2,"BytesIn":10,"BytesOut":20}],
				"Drainers":[{"PID":77,"Peers":[{"Direction":"inbound","Source":"old","Destination":"web","Open":1,"BytesIn":1,"BytesOut":2}]}],
				"Tunnels":[{"Direction":"inbound","Peer":"spiffe://x/api","Addr":"10.0.0.1:5","Streams":2,"Draining":true,"Since":"2026-01-02T03:04:05Z"}]}]`},
			out: "web-sidecar-proxy (ready, policy version 3)\n" +
				"  Process:        its own, outside the agent\n" +
				"  Connections  From  To   Open  Bytes in  Bytes out\n" +
				"  inbound      api   web  2     10        20\n" +
				"  Drainers (process 77)  From  To   Open  Bytes in  Bytes out\n" +
				"  inbound                old   web  1     1         2\n" +
				"  Tunnels  Address     Streams      Since                Peer\n" +
				"  inbound  10.0.0.1:5  2, draining  " + time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.DateTime) + "  spiffe://x/api\n",
		},
		{name: "proxy of nothing", args: []string{"connect", "proxy"}, code: 2, err: "exactly one of"},
		{name: "proxy upstream", args: []string{"connect", "proxy", "-service=web", "-upstream=db"}, code: 2, err: "is not name:port"},
		{
			name: "proxy that the agent runs", args: []string{"connect", "proxy", "-sidecar-for=web"},
			answers: map[string]string{"GET /v1/agent/services": `{"p":{"Kind":"connect-proxy","ID":"p","Proxy":{"DestinationServiceID":"web"}}}`},
			code:    1, err: "the agent runs the proxy p itself; with external = true",
		},
		{
			name: "proxy that is not there", args: []string{"connect", "proxy", "-proxy-id=q"},
			answers: map[string]string{"GET /v1/agent/services": `{}`}, code: 1, err: `no proxy with the ID "q" is registered`,
		},
	})
}

func TestHostCommands(t *testing.T) {
	runCases(t, []commandCase{
		{
			name: "members", args: []string{"members"},
			answers: map[string]string{"GET /v1/agent/members": `[{"Name":"n1","Addr":"127.0.0.1","Port":8301,"Status":1,"Tags":{"role":"consul","dc":"dc1","build":"0.1:x","vsn":"2"}}]`},
			out: "Node  Address         Status  Type    Build  Protocol  DC   Partition  Segment\n" +
				"n1    127.0.0.1:8301  alive   server  0.1    2         dc1  default    <all>\n",
		},
		{
			name: "members with another status", args: []string{"members", "-status=failed"},
			answers: map[string]string{"GET /v1/agent/members": `[{"Name":"n1","Status":1}]`},
			code:    2, err: "no member has that status",
		},
		{name: "members with a bad expression", args: []string{"members", "-status=("}, code: 2, err: "-status:"},
		{
			name: "info", args: []string{"info"},
			answers: map[string]string{"GET /v1/agent/self": `{"Stats":{"raft":{"state":"Leader","applied_index":"3"},"agent":{"services":"1"}}}`},
			out:     "agent:\n\tservices = 1\nraft:\n\tapplied_index = 3\n\tstate = Leader\n",
		},
		{
			name: "info in words", args: []string{"info"},
			answers: map[string]string{"GET /v1/agent/self": `{"Stats":{"state":{"members":"2 of 3 are alive","server":"nobody leads","server_hint":"start them"},"agent":{"services":"1"}}}`},
			out:     "this host:\n\tserver   nobody leads\n\t         To do: start them\n\tmembers  2 of 3 are alive\n\nagent:\n\tservices = 1\n",
		},
		{
			name: "reload refused", args: []string{"reload"},
			answers: map[string]string{"PUT /v1/agent/reload": "500 a.hcl:3: nope: unknown key"},
			code:    1, err: "Error: a.hcl:3: nope: unknown key\n",
		},
		{name: "leave", args: []string{"leave"}, answers: map[string]string{"PUT /v1/agent/leave": ""}, out: "Graceful leave complete\n"},
		{
			name: "maint", args: []string{"maint", "-enable", "-service=web", "-reason=a b"},
			answers: map[string]string{"PUT /v1/agent/service/maintenance/web": ""},
			out:     "Service maintenance for \"web\" is now enabled\n", asked: "enable=true&reason=a+b",
		},
		{
			name: "maint list", args: []string{"maint"},
			answers: map[string]string{"GET /v1/agent/checks": `{"_node_maintenance":{"Node":"n1","Notes":"disk"},"_service_maintenance:web":{"Notes":"new"},"x":{}}`},
			out:     "Node:\n  Name:   n1\n  Reason: disk\n\nService:\n  ID:     web\n  Reason: new\n\n",
		},
		{name: "maint both", args: []string{"maint", "-enable", "-disable"}, code: 2, err: "exclude each other"},
		{
			name: "monitor", args: []string{"monitor", "-log-level=debug"},
			answers: map[string]string{"GET /v1/agent/monitor": "line 1\nline 2\n"},
			code:    1, out: "line 1\nline 2\n", err: "ended", asked: "loglevel=debug",
		},
		{name: "empty error", args: []string{"leave"}, answers: map[string]string{"PUT /v1/agent/leave": "503 "}, code: 1, err: "the agent answered 503 Service Unavailable"},
		{
			name: "stale and datacenter", args: []string{"catalog", "nodes", "-stale", "-datacenter=dc9"},
			answers: map[string]string{"GET /v1/catalog/nodes": `[]`}, asked: "dc=dc9&stale=", err: "There are no such nodes.",
		},
	})
}
