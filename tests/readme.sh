#!/usr/bin/env bash
# README.md, line by line: every command that it shows is run, in its order, in a folder of its own; its programs are
# run against the daemons that it starts, and its JSON and TOML are compared with theirs. A line that this script does
# not know how to run makes it fail. docs/operations.md is held against the source and the binary by
# tests/support/handbook.py.
#
# Three things are not as they stand there. Ports 7000, 7001 and 7002 are free ones. /etc, /usr and /root are folders
# below the script's own. What needs another machine than this one is a program of $SHIMS that does what can be done here:
# cargo and pip, sudo and systemctl.
#
# shellcheck disable=SC2016 # lines of the README are compared as they stand there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v jq >/dev/null || install_packages jq
command -v python3 >/dev/null || install_packages python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
command -v npm >/dev/null || install_packages nodejs npm
command -v systemd-analyze >/dev/null || install_packages systemd
command -v openssl >/dev/null || install_packages openssl
find_grpcurl
require curl jq python3 node npm systemd-analyze systemd-sysusers systemd-tmpfiles
find_binary

VERSION=$("$BIN" --version)
VERSION=${VERSION#pushgate }
HERE=$WORK/here
ROOT=$WORK/root
SHIMS=$WORK/shims
mkdir -p "$HERE" "$SHIMS" "$ROOT"/etc "$ROOT"/root "$ROOT"/usr/bin "$ROOT"/usr/lib/{sysusers.d,tmpfiles.d,systemd/system}
# What the lines name in a clone.
mkdir -p "$HERE/target/release"
cp "$BIN" "$HERE/target/release/pushgate"
cp -r systemd "$HERE/systemd"
chmod 0700 "$ROOT/root"

read -r P0 P1 P2 < <(python3 - <<'END'
import socket
sockets = [socket.socket() for _ in range(3)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
END
)

# As here: the ports and the folders of the system.
here() { sed -E "s/\b7000\b/$P0/g; s/\b7001\b/$P1/g; s/\b7002\b/$P2/g; s#(^|[ \"'=])/(etc|usr|root)/#\1$ROOT/\2/#g"; }

shim() {
    cat >"$SHIMS/$1"
    chmod +x "$SHIMS/$1"
}

# The built program. What writes ports of its own gets the free ones.
shim pushgate <<END
#!/usr/bin/env bash
set -euo pipefail
case "\$*" in
    "serve --dev") exec "$BIN" serve --dev --http-listen 127.0.0.1:$P0 --grpc-listen 127.0.0.1:$P1 --ops-listen 127.0.0.1:$P2 ;;
    "init --config "*)
        "$BIN" "\$@"
        sed -i -e 's/:7000"/:$P0"/; s/:7001"/:$P1"/; s/:7002"/:$P2"/' "\$3"
        ;;
    *) exec "$BIN" "\$@" ;;
esac
END
# Whoever runs this script is root here.
shim sudo <<'END'
#!/usr/bin/env bash
if [[ $1 == -u ]]; then shift 2; fi
exec "$@"
END
for program in systemd-sysusers systemd-tmpfiles; do
    if [[ $program == systemd-tmpfiles && $EUID != 0 ]]; then
        # Owners of files are root's to give.
        printf '#!/bin/sh\nmkdir -p "%s/etc/pushgate"\n' "$ROOT" | shim "$program"
    else
        printf '#!/bin/sh\nexec "%s" --root="%s" "$@"\n' "$(command -v $program)" "$ROOT" | shim "$program"
    fi
done
# The unit that was installed must verify with the program that was installed.
shim systemctl <<END
#!/usr/bin/env bash
set -euo pipefail
sed "s|/usr/bin/pushgate|$ROOT/usr/bin/pushgate|" "$ROOT/usr/lib/systemd/system/pushgate.service" >"$WORK/pushgate.service"
case "\$*" in
    # Versions before 254 say of the back-off's keys that they do not know them, and go on.
    daemon-reload) systemd-analyze verify "$WORK/pushgate.service" >"$WORK/verify" 2>&1 && ! grep -vE "'RestartSteps'|'RestartMaxDelaySec'" "$WORK/verify" >&2 ;;
    "enable --now pushgate") grep -qx 'WantedBy=multi-user.target' "$WORK/pushgate.service" ;;
    "status pushgate") ;;
    *) echo "systemctl \$*: not known here" >&2; exit 1 ;;
esac
END

say "the folders for npm and pip"
python3 -m venv "$WORK/python"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$WORK/python/bin/python" | shim python3
shim pip <<END
#!/bin/sh
exec "$WORK/python/bin/pip" --disable-pip-version-check "\$@"
END
printf '{"private":true}\n' >"$HERE/package.json"

EXPORTS=()

# `enter LINE`: becomes a shell in the folder, with the programs above first, that runs it.
enter() {
    cd "$HERE"
    exec env -u RUST_LOG PATH="$SHIMS:$PATH" "${EXPORTS[@]}" bash -euo pipefail -c "$1" </dev/null
}

# `run LINE`: it must succeed; what it says is in $WORK/said.
run() {
    (enter "$1") >"$WORK/said" 2>&1 || fail "$1: $(cat "$WORK/said")"
}

# `for_a_while LINE`: it does not end by itself, and must not fail until it is interrupted.
for_a_while() {
    local code=0
    (enter "timeout -s INT 3 $1") >"$WORK/said" 2>&1 || code=$?
    ((code == 124 || code == 130 || code == 0)) || fail "$1: exits with $code: $(cat "$WORK/said")"
}

DAEMON=

serve() {
    leave_client
    if [[ -n $DAEMON ]]; then stop "$DAEMON"; fi
    (enter "exec $1") >"$WORK/daemon.out" 2>"$WORK/daemon.log" &
    DAEMON=$!
    STARTED+=("$DAEMON")
    within 30 ready || fail "$1: not ready: $(cat "$WORK/daemon.log")"
}
ready() { curl -sf -o /dev/null "http://127.0.0.1:$P2/readyz"; }

# What is left running for the lines behind it, with what it must show at last.
LISTENING=
CLIENT=

leave_client() {
    if [[ -n $CLIENT ]]; then
        kill "$CLIENT" 2>/dev/null || true
        wait "$CLIENT" 2>/dev/null || true
        forget "$CLIENT"
        CLIENT=
    fi
}

# Every line of the JSON, and of what a program said, has the same keys in the same order, and the same types.
shapes() { jq -cR 'fromjson? | select(.type != "pong") | [to_entries[] | [.key, (.value | type)]]'; }

# A gateway with certificates, and what a caller of it has; its names are those of another machine.
secured() {
    [[ -z ${SECURED:-} ]] || return 0
    local files=$WORK/secured
    mkdir "$files"
    quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority \
        -keyout "$files/ca.key" -out "$HERE/services-ca.crt"
    local name of
    for name in push.example.com orders.internal; do
        of=$files/$name
        quiet openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" -keyout "$of.key" -out "$of.csr"
        quiet openssl x509 -req -in "$of.csr" -days 2 -CA "$HERE/services-ca.crt" -CAkey "$files/ca.key" -CAcreateserial \
            -extfile <(printf 'subjectAltName=DNS:%s' "$name") -out "$of.crt"
    done
    cp "$files/orders.internal.crt" "$HERE/orders.crt"
    cp "$files/orders.internal.key" "$HERE/orders.key"
    local tls="certificate_file = \"$files/push.example.com.crt\"
key_file = \"$files/push.example.com.key\""
    cat >"$files/pushgate.toml" <<END
[http]
listen = ["127.0.0.1:0"]
[http.tls]
$tls
[grpc]
listen = ["127.0.0.1:0"]
[grpc.tls]
$tls
client_ca_file = "$HERE/services-ca.crt"
[[grpc.clients]]
name = "orders.internal"
scopes = ["send"]
[[grpc.tokens]]
name = "admin"
token_file = "$HERE/admin.token"
scopes = ["admin"]
[ops]
listen = []
[[auth.keys]]
algorithm = "HS256"
secret = "a secret that only tests know, and they alone"
[store]
path = "$files/data"
END
    user_token alice >"$HERE/alice.token"
    start secured serve --config "$files/pushgate.toml"
    SECURED=$GRPC SECURED_HTTP=$HTTP
}

# `run_line LINE`: one command of a `sh` block, as it stands there.
run_line() {
    local line
    line=$(here <<<"$1")
    case $1 in
        'pushgate '*push.example.com*)
            secured
            local more=
            [[ $1 == *--server-name* ]] || more+=' --server-name push.example.com'
            [[ $1 == *--ca* ]] || more+=' --ca services-ca.crt'
            [[ $1 != *listen* ]] || more+=' --for 2s'
            line=$(sed -E "s#https://[a-z0-9.]+:[0-9]+#https://$SECURED#; s#wss://push.example.com/#wss://$SECURED_HTTP/#" <<<"$1")
            line=$(sed -E 's/ +#.*//' <<<"$line")$more
            (enter "$line") >"$WORK/said" 2>&1 || fail "$1: $(cat "$WORK/said")"
            ;;
        'cargo run --release -- serve --dev'*)
            serve 'pushgate serve --dev'
            grep -qF "http://127.0.0.1:$P0/" "$WORK/daemon.out" || fail "no page is named: $(cat "$WORK/daemon.out")"
            curl -sf -o "$WORK/page" "http://127.0.0.1:$P0/" || fail "there is no page"
            # Not through a pipe: a grep that ends early would break curl's.
            grep -q '<html' "$WORK/page" || fail "that is no page: $(head -c 300 "$WORK/page")"
            ;;
        # This script is run by the one that runs these; the targets and the steps must be there.
        'cargo test'*) [[ -d tests && -f Cargo.toml ]] || fail "no tests here" ;;
        'cargo build --release'*) cargo metadata --no-deps --offline --format-version 1 >"$WORK/said" 2>&1 || fail "$(cat "$WORK/said")" ;;
        # tests/package.sh and tests/boot.sh carry these out; here what they name must be there.
        'packaging/build') [[ -x packaging/build ]] ;;
        'sudo apt-get install ./target/package/'*) [[ $1 == *"/pushgate_$VERSION-1_amd64.deb" ]] || fail "this is version $VERSION: $1" ;;
        'tar xzf '*)
            [[ $1 == *" pushgate-$VERSION-x86_64-linux.tar.gz "* ]] || fail "this is version $VERSION: $1"
            cp "$BIN" "$HERE/pushgate"
            ;;
        'docker '*) [[ -f Dockerfile ]] ;;
        'export PATH="$PWD/target/release:$PATH"'*) [[ -x $HERE/target/release/pushgate ]] ;;
        'export PUSHGATE_GRPC="unix:$PWD/admin.sock"') EXPORTS+=("PUSHGATE_GRPC=unix:$HERE/admin.sock") ;;
        'pushgate serve '*) serve "$line" ;;
        'pushgate listen '*--count* | 'pushgate listen '*--for*) run "$line" ;;
        'pushgate listen '*)
            (enter "exec $line") >"$WORK/listening" 2>&1 &
            LISTENING=$!
            STARTED+=("$LISTENING")
            within 10 has_session alice || fail "$1: $(cat "$WORK/listening")"
            ;;
        'pushgate events'* | 'pushgate status --watch'* | 'grpcurl '*StreamEvents) for_a_while "$line" ;;
        *' node client.mjs') client node "$line" '"text":"hello"' ;;
        *' python3 client.py') client python "$line" '"pong"' ;;
        'npm install '*) run "$line --no-audit --no-fund" ;;
        'pip install '*) run "$line" ;;
        'sudo systemctl enable --now pushgate')
            run "$line"
            EXPORTS=()
            serve "$ROOT/usr/bin/pushgate serve --config $ROOT/etc/pushgate/pushgate.toml"
            ;;
        'sudo '* | 'pushgate '* | 'grpcurl '* | 'curl '* | 'date | pushgate '*) run "$line" ;;
        *) fail "README.md shows a line that this script does not know how to run: $1" ;;
    esac
    case $1 in
        *'"hello":"again"'*) within 10 grep -q again "$WORK/listening" || fail "it does not arrive: $(cat "$WORK/listening")" ;;
        'grpcurl '*'"hello": "grpcurl"'*)
            within 10 grep -q grpcurl "$WORK/listening" || fail "it does not arrive: $(cat "$WORK/listening")"
            cp "$WORK/said" "$WORK/answer"
            kill "$LISTENING" && { wait "$LISTENING" || true; }
            forget "$LISTENING"
            ;;
        'pushgate listen '*'--user bob'*) grep -q 'it waits' "$WORK/said" || fail "it does not wait: $(cat "$WORK/said")" ;;
        *admin.token) [[ -s $HERE/admin.token && $(stat -c %a "$HERE/pushgate.toml") == 600 ]] || fail "no token or a file for all" ;;
        'sudo systemd-tmpfiles '*)
            if ((EUID == 0)) && [[ -f $ROOT/etc/pushgate/pushgate.toml ]]; then
                local group
                group=$(sed -n 's/^pushgate:[^:]*:\([0-9]*\):.*/\1/p' "$ROOT/etc/group")
                [[ $(stat -c '%a %u %g' "$ROOT/etc/pushgate/pushgate.toml") == "640 0 $group" ]] || fail "the service cannot read its file"
                [[ $(stat -c '%a' "$ROOT/root/pushgate.token") == 600 ]] || fail "others can read the token"
            fi
            ;;
    esac
}

has_session() { "$BIN" sessions --grpc "127.0.0.1:$P1" --user "$1" --json 2>/dev/null | jq -e '.sessions | length > 0' >/dev/null; }

# `client NAME LINE TEXT`: a program of the README connects, and shows the text.
client() {
    leave_client
    # One process, so that it can be ended.
    (enter "${2/) /); export SECRET; exec }") >"$WORK/client" 2>&1 &
    CLIENT=$!
    STARTED+=("$CLIENT")
    within 20 grep -qF -- "$3" "$WORK/client" || fail "$1 does not get $3: $(cat "$WORK/client")"
}

sh_block() {
    local line whole=
    while IFS= read -r line; do
        if [[ $line == *\\ ]]; then
            whole+=${line%\\}
            continue
        fi
        whole+=$line
        # Comments and the spaces before them.
        whole=$(sed -E 's/ +# .*$//; s/^# .*$//; s/ +/ /g' <<<"$whole")
        if [[ -n $whole ]]; then
            printf '   %s\n' "$whole"
            run_line "$whole"
            RAN=$((RAN + 1))
        fi
        whole=
    done <"$1"
    [[ -z $whole ]] || fail "a line of README.md does not end: $whole"
    if grep -q '^sudo systemctl ' "$1"; then
        # What follows is about the gateway before.
        serve 'pushgate serve --config pushgate.toml'
    fi
}

json_block() {
    jq -e . "$1" >/dev/null || fail "not JSON: $(cat "$1")"
    if jq -e 'has("outcome")' "$1" >/dev/null 2>&1; then
        [[ $(jq -c 'to_entries | map([.key, (.value | type)])' "$1") == "$(jq -c 'to_entries | map([.key, (.value | type)])' "$WORK/answer")" ]] ||
            fail "the API answers otherwise: $(cat "$WORK/answer")"
    else
        [[ $(shapes <"$1") == "$(head -n "$(wc -l <"$1")" "$WORK/client" | shapes)" ]] || fail "the client gets otherwise: $(cat "$WORK/client")"
    fi
}

toml_block() {
    # Certificates that are named are there.
    if grep -q /etc/pushgate/ "$1"; then
        [[ -e $ROOT/etc/pushgate/tls.key ]] || {
            mkdir -p "$ROOT/etc/pushgate"
            quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=push.example.com \
                -addext subjectAltName=DNS:push.example.com -keyout "$ROOT/etc/pushgate/tls.key" -out "$ROOT/etc/pushgate/tls.crt"
            cp "$ROOT/etc/pushgate/tls.crt" "$ROOT/etc/pushgate/services-ca.crt"
        }
        sed -i "s|/etc/pushgate/|$ROOT/etc/pushgate/|" "$1"
    fi
    "$BIN" config check --config "$1" >"$WORK/said" 2>&1 || fail "$(cat "$WORK/said")"
    # The keys are compared with those of the first, which has tokens: an empty list of tables is shown as a key.
    [[ -e $WORK/block.toml ]] || cp "$1" "$WORK/block.toml"
}

say "its blocks"
mkdir "$WORK/blocks"
awk -v folder="$WORK/blocks" '
    /^```/ && !inside { kind = substr($0, 4); if (kind == "") kind = "plain"; file = sprintf("%s/%03d.%s", folder, ++n, kind); printf "" > file; inside = 1; next }
    /^```/ { inside = 0; close(file); next }
    inside { print > file }
' README.md

RAN=0
for block in "$WORK/blocks"/*; do
    case $block in
        *.sh) sh_block "$block" ;;
        *.json) json_block "$block" ;;
        *.toml) toml_block "$block" ;;
        *.js) here <"$block" >"$HERE/client.mjs" ;;
        *.python) here <"$block" >"$HERE/client.py" ;;
        # Compiled by `cargo test --doc`, which reads README.md.
        *.rust,no_run) ;;
        *) fail "README.md has a block of a kind that this script does not know: ${block##*.}" ;;
    esac
done
((RAN > 40)) || fail "only $RAN commands were found"

say "its tables know every key, every counter and every command"
keys=$("$BIN" config show --config "$WORK/block.toml" | sed -nE 's/^\[+([a-z_.]+)\]+.*/[\1]/p; s/^#? ?([a-z_]+) = .*/\1/p')
section=
while IFS= read -r key; do
    if [[ $key == \[* ]]; then section=${key:1:-1}; continue; fi
    [[ $section.$key != grpc.clients && $section != *tls && $section != grpc.tokens && $section != auth.keys && $section != auth.jwks && $section != topics ]] || continue
    grep -qE "^\|.*\`$section\\.$key\`" README.md || fail "the table lacks $section.$key"
done <<<"$keys"
for counter in $(sed -nE 's/^    [A-Za-z]+ = "([a-z_]+)",$/\1/p' src/metrics.rs); do
    grep -q "^| \`$counter\` |" README.md || fail "the table lacks $counter"
done
for command in $("$BIN" --help | sed -nE '/^Commands:/,/^$/ s/^  ([a-z]+) .*/\1/p' | grep -vx help); do
    grep -qE "\`(pushgate )?$command( [a-z]+)?\`" README.md || fail "the table lacks the command $command"
done

leave_client
stop "$DAEMON"

say "links lead somewhere, and docs/operations.md knows every alert and every line of the log"
python3 tests/support/handbook.py "$BIN" || fail "see above"

say "readme: passed, $RAN commands"
