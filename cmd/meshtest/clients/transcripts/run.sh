#!/usr/bin/env bash
# A client that CI does not run, against the built binary: starts an agent, runs
# the client's script beside this one, and writes what happened, with the date and
# the command, into results/clients/. `run.sh python-consul2` needs Debian's package
# python3-consul2; `run.sh patroni` needs patroni, python3-consul2 and postgresql, and root;
# `run.sh fabio` builds fabio from its module, which needs the Internet, or takes $FABIO.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../../.."
client=${1:?usage: run.sh python-consul2|patroni|fabio}
binary=${WEFT_BINARY:-$PWD/bin/weft}
[ -x "$binary" ] || { echo "no binary at $binary: make build" >&2; exit 1; }
free() { /usr/bin/python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
dir=$(mktemp -d)
chmod 755 "$dir"
http=$(free) dns=$(free) gossip=$(free) server=$(free)
"$binary" agent -server -bootstrap-expect=1 -bind 127.0.0.1 -data-dir "$dir/data" -node host1 -dns-port "$dns" -http-port "$http" \
  -hcl "ports { serf_lan = $gossip, server = $server }" >"$dir/agent.log" 2>&1 &
agent=$!
trap 'kill $agent 2>/dev/null || true; wait $agent 2>/dev/null || true; rm -rf "$dir"' EXIT
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$http/v1/catalog/nodes" | grep -q host1 && break; sleep 0.1; done
mkdir -p results/clients
out=results/clients/$client.txt
export WEFT="$binary" HTTP_PORT="$http" DNS_PORT="$dns" WORK="$dir"
fabio=v1.6.3
status=0
{
  echo "client:   $client"
  echo "command:  make build && cmd/meshtest/clients/transcripts/run.sh $client"
  echo "date:     $(date -u +'%Y-%m-%d %H:%M UTC')"
  echo "commit:   $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  echo "machine:  $(. /etc/os-release && echo "$PRETTY_NAME"), $(nproc) CPUs"
  echo
  case $client in
    python-consul2) dpkg-query -W -f='${Package} ${Version}\n\n' python3-consul2; /usr/bin/python3 "$here/python-consul2.py" ;;
    patroni) dpkg-query -W -f='${Package} ${Version}\n' patroni python3-consul2 postgresql-15; echo; "$here/patroni.sh" ;;
    fabio)
      if [ -z "${FABIO:-}" ]; then
        (cd "$dir" && go mod init fabio && go mod edit -require "github.com/fabiolb/fabio@$fabio" && go build -mod=mod -o fabio.bin github.com/fabiolb/fabio) 2>"$dir/build.log"
        FABIO=$dir/fabio.bin
      fi
      echo "fabio $fabio"; FABIO=$FABIO "$here/fabio.sh"
      ;;
    *) echo "no such client: $client" >&2; false ;;
  esac
} 2>&1 | tee "$out.new" || status=$?
grep -E 'level=(ERROR|WARN)' "$dir/agent.log" | sed 's/^/agent: /' >>"$out.new" || true
mv "$out.new" "$out"
exit "$status"
