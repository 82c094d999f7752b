#!/usr/bin/env bash
# fabio, a router that takes its routes from the catalog: two instances of a service
# come, fail and go; it balances over those that pass. FABIO names its binary.
set -euo pipefail
free() { /usr/bin/python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
say() { printf '\n== %s\n' "$1"; }
api() { curl -sf -X "$1" "http://127.0.0.1:$HTTP_PORT$2" ${3:+-d "$3"}; }
proxy=$(free) ui=$(free) a=$(free) b=$(free)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for i in a b; do
  mkdir -p "$WORK/www/$i/shop" && echo "instance $i" >"$WORK/www/$i/shop/index.html"
  (cd "$WORK/www/$i" && exec /usr/bin/python3 -m http.server "${!i}" --bind 127.0.0.1 >/dev/null 2>&1) &
  pids+=($!)
done
# ask prints what n requests are answered with, each answer once.
ask() { for _ in $(seq "$1"); do curl -s -o - -w '%{http_code}\n' "http://127.0.0.1:$proxy/shop/"; done | sort -u | paste -sd' '; }
# until waits for the answers to be just these.
until_is() {
  local got
  for _ in $(seq 100); do
    got=$(ask 8)
    [ "$got" = "$1" ] && { echo "http://fabio/shop/ answers: $got"; return; }
    sleep 0.1
  done
  echo "http://fabio/shop/ answers: $got; want: $1" >&2
  exit 1
}

say "fabio starts, with the agent's HTTP API as its only registry"
"$FABIO" -registry.consul.addr "127.0.0.1:$HTTP_PORT" -registry.consul.register.addr "127.0.0.1:$ui" \
  -proxy.addr "127.0.0.1:$proxy" -ui.addr "127.0.0.1:$ui" >"$WORK/fabio.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do curl -s -o /dev/null "http://127.0.0.1:$proxy/" && break; sleep 0.1; done
until_is "404"
for _ in $(seq 100); do api GET /v1/health/service/fabio?passing | grep -q '"fabio"' && break; sleep 0.1; done
echo "it registered itself: $(api GET /v1/health/service/fabio?passing | /usr/bin/python3 -c 'import json,sys; print([(s["Service"]["Service"], s["Checks"][-1]["Status"]) for s in json.load(sys.stdin)])')"

say "an instance of shop is registered with the tag urlprefix-/shop, and passes"
for i in a b; do
  body='{"ID":"shop-'$i'","Name":"shop","Address":"127.0.0.1","Port":'${!i}',"Tags":["urlprefix-/shop"],"Check":{"CheckID":"shop-'$i'","TTL":"1h","Status":"passing"}}'
  [ "$i" = a ] && { api PUT /v1/agent/service/register "$body"; until_is "200 instance a"; say "a second one"; continue; }
  api PUT /v1/agent/service/register "$body"
done
until_is "200 instance a instance b"
say "the check of the first fails"
api PUT /v1/agent/check/fail/shop-a
until_is "200 instance b"
say "and passes again"
api PUT /v1/agent/check/pass/shop-a
until_is "200 instance a instance b"
say "the second is put into maintenance"
api PUT "/v1/agent/service/maintenance/shop-b?enable=true"
until_is "200 instance a"
say "a route is added by hand, in the key that fabio watches"
api PUT /v1/kv/fabio/config "route add other /other http://127.0.0.1:$a/shop/" >/dev/null
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$ui/api/routes" | grep -q '"/other"' && break; sleep 0.1; done
curl -sf "http://127.0.0.1:$ui/api/routes" | /usr/bin/python3 -c 'import json,sys; [print(r["service"], r["path"]) for r in json.load(sys.stdin)]' | sort
say "all instances go"
api PUT /v1/agent/service/deregister/shop-a
api PUT /v1/agent/service/deregister/shop-b
until_is "404"
say "fabio ends, and takes itself out of the catalog"
kill -TERM "${pids[-1]}"
for _ in $(seq 150); do api GET /v1/catalog/service/fabio | grep -q '"fabio"' || break; sleep 0.1; done
echo "instances of fabio in the catalog: $(api GET /v1/catalog/service/fabio)"
