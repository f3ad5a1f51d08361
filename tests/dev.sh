#!/usr/bin/env bash
# The first minute: `serve --dev` in an empty folder, the lines that it prints pasted as they are, and its page in a real
# browser. Installs Chromium and grpcurl where they are missing. PUSHGATE_SHOTS=FOLDER keeps pictures of the page.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v python3 >/dev/null || install_packages python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
command -v openssl >/dev/null || install_packages openssl
if ! command -v chromium >/dev/null; then
    install_packages chromium
fi
find_grpcurl
require curl openssl python3 chromium
find_binary
quiet python3 -m venv "$WORK/python"
quiet "$WORK/python/bin/pip" install --disable-pip-version-check 'websockets>=14'

DEV=(serve --dev --grpc-listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --http-listen)

say "what other machines can reach is refused"
code=0
(cd "$WORK" && "$BIN" "${DEV[@]}" 0.0.0.0:0) >"$WORK/refused" 2>&1 || code=$?
((code == 78)) || fail "it exits with $code, not 78"
# shellcheck disable=SC2016 # the marks are the message's own
grep -qF '`0.0.0.0:0` can be reached from other machines' "$WORK/refused" || fail "$(cat "$WORK/refused")"
[[ ! -e $WORK/pushgate-data ]] || fail "the refused run has made a folder"

say "serve --dev in an empty folder"
start first "${DEV[@]}" 127.0.0.1:0
within 5 grep -q '^A token for alice' "$WORK/first.out" || fail "nothing is printed"
KEY=$WORK/pushgate-data/dev.key
[[ $(stat -c '%a' "$KEY") == 600 ]] || fail "the key can be read by others: $(stat -c '%a' "$KEY")"
if grep -qE 'eyJ[A-Za-z0-9_-]+\.' "$WORK/first.log"; then fail "a token is in the log"; fi

# `printed NAME PATTERN`: the line that is to be pasted.
printed() {
    sed -n "s|^  ||p" "$WORK/$1.out" | grep -- "$2" | head -n 1 | grep . || fail "no line for $2: $(cat "$WORK/$1.out")"
}
# Pastes a line into a shell in the folder where the daemon was started.
paste_line() { (cd "$WORK" && bash -c "$1") >"$WORK/pasted" 2>&1 || fail "$1: $(cat "$WORK/pasted")"; }

SEND=$(printed first 'grpcurl -plaintext ')
PAGE=$(printed first 'http://[^ ]*/$')

say "the page, and what it may do: $PAGE"
curl -sf -D "$WORK/head" -o "$WORK/page" "$PAGE" || fail "no page"
policy=$(tr -d '\r' <"$WORK/head" | sed -n 's/^content-security-policy: //Ip')
for element in style script; do
    hash=$(sed -n "/<$element>/,/<\/$element>/p" "$WORK/page" | sed "1s/.*<$element>//; \$s/<\/$element>.*//" |
        head -c -1 | openssl dgst -sha256 -binary | openssl base64 -A)
    [[ $policy == *"; $element-src 'sha256-$hash';"* ]] || fail "the policy has not the hash of the $element: $policy"
done
for part in "default-src 'none'" "connect-src ws://$HTTP;" "frame-ancestors 'none'" "base-uri 'none'"; do
    [[ $policy == *"$part"* ]] || fail "the policy lacks $part: $policy"
done
[[ $policy != *unsafe* && $policy != *'*'* ]] || fail "the policy is open: $policy"
[[ $(curl -s -o /dev/null -w '%{http_code}' -H 'Host: elsewhere.example' "$PAGE") == 403 ]] ||
    fail "a name that was made to resolve to loopback gets the page"

say "the page in a browser"
# Nothing but loopback can be reached: the page works offline, and a name in it would fail.
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1' \
    --user-data-dir="$WORK/profile" --remote-debugging-port=0 --enable-logging=stderr --window-size=1100,1000 \
    "$PAGE" >"$WORK/chromium.log" 2>&1 &
STARTED+=("$!")
within 30 test -s "$WORK/profile/DevToolsActivePort" || fail "Chromium does not start: $(cat "$WORK/chromium.log")"
page() { "$WORK/python/bin/python" tests/clients/page.py "$(head -n 1 "$WORK/profile/DevToolsActivePort")" "$@"; }
# The last entry of the page is of that type, and holds the text.
shows() {
    page until "document.querySelector('#log li:first-child .type')?.textContent === '$1' &&
        document.querySelector('#log li:first-child').textContent.includes('$2')"
}
page until "document.querySelector('#state')?.textContent === 'connected'"

say "pasted: $SEND"
paste_line "$SEND"
grep -q '"sessions": 1' "$WORK/pasted" || fail "it was not handed to the page: $(cat "$WORK/pasted")"
shows notification '{"hello":"world"}'
page run "document.querySelector('#ping').click()" >/dev/null
shows pong ' ms'
page run "document.querySelector('#text').value = '<b>as it is</b>'; document.querySelector('#say').click()" >/dev/null
shows echo_response '<b>as it is</b>'

send=$(printed first ' send --grpc ')
if "$BIN" send --help >/dev/null 2>&1; then
    say "pasted: $send"
    paste_line "$send"
    page until "document.querySelectorAll('#log .type').length >= 5"
    shows notification '{"hello":"world"}'
else
    note "NOT RUN: dev: send (this binary has none)"
fi

listen=$(printed first ' listen --url ')
if "$BIN" listen --help >/dev/null 2>&1; then
    say "pasted: ${listen%% --token*} --token …"
    (cd "$WORK" && exec bash -c "exec $listen") >"$WORK/listened" 2>&1 </dev/null &
    STARTED+=("$!")
    sessions() { paste_line "$SEND" && grep -q '"sessions": 2' "$WORK/pasted"; }
    within 10 sessions || fail "it does not connect: $(cat "$WORK/listened")"
    within 10 grep -q hello "$WORK/listened" || fail "nothing is shown: $(cat "$WORK/listened")"
    kill "${STARTED[-1]}" && { wait "${STARTED[-1]}" || true; }
else
    note "NOT RUN: dev: listen (this binary has none)"
fi

say "in its folder the commands find it, and listen is alice, without a word more"
GRPC=$(awk '{ print $(NF - 1) }' <<<"$SEND")
bare() { (cd "$WORK" && PUSHGATE_GRPC__LISTEN="[\"$GRPC\"]" PUSHGATE_HTTP__LISTEN="[\"$HTTP\"]" "$BIN" "$@"); }
bare send alice '{"without":"a word"}' >"$WORK/bare" || fail "send finds nobody: $(cat "$WORK/bare")"
bare listen --for 2s >"$WORK/bare" 2>&1 || fail "listen finds nobody: $(cat "$WORK/bare")"
grep -q '{"without":"a word"}' "$WORK/bare" || fail "nothing is shown: $(cat "$WORK/bare")"
bare sessions >"$WORK/bare" && grep -q alice "$WORK/bare" || fail "sessions finds nobody"
(cd /tmp && "$BIN" listen --for 1s) >"$WORK/bare" 2>&1 && fail "listen guesses elsewhere: $(cat "$WORK/bare")"

[[ $(page run "performance.getEntriesByType('resource').length") == 0 ]] || fail "the page has loaded something"
if grep 'CONSOLE' "$WORK/chromium.log"; then fail "the browser complains"; fi
if [[ -n ${PUSHGATE_SHOTS:-} ]]; then
    page shot "$PUSHGATE_SHOTS/page.png"
    page shot "$PUSHGATE_SHOTS/page-dark.png" dark
fi

say "after a restart the page comes back with the token that it has"
cp "$KEY" "$WORK/key"
stop "$PID"
page until "document.querySelector('#state').dataset.is === 'connecting'"
start second "${DEV[@]}" "$HTTP"
cmp "$KEY" "$WORK/key" || fail "the key was made anew"
page until "document.querySelector('#state').textContent === 'connected'"
within 5 grep -q '^A token for alice' "$WORK/second.out" || fail "nothing is printed"
SEND=$(printed second 'grpcurl -plaintext ')
paste_line "${SEND//world/again}"
shows notification '{"hello":"again"}'

say "what was sent while it was away, once"
page run "document.querySelector('#switch').click()" >/dev/null
page until "document.querySelector('#state').textContent === 'disconnected'"
paste_line "${SEND//world/missed}"
page run "document.querySelector('#switch').click()" >/dev/null
shows notification '{"hello":"missed"}'
[[ $(page run "[...document.querySelectorAll('#log pre')].filter(e => e.textContent.includes('missed')).length") == 1 ]] ||
    fail "it came twice"
[[ -z ${PUSHGATE_SHOTS:-} ]] || page shot "$PUSHGATE_SHOTS/page-later.png"

stop "$PID"
say "dev: passed"
