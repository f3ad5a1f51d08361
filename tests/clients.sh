#!/usr/bin/env bash
# Clients that this project did not write, against the built daemon: Python's `websockets` and Node's `ws`, with tokens by
# PyJWT and `jsonwebtoken`, receive what the real grpcurl sends. Installs what is missing, the libraries into a folder
# that goes with the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v jq >/dev/null || install_packages jq
command -v python3 >/dev/null || install_packages python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
command -v npm >/dev/null || install_packages nodejs npm
find_grpcurl
require jq python3 node npm
find_binary

say "installing the libraries"
python3 -m venv "$WORK/python"
quiet "$WORK/python/bin/pip" install --disable-pip-version-check 'websockets>=14' PyJWT
mkdir "$WORK/node"
cp tests/clients/client.mjs "$WORK/node/"
quiet npm install --prefix "$WORK/node" --no-audit --no-fund ws jsonwebtoken
PYTHON=("$WORK/python/bin/python" tests/clients/client.py)
NODE=(node "$WORK/node/client.mjs")

cat >"$WORK/pushgate.toml" <<END
[http]
listen = ["127.0.0.1:0"]
[grpc]
listen = ["127.0.0.1:0"]
insecure = true
[ops]
listen = ["127.0.0.1:0"]
[[auth.keys]]
algorithm = "HS256"
secret = "a secret that only tests know, and only they"
[store]
path = "$WORK/data"
END
start gateway serve --config "$WORK/pushgate.toml"

# `connect QUERY USER FLAGS…`: a client in the background; what it prints is in $OUT.
connect() {
    local query=$1
    shift
    OUT=$(mktemp "$WORK/client.XXXXXX")
    "${CLIENT[@]}" "ws://$HTTP/ws$query" "$@" >"$OUT" 2>"$OUT.err" &
    CLIENT_PID=$!
    STARTED+=("$CLIENT_PID")
}

# The same, once it is let in.
connected() {
    connect "$@"
    within 20 grep -q '"auth_success"' "$OUT" || fail "not let in: $(cat "$OUT" "$OUT.err")"
}

# The client has said goodbye.
left() {
    wait "$CLIENT_PID" || fail "the client failed: $(cat "$OUT" "$OUT.err")"
    forget "$CLIENT_PID"
}

# What the client printed, all of it, is so.
is() { jq -se "$1" "$OUT" >/dev/null || fail "not so: $1: $(cat "$OUT")"; }

# `send USER PAYLOAD`: with grpcurl; the answer must be STORED.
send() {
    grpcurl -plaintext -max-time 20 -d '{"user_id":"'"$1"'","notification":{'"$2"'}}' "$GRPC" \
        pushgate.v1.Gateway/SendToUser >"$WORK/answer" 2>&1 || fail "$(cat "$WORK/answer")"
    jq -e '.outcome == "OUTCOME_STORED"' "$WORK/answer" >/dev/null || fail "$(cat "$WORK/answer")"
}

NOTIFICATIONS='map(select(.type == "notification"))'

every_way_in() {
    local way
    say "$1: a token in each of its places"
    for way in header protocol query message; do
        connected '' "$1-$way" --way "$way"
        send "$1-$way" '"data":{"way":"'"$way"'"}'
        jq -e '.sessions == 1' "$WORK/answer" >/dev/null || fail "it was not handed out: $(cat "$WORK/answer")"
        left
        is '.[0].type == "auth_success" and .[0].userId == "'"$1-$way"'"'
        is "$NOTIFICATIONS | length == 1 and .[0].data.way == \"$way\" and .[0].replayed == null"
        is '.[-1].closed == 1000'
    done
    say "$1: a token that is not good"
    for way in header protocol query message; do
        connect '' "$1-$way" --way "$way" --token wrong
        left
        is '.[0].type == "auth_failure" and .[0].code == "token_invalid" and .[-1].closed == 4401'
    done
    connect '' "$1-header" --token expired
    left
    is '.[0].code == "token_expired" and .[-1].closed == 4401'
}

absent_and_back() {
    local user=$1-away i
    say "$1: what was sent while nobody was there"
    for i in 1 2 3; do send "$user" '"data":'"$i"; done
    connected '?device=phone' "$user" --take 3
    left
    is '.[0].pending == 3'
    is "$NOTIFICATIONS | map(.data) == [1, 2, 3] and all(.replayed) and (map(.offset) == (map(.offset) | sort))"
    local epoch
    epoch=$(jq -r 'select(.storeEpoch) | .storeEpoch' "$OUT")

    say "$1: and with kill -9 in between"
    for i in 4 5; do send "$user" '"data":'"$i"; done
    # Somebody is connected when it happens.
    connected '?device=desk' "$user" --take 9
    crash "$PID"
    left
    is '.[-1].closed == 1006'
    start "after-$1" serve --config "$WORK/pushgate.toml"
    send "$user" '"data":6'
    connected '?device=phone' "$user" --take 3
    left
    is "$NOTIFICATIONS | map(.data) == [4, 5, 6] and (map(.offset) == (map(.offset) | sort))"
    is ".[0].storeEpoch == \"$epoch\" and .[0].gap == false"
    connected '?device=phone' "$user" --take 0
    left
    is '.[0].pending == 0'
}

bytes() {
    local user=$1-bytes
    say "$1: bytes, as such and in base64"
    connected '?device=one&binary=1' "$user"
    local out=$OUT pid=$CLIENT_PID
    connected '?device=other' "$user"
    send "$user" '"binary":"AAEC/w=="'
    left
    is "$NOTIFICATIONS | .[0].dataBase64 == \"AAEC/w==\" and .[0].payloadBase64 == null"
    OUT=$out CLIENT_PID=$pid
    left
    is "$NOTIFICATIONS | .[0].payloadBase64 == \"AAEC/w==\" and .[0].dataBase64 == null and .[0].offset > 0"
}

compressed() {
    local user=$1-compressed data
    say "$1: permessage-deflate, both ways, as the library offers it"
    data=$(jq -nc '[range(400) | {orderId: (. * 7919 % 1000), status: "shipped"}]')
    # Once from the store and once at once.
    send "$user" '"data":'"$data"
    connected '' "$user" --take 2
    send "$user" '"data":'"$data"
    left
    is "$NOTIFICATIONS | map(.data) == [$data, $data]"
    is 'any(.type == "echo_response") and .[-1].deflate and .[-1].closed == 1000'
}

acks() {
    local user=$1-acks
    say "$1: confirmed by the client's own acks, and only by them"
    send "$user" '"data":"first"'
    connected '?ackMode=client' "$user"
    left
    is '.[0].ackMode == "client"'
    send "$user" '"data":"second"'
    connected '?ackMode=client' "$user" --take 2 --ack
    left
    is "$NOTIFICATIONS | map(.data) == [\"first\", \"second\"] and .[0].replayed"
    connected '?ackMode=client' "$user" --take 0
    left
    is '.[0].pending == 0'
}

for language in python node; do
    if [[ $language == python ]]; then CLIENT=("${PYTHON[@]}"); else CLIENT=("${NODE[@]}"); fi
    every_way_in "$language"
    absent_and_back "$language"
    bytes "$language"
    acks "$language"
    compressed "$language"
done

stop "$PID"
if grep -h '"level":"ERROR"' "$WORK"/*.log; then fail "the daemon complains"; fi
if grep -qhE 'eyJ[A-Za-z0-9_-]+\.' "$WORK"/*.log; then fail "a token is in the log"; fi
say "clients: passed"
