#!/usr/bin/env bash
# The chat of examples/chat: the built daemon with the example's own configuration (ports aside) and the Python service
# behind it, played by two people of Python's `websockets`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v python3 >/dev/null || install_packages python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
require python3
find_binary

# The services' event streams are open.
listening() {
    "$BIN" status --grpc "$GRPC" --json | python3 -c \
        'import json, sys; sys.exit(json.load(sys.stdin)["eventStreams"]["open"] < 2)'
}

say "installing the libraries"
python3 -m venv "$WORK/python"
quiet "$WORK/python/bin/pip" install --disable-pip-version-check 'websockets>=14' grpcio grpcio-tools

PUSHGATE_HTTP__LISTEN='["127.0.0.1:0"]' PUSHGATE_GRPC__LISTEN='["127.0.0.1:0"]' PUSHGATE_OPS__LISTEN='["127.0.0.1:0"]' \
    PUSHGATE_STORE__PATH="$WORK/data" PUSHGATE_CLIENTS__FORWARD='["chat.roll", "order.status"]' \
    start gateway serve --config "$PWD/examples/chat/pushgate.toml"
"$WORK/python/bin/python" examples/chat/service.py --grpc "$GRPC" --url "ws://$HTTP/ws" --listen 127.0.0.1:0 \
    >"$WORK/service.out" 2>"$WORK/service.err" &
STARTED+=("$!")
"$WORK/python/bin/python" examples/service.py "$GRPC" >"$WORK/orders.out" 2>&1 &
STARTED+=("$!")
within 30 grep -q 'the chat is at' "$WORK/service.out" || fail "no service: $(cat "$WORK/service.err")"
PAGE=$(sed -n 's|^the chat is at \(.*\)/$|\1|p' "$WORK/service.out")
within 30 listening || fail "the services do not listen to events: $(cat "$WORK/service.err" "$WORK/orders.out")"

say "two people"
"$WORK/python/bin/python" tests/clients/chat.py "$PAGE" || fail "the chat went wrong: $(cat "$WORK/service.err")"
