package config

import "slices"

// Keys is every key of the configuration, in the order of the reference page.
func Keys() []Key {
	return slices.Concat(
		generalKeys(), addressKeys(), meshKeys(), definitionKeys(), logKeys(), httpKeys(), limitKeys(), lifecycleKeys(), operatorKeys(),
		hostKeys(), checkKeys(), logFileKeys(), httpsKeys(), watchKeys(),
		joinKeys(), clusterKeys(), aclKeys(), tlsKeys(), dnsKeys(), telemetryKeys(), laterKeys(), ignoredKeys(), refusedKeys(),
	)
}

// with sets the status and note of a group of keys.
func with(status Status, note string, keys ...Key) []Key {
	for i := range keys {
		keys[i].Status = status
		if keys[i].Note == "" {
			keys[i].Note = note
		}
	}
	return keys
}

func generalKeys() []Key {
	return with(Effective, "",
		Key{Name: "server", Type: Bool, Default: "false", Flag: "server", Doc: "Run a server of the control plane in this process, beside the agent."},
		Key{Name: "bootstrap", Type: Bool, Default: "false", Flag: "bootstrap", Doc: "Let this server elect itself. With one server it is the same as bootstrap_expect = 1."},
		Key{Name: "bootstrap_expect", Type: Int, Default: "0", Flag: "bootstrap-expect", Doc: "How many servers begin a new cluster together: 1, 3 or 5, the same on each of them. A server that has been in a cluster ignores it."},
		Key{Name: "datacenter", Type: String, Default: "dc1", Flag: "datacenter", Doc: "The name of the datacenter: letters, digits, - and _."},
		Key{Name: "node_name", Type: String, Flag: "node", Doc: "The name of this host in the catalog. The host name when it is not set."},
		Key{Name: "node_id", Type: String, Flag: "node-id", Doc: "The UUID of this host. Made at the first start and kept in the data directory when it is not set."},
		Key{Name: "node_meta", Type: StringMap, Flag: "node-meta", Doc: "Metadata of this host in the catalog; at most 64 keys."},
		Key{Name: "data_dir", Type: String, Flag: "data-dir", Doc: "Where the agent keeps what must survive a restart. Required, but for -dev, which keeps everything in memory when it is not set."},
		Key{Name: "domain", Type: String, Default: "consul", Flag: "domain", Doc: "The domain that DNS answers for."},
	)
}

func addressKeys() []Key {
	return with(Effective, "",
		Key{Name: "bind_addr", Type: String, Default: "0.0.0.0", Flag: "bind", Doc: "The address on which gossip, the server and the proxies listen. May be a go-sockaddr template, such as {{ GetPrivateIP }}."},
		Key{Name: "advertise_addr", Type: String, Flag: "advertise", Doc: "The address that other hosts use for this one. bind_addr when it is not set, or the private address of this host where that is 0.0.0.0. May be a template."},
		Key{Name: "client_addr", Type: String, Default: "127.0.0.1", Flag: "client", Doc: "The addresses, separated by spaces, on which the HTTP API and DNS listen. May be a template."},
		Key{Name: "addresses.http", Type: String, Doc: "The addresses of the HTTP API, instead of client_addr. unix:///path/to/socket stands for a Unix socket."},
		Key{Name: "ports.http", Type: Int, Default: "8500", Flag: "http-port", Doc: "The port of the HTTP API. -1 switches it off."},
		Key{Name: "ports.serf_lan", Type: Int, Default: "8301", Flag: "serf-lan-port", Doc: "The port of gossip, TCP and UDP."},
		Key{Name: "ports.server", Type: Int, Default: "8300", Flag: "server-port", Doc: "The port of the server."},
		Key{Name: "ports.sidecar_min_port", Type: Int, Default: "21000", Doc: "The first port given to sidecars that name none."},
		Key{Name: "ports.sidecar_max_port", Type: Int, Default: "21255", Doc: "The last port given to sidecars that name none."},
		Key{Name: "ports.expose_min_port", Type: Int, Default: "21500", Doc: "The first port given to checks that go through proxies, see expose.checks."},
		Key{Name: "ports.expose_max_port", Type: Int, Default: "21755", Doc: "The last of those ports."},
	)
}

func meshKeys() []Key {
	return with(Effective, "",
		Key{Name: "default_intention_policy", Type: String, Default: "deny", Flag: "default-intention-policy", Doc: "What is done where no intention matches: \"deny\" or \"allow\". Acts on servers."},
		Key{Name: "connect.enabled", Type: Bool, Default: "true", Doc: "Whether the mesh is on. It always is; false is refused."},
		Key{Name: "connect.ca_provider", Type: String, Default: "consul", Doc: "The certificate authority. \"consul\" is the built-in one, and the only one so far."},
		Key{Name: "connect.ca_config", Type: AnyMap, Doc: "Settings of the certificate authority, such as leaf_cert_ttl, private_key_type and private_key_bits. Acts on servers, when the cluster starts for the first time."},
		Key{Name: "connect.access_log.enabled", Type: Bool, Default: "true", Doc: "Write a line for each connection of the mesh when it ends or is refused. Metrics and weft connect status know of all, whatever it says."},
		Key{Name: "connect.access_log.sample", Type: Float, Default: "1", Doc: "The share, from 0 to 1, of connections that ended well and get a line. What was refused or failed gets one always."},
		Key{Name: "connect.mesh_port", Type: Int, Default: "0", Doc: "One inbound port for all sidecars of this host that name none, told apart by the server name that the caller asks for. A second instance of one service gets a port of its own. 0: each has a port of its own."},
		Key{Name: "connect.local_short_cut", Type: Bool, Default: "true", Doc: "Join services of this agent to each other in the kernel, without TLS between them. Certificates, intentions, log lines and metrics are the same. False: they speak TLS as if on two hosts."},
	)
}

func definitionKeys() []Key {
	return with(Effective, "",
		Key{Name: "service", Type: Blocks, Reload: true, Doc: "A service of this host. May be given many times."},
		Key{Name: "services", Type: Blocks, Reload: true, Doc: "A list of services of this host."},
		Key{Name: "check", Type: Blocks, Reload: true, Doc: "A check of this host, or of the service that its service_id names. May be given many times."},
		Key{Name: "checks", Type: Blocks, Reload: true, Doc: "A list of checks."},
		Key{Name: "enable_central_service_config", Type: Bool, Default: "true", Doc: "Merge what proxy-defaults and service-defaults say into the proxies of this host."},
		Key{Name: "config_entries.bootstrap", Type: Blocks, Doc: "Config entries that a server writes when the cluster has none of that kind and name."},
		Key{Name: "check_update_interval", Type: Duration, Default: "5m", Doc: "How often a change of a check's output alone, with its state unchanged, reaches the catalog. 0 is at once."},
	)
}

func logKeys() []Key {
	return with(Effective, "",
		Key{Name: "log_level", Type: String, Default: "info", Flag: "log-level", Reload: true, Doc: "The least severe line that is logged: trace, debug, info, warn or error. trace is the same as debug."},
		Key{Name: "log_json", Type: Bool, Default: "false", Flag: "log-json", Doc: "Log JSON, one object a line, instead of text."},
		Key{Name: "log_file", Type: String, Flag: "log-file", Doc: "A file that receives the log beside standard output. A name that ends in / is a folder, in which weft.log is written."},
	)
}

func httpKeys() []Key {
	return with(Effective, "",
		Key{Name: "session_ttl_min", Type: Duration, Default: "10s", Doc: "The shortest TTL of a session. Acts on servers."},
		Key{Name: "default_query_time", Type: Duration, Default: "5m", Flag: "default-query-time", Doc: "How long a blocking query waits that does not say."},
		Key{Name: "max_query_time", Type: Duration, Default: "10m", Flag: "max-query-time", Doc: "How long a blocking query may wait at most."},
		Key{Name: "discovery_max_stale", Type: Duration, Default: "0s", Doc: "How old an answer of service discovery may be that is given without asking the leader. 0 asks."},
		Key{Name: "http_config.max_header_bytes", Type: Int, Default: "65536", Doc: "The largest request line and header together."},
		Key{Name: "http_config.response_headers", Type: StringMap, Doc: "Headers added to every answer of the HTTP API."},
		Key{Name: "http_config.block_endpoints", Type: StringList, Doc: "Prefixes of paths that are refused to everybody, with status 403."},
		Key{Name: "http_config.allow_write_http_from", Type: StringList, Flag: "allow-write-http-from", Doc: "Networks (CIDR) that may change things over the HTTP API. Everybody who reaches it, when empty."},
		Key{Name: "http_config.allowed_hosts", Type: StringList, Doc: "Names by which clients may call the HTTP API, beside addresses, localhost, the node's name and names in the domain. Others are refused, against DNS rebinding."},
		Key{Name: "enable_debug", Type: Bool, Default: "false", Doc: "Serve profiles of the agent under /debug/pprof on the HTTP API."},
		Key{Name: "unix_sockets.mode", Type: String, Default: "0600", Doc: "The octal permissions of Unix sockets that the agent makes."},
	)
}

func lifecycleKeys() []Key {
	return with(Effective, "",
		Key{Name: "pid_file", Type: String, Flag: "pid-file", Doc: "A file that holds the process ID while the agent runs."},
		Key{Name: "leave_on_terminate", Type: Bool, Default: "true on agents, false on servers", Doc: "Whether SIGTERM leaves the cluster before the agent ends."},
		Key{Name: "skip_leave_on_interrupt", Type: Bool, Default: "false on agents, true on servers", Doc: "Whether SIGINT ends the agent without leaving the cluster."},
		Key{Name: "performance.leave_drain_time", Type: Duration, Default: "5s", Doc: "How long running connections may finish when the agent stops."},
		Key{Name: "performance.handover_drain_time", Type: Duration, Default: "10m", Doc: "How long running connections may finish in the old process after SIGUSR2, when a new one has taken over from it."},
	)
}
