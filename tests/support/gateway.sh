# What the scripts beside it share: to be sourced. A folder for the run, the built binary, daemons that end with the
# script, and what is missing installed. Everything listens on loopback, on ports that the kernel chose.
# shellcheck shell=bash disable=SC2034

# The folder that goes with the script.
WORK=$(mktemp -d)
# The ids of processes that this script started.
STARTED=()

finish() {
    local code=$?
    local pid
    let_services_start
    for pid in "${STARTED[@]}"; do
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    # A browser's children may write for a moment longer; what the script found is what counts.
    rm -rf "$WORK" 2>/dev/null || { sleep 1; rm -rf "$WORK" || true; }
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf -- '-- %s\n' "$*"; }

# What the summary of .ci/run is to say as well, such as what could not be tried.
note() {
    say "$*"
    printf '%s\n' "$*" >>"${CI_NOTES:-/dev/null}"
}

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

# Runs a command whose output matters only where it fails.
quiet() {
    "$@" >"$WORK/quiet" 2>&1 || fail "$*: $(cat "$WORK/quiet")"
}

require() {
    local name
    for name in "$@"; do
        command -v "$name" >/dev/null || fail "$name is needed and cannot be had"
    done
}

as_root() { if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi; }

# On a machine with systemd, packages start their services (nginx on port 80) unless policy-rc.d forbids it, by exit code 101
# (invoke-rc.d(8)). One that the machine has is left alone.
POLICY=/usr/sbin/policy-rc.d
POLICY_MADE=
let_no_service_start() {
    if [[ -e $POLICY || -L $POLICY ]]; then return; fi
    POLICY_MADE=1
    printf '#!/bin/sh\nexit 101\n' >"$WORK/policy-rc.d"
    quiet as_root install -m 0755 "$WORK/policy-rc.d" "$POLICY"
}

let_services_start() {
    if [[ -n $POLICY_MADE ]]; then as_root rm -f "$POLICY" || true; fi
    POLICY_MADE=
}

# Installs packages of the distribution.
install_packages() {
    command -v apt-get >/dev/null || fail "$* is missing, and there is no apt-get to install it with"
    say "installing $*"
    quiet as_root apt-get update
    let_no_service_start
    quiet as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    let_services_start
}

# `configure GRPC AUTH`: a configuration for the script's daemon, $WORK/pushgate.toml: ports of the kernel's choosing, callers
# with tokens, a store in $WORK/data with small mailboxes. GRPC and AUTH are further lines of these sections.
configure() {
    cat >"$WORK/pushgate.toml" <<END
[http]
listen = ["127.0.0.1:0"]
[grpc]
$1
[[grpc.tokens]]
name = "everything"
token = "opens-everything"
scopes = ["admin"]
[[grpc.tokens]]
name = "sender"
token = "only-sends"
scopes = ["send"]
[[grpc.tokens]]
name = "reader"
token = "only-reads"
scopes = ["read"]
[ops]
listen = ["127.0.0.1:0"]
[auth]
$2
[[auth.keys]]
algorithm = "HS256"
secret = "a secret that only tests know, and they alone"
[store]
path = "$WORK/data"
max_pending_per_user = 3
END
}

# Runs a command again and again until it succeeds: `within SECONDS COMMAND…`.
within() {
    local seconds=$1 i
    shift
    for ((i = 0; i < seconds * 10; i++)); do
        if "$@"; then return 0; fi
        sleep 0.1
    done
    return 1
}

# BIN: PUSHGATE_BIN, else the built one.
find_binary() {
    if [[ -z ${PUSHGATE_BIN:-} ]]; then
        say "building"
        cargo build --locked --bin pushgate
        PUSHGATE_BIN=${CARGO_TARGET_DIR:-target}/debug/pushgate
    fi
    BIN=$(realpath "$PUSHGATE_BIN")
    [[ -x $BIN ]] || fail "$BIN is not there"
}

# The real grpcurl, built where it is missing, and kept between runs outside the clone.
find_grpcurl() {
    local tools=${XDG_CACHE_HOME:-$HOME/.cache}/pushgate-tools
    export PATH=$PATH:$tools/bin
    if ! command -v grpcurl >/dev/null; then
        say "installing grpcurl, to be kept in $tools"
        mkdir -p "$tools/bin"
        # A Go that is too old for it, or finds no proxy, is not the last word.
        if ! command -v go >/dev/null ||
            ! env GOBIN="$tools/bin" go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.1 >"$WORK/quiet" 2>&1; then
            quiet env CARGO_TARGET_DIR="$WORK/grpcurl" cargo install --locked --root "$tools" grpcurl-rs
            rm -rf "$WORK/grpcurl"
        fi
        hash -r
    fi
    require grpcurl
}

# Starts a daemon: `start NAME ARGUMENTS…`. PID, HTTP, GRPC and OPS say where it is; its log is $WORK/NAME.log, what it
# prints $WORK/NAME.out.
start() {
    local name=$1
    shift
    : >"$WORK/$name.log"
    (cd "$WORK" && exec env -u RUST_LOG "${TRACE[@]}" "$BIN" "$@" --log-format json) >"$WORK/$name.out" 2>"$WORK/$name.log" </dev/null &
    PID=$!
    STARTED+=("$PID")
    within 30 is_up "$name" || fail "$name is not ready: $(cat "$WORK/$name.log")"
    HTTP=$(address "$name" http)
    GRPC=$(address "$name" grpc)
    OPS=$(address "$name" ops)
}
TRACE=()

is_up() {
    kill -0 "$PID" 2>/dev/null || fail "$1 ended: $(cat "$WORK/$1.log")"
    grep -q '"message":"ready"' "$WORK/$1.log"
}

# The first address of a name on TCP.
address() {
    sed -n 's/.*"message":"listening","name":"'"$2"'","address":"\([^"u][^"]*\)".*/\1/p' "$WORK/$1.log" | head -n 1
}

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

# A token for a user, for an hour, signed with `a secret that only tests know, and they alone`. Needs openssl.
user_token() {
    local head body
    head=$(printf '{"alg":"HS256","typ":"JWT"}' | base64url)
    body=$(printf '{"sub":"%s","exp":%d}' "$1" $(($(date +%s) + 3600)) | base64url)
    printf '%s.%s.' "$head" "$body"
    printf '%s.%s' "$head" "$body" | openssl dgst -sha256 -hmac 'a secret that only tests know, and they alone' -binary | base64url
}

# `connect NAME`: a client that takes what comes and says nothing: the frames' texts are in $WORK/NAME.frames.
connect() {
    : >"$WORK/$1.frames"
    curl -sN --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
        -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H "Authorization: Bearer $(user_token "$1")" \
        "http://$HTTP/ws" >"$WORK/$1.frames" 2>/dev/null &
    CLIENT=$!
    STARTED+=("$CLIENT")
    within 10 grep -qa '"type":"auth_success"' "$WORK/$1.frames" || fail "$1 cannot connect"
}

# SIGTERM, and the exit must be 0.
stop() {
    local code=0
    kill -TERM "$1"
    wait "$1" || code=$?
    forget "$1"
    ((code == 0)) || fail "the daemon exits with $code"
}

# kill -9.
crash() {
    kill -9 "$1"
    wait "$1" 2>/dev/null || true
    forget "$1"
}

forget() {
    local pid kept=()
    for pid in "${STARTED[@]}"; do
        if [[ $pid != "$1" ]]; then kept+=("$pid"); fi
    done
    STARTED=("${kept[@]}")
}
