#!/usr/bin/env bash
# Two PostgreSQL servers under Patroni, which keeps its leader lock in a session and
# its members in keys, and registers its servers as a service: one becomes leader, it
# is killed, the other takes over, names follow; then a planned switchover back.
set -euo pipefail
cd "$WORK"
free() { /usr/bin/python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
as() { runuser -u postgres -- "$@"; }
say() { printf '\n== %s\n' "$*"; }
declare -A pg rest pid
for n in a b; do
  pg[$n]=$(free) rest[$n]=$(free)
  install -d -o postgres -m 700 "$n"
  cat >"$n.yml" <<Y
scope: demo
name: $n
restapi: {listen: "127.0.0.1:${rest[$n]}", connect_address: "127.0.0.1:${rest[$n]}"}
consul: {host: "127.0.0.1:$HTTP_PORT", register_service: true, service_check_interval: 1s}
bootstrap:
  dcs: {ttl: 20, loop_wait: 1, retry_timeout: 3}
  initdb: [{encoding: UTF8}, data-checksums]
  pg_hba: ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
postgresql:
  listen: "127.0.0.1:${pg[$n]}"
  connect_address: "127.0.0.1:${pg[$n]}"
  data_dir: $WORK/$n/data
  bin_dir: $(ls -d /usr/lib/postgresql/*/bin | tail -1)
  pgpass: $WORK/$n/pgpass
  authentication: {superuser: {username: postgres, password: x}, replication: {username: rep, password: x}}
  parameters: {unix_socket_directories: $WORK/$n, shared_buffers: 16MB}
Y
  chmod 644 "$n.yml"
done
run() { (cd "$1" && exec setsid runuser -u postgres -- /usr/bin/patroni "../$1.yml") >"$1.log" 2>&1 & pid[$1]=$!; disown; }
stop_all() {
  for n in a b; do
    [ -n "${pid[$n]:-}" ] && kill -TERM -- "-${pid[$n]}" 2>/dev/null || true
    # PostgreSQL runs in a session of its own; its first line of postmaster.pid names it.
    [ -f "$n/data/postmaster.pid" ] && kill -QUIT "$(head -1 "$n/data/postmaster.pid")" 2>/dev/null || true
  done
}
trap stop_all EXIT
until_() { # seconds, what, command...
  local end=$((SECONDS + $1)) what=$2 begin=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "FAIL $what"; tail -n 30 ./*.log; return 1; }
    sleep 0.2
  done
  echo "ok   $what, after about $((SECONDS - begin)) s"
}
leader() { curl -sf "http://127.0.0.1:$HTTP_PORT/v1/kv/service/demo/leader?raw"; }
name() { dig @127.0.0.1 -p "$DNS_PORT" +short +nocookie "$1.demo.service.consul" SRV | awk '{print $3}'; }
leads() { [ "$(leader)" = "$1" ]; }
named() { [ "$(name "$1")" = "$2" ]; }
sql() { as psql -h 127.0.0.1 -p "$1" -U postgres -Atqc "$2"; }
replicated() { [ "$(sql "$1" 'select count(*) from t')" = "$2" ]; }
streaming() { [ "$(sql "$1" 'select count(*) from pg_stat_replication')" = 1 ]; }
# Its own tool's view, without the port numbers of this run.
show() { patronictl -c a.yml list 2>/dev/null | sed -E 's/:[0-9]{4,5}/:port/'; }

say "patroni a starts alone: it bootstraps and takes the leader lock"
run a
until_ 60 "a holds the lock" leads a
until_ 30 "master.demo.service.consul is a" named master "${pg[a]}"
echo "the key:     $(curl -s "http://127.0.0.1:$HTTP_PORT/v1/kv/service/demo/leader" | sed -E 's/"Session":"[^"]*"/"Session":"…"/')"
echo "the session: $(curl -s "http://127.0.0.1:$HTTP_PORT/v1/session/list" | sed -E 's/"(ID|Node)":"[^"]*"/"\1":"…"/g')"
sql "${pg[a]}" "create table t (n int); insert into t values (1)"

say "patroni b joins and streams from a"
run b
until_ 60 "b replicates" replicated "${pg[b]}" 1
until_ 30 "replica.demo.service.consul is b" named replica "${pg[b]}"
until_ 30 "a sees one standby" streaming "${pg[a]}"
show

say "a is killed, Patroni and PostgreSQL: its session ends by its TTL, b takes the lock"
killed=$SECONDS
kill -KILL -- "-${pid[a]}"
kill -KILL "$(head -1 a/data/postmaster.pid)"
until_ 60 "b holds the lock" leads b
until_ 30 "master.demo.service.consul is b" named master "${pg[b]}"
until_ 30 "b takes writes" sql "${pg[b]}" "insert into t values (2)"
echo "from the kill to a write on b: $((SECONDS - killed)) s (TTL 10 s, which Consul's sessions may exceed twofold)"

say "a comes back as a standby"
run a
until_ 60 "a has what b wrote" replicated "${pg[a]}" 2
until_ 60 "replica.demo.service.consul is a" named replica "${pg[a]}"
until_ 30 "b sees one standby" streaming "${pg[b]}"
show

say "a planned switchover back to a"
until_ 30 "patronictl switchover" patronictl -c a.yml switchover --master b --candidate a --force demo
until_ 60 "a holds the lock" leads a
until_ 30 "master.demo.service.consul is a" named master "${pg[a]}"
until_ 30 "a takes writes" sql "${pg[a]}" "insert into t values (3)"
until_ 60 "b follows" replicated "${pg[b]}" "$(sql "${pg[a]}" 'select count(*) from t')"
show
say "every step holds"
