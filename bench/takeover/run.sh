#!/usr/bin/env bash
# The whole proof on three brokers of its own.   usage: run.sh JARS [FOLDER]   (JARS: see cluster.sh). Takes about 20 minutes.
# SESSION_MS: how long a silent broker counts as alive (Kafka's default 9000).
set -euo pipefail
cd "$(dirname "$0")"
jars=$1 folder=${2:-$(mktemp -d)}
cargo build --quiet
takeover=${CARGO_TARGET_DIR:-target}/debug/takeover
./cluster.sh start "$folder" "$jars"
trap './cluster.sh stop "$folder"' EXIT
for part in "quiet 20" "handoff 40" "kill 24" "rivals 24" "stop 24 --hold 40" "broker 6 --cluster $folder:$jars"; do
    read -r kind rounds flags <<<"$part"
    # shellcheck disable=SC2086
    "$takeover" drive "$kind" 0 "$rounds" --run "$kind-$(date +%s)" $flags | tee "$folder/$kind.log"
done
# Broken on purpose: each must end with NOT exactly once.
for part in "skip-named stop-short 8 --hold 40" "read-first rivals 8"; do
    read -r rule kind rounds flags <<<"$part"
    # shellcheck disable=SC2086
    if "$takeover" drive "$kind" 0 "$rounds" --run "$rule-$(date +%s)" --break "$rule" $flags >"$folder/$rule.log" 2>&1; then
        echo "rule broken ($rule), and nobody noticed" >&2
        exit 1
    fi
    grep -m1 VIOLATION "$folder/$rule.log" || { echo "rule broken ($rule): failed, but without a violation" >&2; exit 1; }
done
