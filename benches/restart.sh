#!/usr/bin/env bash
# A restart of the gateway under as many sessions as one process may hold: `benches/restart.sh [SESSIONS]`, 18000 where
# nothing is said. Gateway and clients are processes of their own, on loopback; PUSHGATE_BIN is the binary, else the release
# build. Takes about 90 s after the build. What is printed is what BENCHMARKS.md quotes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/support/gateway.sh
source tests/support/gateway.sh

if [[ -z ${PUSHGATE_BIN:-} ]]; then
    cargo build --release --locked --bin pushgate
    PUSHGATE_BIN=${CARGO_TARGET_DIR:-target}/release/pushgate
fi
find_binary

# What the gateway keeps for itself of its descriptors, and for those that it refuses (README, `limits.connections`), is less
# than a tenth of them.
sessions=${1:-18000}
ulimit -n "$(ulimit -Hn)"
descriptors=$(ulimit -n)
room=$((descriptors * (descriptors < 16384 ? 4 : 9) / 10))
if ((sessions > room)); then
    say "$(ulimit -n) descriptors: $room sessions instead of $sessions"
    sessions=$room
fi

cat >"$WORK/pushgate.toml" <<END
[http]
listen = ["127.0.0.1:0"]
[grpc]
listen = ["unix:$WORK/admin.sock"]
[ops]
listen = ["127.0.0.1:0"]
[[auth.keys]]
algorithm = "HS256"
secret = "a secret that only tests know, and they alone"
[store]
path = "$WORK/data"
[log]
filter = "warn,pushgate::server=info"
END

start gateway serve --config pushgate.toml
said=$WORK/stress.err
timeout 300 "$BIN" stress --config "$WORK/pushgate.toml" --url "ws://$HTTP/ws" --test-type restart \
    --connections "$sessions" --max-concurrent 500 --duration 30s --rate 2000 --callers 4 --patience 90s >"$WORK/stress.out" 2>"$said" &
stress=$!
STARTED+=("$stress")
is_due() { grep -q 'restart the gateway now' "$said" || ! kill -0 "$stress" 2>/dev/null; }
within 120 is_due || fail "the sessions are not there: $(cat "$said")"
kill -0 "$stress" 2>/dev/null || fail "$(cat "$said")"
began=$EPOCHREALTIME
since() { awk -v from="$began" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", to - from }'; }
stop "$PID"
say "the gateway had ended after $(since)"
start again serve --config pushgate.toml --http-listen "$HTTP"
say "and was there again after $(since)"
code=0
wait "$stress" || code=$?
forget "$stress"
cat "$WORK/stress.out" "$said"
stop "$PID"
((code == 0)) || fail "pushgate stress exits with $code"
