#!/usr/bin/env bash
# The configurations of ops/proxies, each run by its proxy as Debian packages it, in front of the built daemon. Of each it
# must hold that a session comes through with TLS and compression, that the gateway knows where it comes from whatever the
# client says of itself, that only the client confirms and not the proxy, that heartbeats keep a silent session, that long
# messages, close codes and the end of a drain arrive, and that a client that is gone is gone at the gateway. Installs what is
# missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

# Whatever a proxy's limit on silence is, here it is this, and the gateway pings every second.
SILENCE_SECONDS=3
# Where clients come from; the proxies come from 127.0.0.1, and are trusted.
SOURCE=127.0.0.9

PATH=$PATH:/usr/sbin
missing=()
command -v nginx >/dev/null || missing+=(nginx-light)
command -v haproxy >/dev/null || missing+=(haproxy)
command -v caddy >/dev/null || missing+=(caddy)
command -v jq >/dev/null || missing+=(jq)
command -v python3 >/dev/null || missing+=(python3)
if ((${#missing[@]})); then install_packages "${missing[@]}"; fi
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
hash -r
require nginx haproxy caddy jq python3 openssl curl
find_binary

say "installing the library"
python3 -m venv "$WORK/python"
quiet "$WORK/python/bin/pip" install --disable-pip-version-check 'websockets>=15'

# nginx leaves its workers behind where it is killed; told to, it ends with them.
NGINX=
leave() {
    local code=$?
    set +e
    if [[ -n $NGINX ]]; then
        kill -TERM "$NGINX" 2>/dev/null
        wait "$NGINX" 2>/dev/null
    fi
    (exit "$code")
    finish
}
trap leave EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

say "a certificate"
quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$WORK/tls.key" -out "$WORK/tls.crt"
cat "$WORK/tls.crt" "$WORK/tls.key" >"$WORK/tls.pem"

# `gateway NAME LINES`: a daemon that trusts the proxies, always on the same ports; LINES are further ones of [http].
gateway() {
    local name=$1
    if [[ ! -e $WORK/$name.toml ]]; then
        declare -g "${name}_http=$(free_port)" "${name}_ops=$(free_port)"
        local http=${name}_http ops=${name}_ops
        cat >"$WORK/$name.toml" <<END
[http]
listen = ["127.0.0.1:${!http}"]
trusted_proxies = ["127.0.0.1"]
$2
[grpc]
listen = ["unix:$WORK/$name.sock"]
[ops]
listen = ["127.0.0.1:${!ops}"]
[heartbeat]
interval = "1s"
timeout = "20s"
[[auth.keys]]
algorithm = "HS256"
secret = "a secret that only tests know, and they alone"
[store]
path = "$WORK/$name-data"
END
    fi
    start "$name" serve --config "$WORK/$name.toml"
    declare -g "${name}_pid=$PID"
}

# `run NAME COMMAND…`: a proxy in the background, its output in $WORK/NAME.out.
run() {
    local name=$1
    shift
    "$@" >"$WORK/$name.out" 2>&1 </dev/null &
    STARTED+=("$!")
}

# `call COMMAND…`: a command of the operator, of the gateway that the proxy of the moment leads to; its answer is in $WORK/answer.
call() { "$BIN" "$@" --grpc "unix:$WORK/$GATEWAY.sock" --json >"$WORK/answer" 2>"$WORK/answer.err" || fail "$*: $(cat "$WORK/answer.err")"; }

# What is true of the answer.
is() { jq -se "$1" "$WORK/answer" >/dev/null || fail "$PROXY: not so: $1: $(cat "$WORK/answer")"; }

# `begin USER [QUERY]`: a client through the proxy; it prints into $OUT.
begin() {
    OUT=$WORK/$PROXY-$1.client
    : >"$OUT"
    "$WORK/python/bin/python" tests/proxies/client.py "$URL${2:-}" "$(user_token "$1")" "$SOURCE" "$CA" >"$OUT" 2>"$OUT.err" &
    CLIENT=$!
    STARTED+=("$CLIENT")
}

# The same, until it is let in.
come() {
    begin "$@"
    within 20 grep -q '"auth_success"' "$OUT" || fail "$PROXY: not let in: $(cat "$OUT" "$OUT.err")"
}

# What the client printed by now.
says() { jq -se "$1" "$OUT" >/dev/null 2>&1; }
said() { within 15 says "$1" || fail "$PROXY: the client did not say $1: $(cat "$OUT" "$OUT.err")"; }

gone() {
    call sessions --user "$1"
    jq -se '.[0].sessions | length == 0' "$WORK/answer" >/dev/null
}

# `through PROXY URL GATEWAY`: everything that must hold.
through() {
    PROXY=$1 URL=$2 GATEWAY=$3
    local user=$1 pid_of=${3}_pid pid
    say "$PROXY: a session, and where it comes from"
    come "$user"
    said '.[0].deflate == true'
    call sessions --user "$user"
    is '.[0].sessions | length == 1 and (.[0].remoteAddress | startswith("'"$SOURCE"'"))'

    say "$PROXY: the client confirms, the proxy does not"
    call send "$user" '"confirmed"' --wait confirmed --wait-timeout 10s
    is '.[0].outcome == "OUTCOME_CONFIRMED"'
    kill -STOP "$CLIENT"
    call send "$user" '"to one that does not move"' --wait confirmed --wait-timeout 2s
    is '.[0].outcome == "OUTCOME_STORED"'
    kill -CONT "$CLIENT"
    said 'map(select(.data == "to one that does not move")) | length == 1'
    within 10 confirmed_all "$user" || fail "$PROXY: not confirmed after all: $(cat "$WORK/answer")"

    say "$PROXY: silence for longer than its limit"
    sleep $((SILENCE_SECONDS + 2))
    call send "$user" '"after a silence"' --wait confirmed
    is '.[0].outcome == "OUTCOME_CONFIRMED" and .[0].sessions == 1'

    say "$PROXY: a long message"
    head -c 150000 /dev/urandom | base64 -w0 | jq -R . >"$WORK/long.json"
    call send "$user" --data-file "$WORK/long.json" --wait confirmed
    is '.[0].outcome == "OUTCOME_CONFIRMED"'
    said 'map(select(.long > 200000)) | length == 1'

    say "$PROXY: a client that is killed"
    come "$user-gone" '?token='
    call sessions --user "$user-gone"
    is '.[0].sessions | length == 1'
    kill -9 "$CLIENT"
    wait "$CLIENT" 2>/dev/null || true
    forget "$CLIENT"
    within 5 gone "$user-gone" || fail "$PROXY: still there: $(cat "$WORK/answer")"

    say "$PROXY: close codes"
    OUT=$WORK/$PROXY-$user.client
    call close "$user" --code 4001 --reason "enough"
    said '.[-1].closed == 4001 and .[-1].reason == "enough"'

    say "$PROXY: a restart"
    come "$user-restart"
    pid=${!pid_of}
    stop "$pid"
    said 'map(select(.type == "draining" and .reconnectAfterMs > 0)) | length == 1'
    said '.[-1].closed == 1012'
    gateway "$GATEWAY"
    within 15 back "$user-back" || fail "$PROXY: nobody comes in after the restart: $(cat "$OUT" "$OUT.err")"
    grep -q '203\.0\.113\.7' "$WORK/$GATEWAY.log" && fail "$PROXY: the forged address was believed: $(cat "$WORK/$GATEWAY.log")"
    if grep -q 'eyJ' "$WORK/$PROXY.out"; then fail "$PROXY logs tokens: $(cat "$WORK/$PROXY.out")"; fi
}

confirmed_all() {
    call pending "$1"
    jq -se '.[0].notifications | length == 0' "$WORK/answer" >/dev/null
}

# A proxy may need a moment to see that the gateway is back.
back() {
    begin "$1"
    within 2 grep -q '"auth_success"' "$OUT"
}

answers() { curl -so "$WORK/head" --cacert "$WORK/tls.crt" "$1"; }

CA=$WORK/tls.crt
gateway one ''
gateway two 'proxy_protocol = true
[http.tls]
certificate_file = "'"$WORK"'/tls.crt"
key_file = "'"$WORK"'/tls.key"'

say "nginx"
port=$(free_port)
sed -e "s|listen 443 ssl;|listen 127.0.0.1:$port ssl;|" -e "s|server 127.0.0.1:7000;|server 127.0.0.1:$one_http;|" \
    -e "s|/etc/nginx/push.example.com|$WORK/tls|" -e "s|/var/log/nginx/access.log|/dev/stdout|" -e "s|75s|${SILENCE_SECONDS}s|" \
    -e 's|worker_connections 131072|worker_connections 1024|' ops/proxies/nginx.conf >"$WORK/nginx.conf"
run nginx nginx -c "$WORK/nginx.conf" -g "daemon off; pid $WORK/nginx.pid; error_log stderr notice;"
NGINX=$!
within 10 answers "https://localhost:$port/" || fail "nginx: $(cat "$WORK/nginx.out")"
through nginx "wss://localhost:$port/ws" one

say "HAProxy"
port=$(free_port) passed=$(free_port)
sed -e "s|bind :443 |bind 127.0.0.1:$port |" -e "s|bind :8443|bind 127.0.0.1:$passed|" -e "s|/etc/haproxy/push.example.com|$WORK/tls|" \
    -e "s|127.0.0.1:7000|127.0.0.1:$one_http|" -e "s|127.0.0.1:7010|127.0.0.1:$two_http|" -e "s|75s|${SILENCE_SECONDS}s|" \
    -e "s|check port 7002|check port $one_ops|" -e "s|check port 7012|check port $two_ops|" \
    -e 's|maxconn 100000|maxconn 1000|' ops/proxies/haproxy.cfg >"$WORK/haproxy.cfg"
haproxy -c -f "$WORK/haproxy.cfg" >"$WORK/haproxy.check" 2>&1 || fail "$(cat "$WORK/haproxy.check")"
if grep -qi 'warning' "$WORK/haproxy.check"; then fail "haproxy: $(cat "$WORK/haproxy.check")"; fi
run haproxy haproxy -db -f "$WORK/haproxy.cfg"
within 10 answers "https://localhost:$port/" || fail "HAProxy: $(cat "$WORK/haproxy.out")"
through haproxy "wss://localhost:$port/ws" one
cp "$WORK/haproxy.out" "$WORK/haproxy-tcp.out"
through haproxy-tcp "wss://localhost:$passed/ws" two

say "Caddy"
port=$(free_port)
sed -e "s|^push.example.com {|{\n\tadmin off\n\tauto_https off\n}\nhttps://localhost:$port {\n\tbind 127.0.0.1\n\ttls $WORK/tls.crt $WORK/tls.key|" \
    -e "s|127.0.0.1:7000|127.0.0.1:$one_http|" ops/proxies/Caddyfile >"$WORK/Caddyfile"
run caddy env HOME="$WORK" XDG_DATA_HOME="$WORK" XDG_CONFIG_HOME="$WORK" caddy run --adapter caddyfile --config "$WORK/Caddyfile"
within 10 answers "https://localhost:$port/" || fail "Caddy: $(cat "$WORK/caddy.out")"
through caddy "wss://localhost:$port/ws" one

say "all held"
