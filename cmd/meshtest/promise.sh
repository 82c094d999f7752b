#!/usr/bin/env bash
# `make promise P=7`: the tests that hold promise 7 (their names begin with
# TestP07), with their full counts, and what they say into results/P07.txt, with
# the date, the machine and the command. It needs root where the promise does.
# `make promise P=20 T=ChurnOfAgents`: one test of those, into
# results/P20-ChurnOfAgents.txt. Data directories are in $TMPDIR: TMPDIR=/dev/shm
# shows what is left when the disk takes no time.
set -euo pipefail
cd "$(dirname "$0")/../.."
[[ ${1:-} =~ ^[0-9]+$ ]] || { echo "usage: make promise P=7" >&2; exit 2; }
name=$(printf 'P%02d' "$((10#$1))")
one=${2:-}
[[ $one =~ ^[A-Za-z0-9]*$ ]] || { echo "usage: make promise P=20 T=ChurnOfAgents" >&2; exit 2; }
mapfile -t dirs < <(grep -rlE --include='*_test.go' "^func Test$name${one:-[^0-9]}" . | xargs -r -n1 dirname | sort -u)
((${#dirs[@]})) || { echo "no test holds promise $name: none begins with Test$name$one" >&2; exit 1; }
tags=faults,clients
run=(go test -tags "$tags" -count 1 -timeout "${TIMEOUT:-6h}" -v -run "^Test$name${one:-[^0-9]}" "${dirs[@]}")
mkdir -p results
out=results/$name${one:+-$one}.txt
{
  echo "promise:  $name"
  echo "command:  make promise P=$((10#$1))${one:+ T=$one}"
  echo "date:     $(date -u +'%Y-%m-%d %H:%M UTC')"
  echo "commit:   $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD -- . ':!results' 2>/dev/null || echo ', with changes')"
  echo "machine:  $(nproc) × $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(awk '/^MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo), $(uname -sr), $(go version | cut -d' ' -f3)"
  echo "disk:     $(stat -f -c %T "${TMPDIR:-/tmp}") at ${TMPDIR:-/tmp}"
  echo "load:     $(cut -d' ' -f1-3 /proc/loadavg) at the start"
  echo
} > "$out.new"
status=0
# Of ten thousand seeds that pass nobody wants a line each.
WEFT_PROMISE=full "${run[@]}" 2>&1 | grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME)| +--- PASS: .*/seed=)' | tee -a "$out.new" || status=$?
mv "$out.new" "$out"
echo "written to $out" >&2
exit "$status"
