package config

// Keys that this version knows but that do nothing, or nothing yet, so that files
// written for later versions, or for Consul, load.

func clusterKeys() []Key { return append(settledKeys(), laterClusterKeys()...) }

// settledKeys ask for what cannot be otherwise here.
func settledKeys() []Key {
	const gossip = "gossip is always encrypted"
	return with(Ignored, "",
		Key{Name: "encrypt_verify_incoming", Type: Bool, Default: "true", Anyway: "true", Doc: "Refuse gossip that is not encrypted.", Note: gossip},
		Key{Name: "encrypt_verify_outgoing", Type: Bool, Default: "true", Anyway: "true", Doc: "Encrypt gossip that is sent.", Note: gossip},
		Key{Name: "raft_protocol", Type: Int, Default: "3", Anyway: "3", Flag: "raft-protocol", Doc: "The version of the Raft protocol. Only 3 exists here.", Note: "only 3 exists here"},
		Key{Name: "protocol", Type: Int, Default: "2", Anyway: "2", Flag: "protocol", Doc: "The version of the gossip protocol. Only 2 exists here.", Note: "only 2 exists here"},
	)
}

func laterClusterKeys() []Key {
	return with(Accepted, "clusters of several datacenters are not joined, each stands for itself",
		Key{Name: "primary_datacenter", Type: String, Flag: "primary-datacenter", Doc: "The datacenter that leads the others."},
		Key{Name: "primary_gateways", Type: StringList, Flag: "primary-gateway", Doc: "Mesh gateways of the primary datacenter."},
		Key{Name: "primary_gateways_interval", Type: Duration, Default: "30s", Doc: "The time between attempts to reach them."},
		Key{Name: "retry_join_wan", Type: StringList, Flag: "retry-join-wan", Doc: "Servers of other datacenters to join."},
		Key{Name: "start_join_wan", Type: StringList, Flag: "join-wan", Doc: "Servers of other datacenters to join, tried once."},
		Key{Name: "retry_interval_wan", Type: Duration, Default: "30s", Flag: "retry-interval-wan", Doc: "The time between those attempts."},
		Key{Name: "retry_max_wan", Type: Int, Default: "0", Flag: "retry-max-wan", Doc: "How many of them are made."},
		Key{Name: "gossip_wan", Type: AnyMap, Doc: "Gossip between datacenters."},
		Key{Name: "serf_wan", Type: String, Flag: "serf-wan-bind", Doc: "The address of gossip between datacenters."},
		Key{Name: "serf_wan_allowed_cidrs", Type: StringList, Flag: "serf-wan-allowed-cidrs", Doc: "Networks whose servers may join."},
		Key{Name: "advertise_reconnect_timeout", Type: Duration, Doc: "After how long others forget this host once it fails.", Note: "reconnect_timeout of the others decides"},
		Key{Name: "peering.enabled", Type: Bool, Default: "true", Doc: "Whether clusters may be peered.", Note: "peering comes in a later version"},
		Key{Name: "peering.test_allow_peer_registrations", Type: Bool, Default: "false", Doc: "For tests of peering only.", Note: "peering comes in a later version"},
		Key{Name: "ports.serf_wan", Type: Int, Default: "8302", Flag: "serf-wan-port", Doc: "The port of gossip between datacenters."},
		Key{Name: "connect.enable_mesh_gateway_wan_federation", Type: Bool, Default: "false", Doc: "Join datacenters through mesh gateways."},
	)
}

func aclKeys() []Key {
	const note = "ACLs are not enforced by this version, every request is allowed"
	return with(Accepted, note,
		Key{Name: "acl.enabled", Type: Bool, Default: "false", Doc: "Whether requests need a token."},
		Key{Name: "acl.default_policy", Type: String, Default: "allow", Doc: "What a token may do that no rule speaks of."},
		Key{Name: "acl.down_policy", Type: String, Default: "extend-cache", Doc: "What tokens may do while the servers are gone."},
		Key{Name: "acl.enable_token_persistence", Type: Bool, Default: "false", Doc: "Keep tokens set over the API."},
		Key{Name: "acl.enable_token_replication", Type: Bool, Default: "false", Doc: "Copy tokens from the primary datacenter."},
		Key{Name: "acl.enable_key_list_policy", Type: Bool, Default: "false", Doc: "Listing keys needs a right of its own."},
		Key{Name: "acl.policy_ttl", Type: Duration, Default: "30s", Doc: "How long a policy is cached."},
		Key{Name: "acl.role_ttl", Type: Duration, Default: "30s", Doc: "How long a role is cached."},
		Key{Name: "acl.token_ttl", Type: Duration, Default: "30s", Doc: "How long a token is cached."},
		Key{Name: "acl.msp_disable_bootstrap", Type: Bool, Default: "false", Doc: "Forbid bootstrapping ACLs over the API."},
		Key{Name: "acl.tokens.initial_management", Type: String, Doc: "The first management token."},
		Key{Name: "acl.tokens.master", Type: String, Doc: "Former name of initial_management."},
		Key{Name: "acl.tokens.agent", Type: String, Doc: "The token of the agent itself."},
		Key{Name: "acl.tokens.agent_recovery", Type: String, Doc: "A token that works on this agent while the servers are gone."},
		Key{Name: "acl.tokens.agent_master", Type: String, Doc: "Former name of agent_recovery."},
		Key{Name: "acl.tokens.default", Type: String, Doc: "The token of requests that bring none."},
		Key{Name: "acl.tokens.dns", Type: String, Doc: "The token of DNS."},
		Key{Name: "acl.tokens.replication", Type: String, Doc: "The token of replication."},
		Key{Name: "acl.tokens.config_file_service_registration", Type: String, Doc: "The token that registers services from files."},
	)
}

// joinNote says how hosts get their certificates here.
const joinNote = "agents get their certificates with a token of weft join-token"

func tlsKeys() []Key {
	// What is done instead: port 8300 is mutual TLS 1.3 whatever these say.
	const note = "port 8300 is always mutual TLS 1.3, with certificates made from the cluster secret and join tokens; those of another authority are not used there"
	keys := make([]Key, 0, 64)
	for _, group := range []struct{ name, doc string }{
		{"internal_rpc", "of the server port"}, {"grpc", "of gRPC"},
	} {
		p := "tls." + group.name + "."
		keys = append(keys,
			Key{Name: p + "ca_file", Type: String, Doc: "The file of authorities " + group.doc + "."},
			Key{Name: p + "ca_path", Type: String, Doc: "The folder of authorities " + group.doc + "."},
			Key{Name: p + "cert_file", Type: String, Doc: "The certificate " + group.doc + "."},
			Key{Name: p + "key_file", Type: String, Doc: "The key " + group.doc + "."},
			Key{Name: p + "tls_min_version", Type: String, Default: "TLSv1_2", Doc: "The oldest version of TLS " + group.doc + "."},
			Key{Name: p + "tls_cipher_suites", Type: String, Doc: "The cipher suites " + group.doc + "."},
			Key{Name: p + "verify_incoming", Type: Bool, Default: "false", Doc: "Demand a certificate of clients " + group.doc + "."},
			Key{Name: p + "verify_outgoing", Type: Bool, Default: "false", Doc: "Check the certificate of servers " + group.doc + "."},
			Key{Name: p + "verify_server_hostname", Type: Bool, Default: "false", Doc: "Check the name in the certificate of servers " + group.doc + "."},
			Key{Name: p + "use_auto_cert", Type: Bool, Default: "false", Doc: "Use the certificate from enrolment " + group.doc + "."},
		)
	}
	for _, p := range []string{"tls.defaults.", "tls.https."} {
		keys = append(keys,
			Key{Name: p + "verify_outgoing", Type: Bool, Default: "false", Doc: "Check the certificate of servers."},
			Key{Name: p + "verify_server_hostname", Type: Bool, Default: "false", Doc: "Check the name in the certificate of servers."},
			Key{Name: p + "use_auto_cert", Type: Bool, Default: "false", Doc: "Use the certificate from enrolment."},
		)
	}
	keys = append(keys,
		Key{Name: "verify_incoming_rpc", Type: Bool, Doc: "Former name of tls.internal_rpc.verify_incoming."},
		Key{Name: "verify_outgoing", Type: Bool, Doc: "Former name of tls.defaults.verify_outgoing."},
		Key{Name: "verify_server_hostname", Type: Bool, Doc: "Former name of tls.internal_rpc.verify_server_hostname."},
		Key{Name: "auto_encrypt.tls", Type: Bool, Default: "false", Doc: "Get a certificate from the servers.", Note: joinNote},
		Key{Name: "auto_encrypt.allow_tls", Type: Bool, Default: "false", Doc: "Give certificates to agents.", Note: joinNote},
		Key{Name: "auto_encrypt.dns_san", Type: StringList, Doc: "DNS names in that certificate.", Note: joinNote},
		Key{Name: "auto_encrypt.ip_san", Type: StringList, Doc: "Addresses in that certificate.", Note: joinNote},
		Key{Name: "auto_config", Type: AnyMap, Doc: "Enrolment by a token of another system.", Note: joinNote},
	)
	for i := range keys {
		if keys[i].Type == Bool {
			keys[i].Anyway = "true" // so it is, whatever they say
		}
	}
	return with(Ignored, note, keys...)
}
