#!/usr/bin/env bash
# `make soak`: every fuzz target in turn, a cluster under load whose memory,
# goroutines, descriptors and files must not grow, and the fault tests again and
# again, for SOAK (default an hour) in all. Whatever fails ends it.
set -euo pipefail
cd "$(dirname "$0")/../.."
total=${SOAK:-60m}
case $total in *h) s=$((${total%h} * 3600)) ;; *m) s=$((${total%m} * 60)) ;; *) s=${total%s} ;; esac
mapfile -t targets < <(grep -rl --include='*_test.go' '^func Fuzz' . | sort)
list=()
for f in "${targets[@]}"; do
  while read -r name; do list+=("$(dirname "$f") $name"); done < <(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$f")
done
each=$((s / 4 / ${#list[@]}))
((each >= 5)) || each=5
for t in "${list[@]}"; do
  read -r dir name <<<"$t"
  echo "== $dir $name for ${each} s"
  go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "${each}s"
done
echo "== virtual time"
WEFT_SEEDS=$((s / 20)) go test -timeout "${s}s" -count 1 -run '^TestP03VirtualTime$' ./server/consensus
echo "== a cluster under load"
WEFT_PROMISE=full WEFT_SOAK="$((s / 2))s" go test -tags faults -timeout "$((s + 600))s" -count 1 -v -run '^TestP33' ./cmd/meshtest/faults
end=$((SECONDS + s / 4))
while ((SECONDS < end)); do
  WEFT_SEED=$RANDOM go test -tags faults -timeout 25m -count 1 ./cmd/meshtest/faults
done
