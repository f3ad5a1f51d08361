#!/usr/bin/env bash
# The ops listener through the real curl, against the built daemon: every call of the JSON twin, the probes, and refusals in
# the shape of google.rpc.Status; `/metrics` is read by Prometheus' own parser for OpenMetrics. Installs what is missing, the
# parser into a folder that goes with the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v curl >/dev/null || install_packages curl
command -v jq >/dev/null || install_packages jq
command -v openssl >/dev/null || install_packages openssl
command -v python3 >/dev/null || install_packages python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
require curl jq openssl python3
find_binary

say "installing the parser"
python3 -m venv "$WORK/python"
quiet "$WORK/python/bin/pip" install --disable-pip-version-check prometheus-client

# `anew INSECURE`: a configuration for a daemon of its own, with a new store.
anew() {
    rm -rf "$WORK/data"
    configure $'listen = ["127.0.0.1:0"]\n'"insecure = $1" 'public_claims = ["sub"]'
}

declare -A CALLED=()
FLAGS=()

# `call STATUS METHOD PATH CURL-FLAGS…`: what is said is in $WORK/answer, its head in $WORK/head.
call() {
    local wanted=$1 method=$2 path=$3 code
    shift 3
    CALLED[$method ${path%%\?*}]=1
    code=$(curl -sS --max-time 20 -X "$method" -D "$WORK/head" -o "$WORK/answer" -w '%{http_code}' "${FLAGS[@]}" "$@" \
        "http://$OPS$path" 2>"$WORK/curl") || fail "curl $method $path: $(cat "$WORK/curl")"
    [[ $code == "$wanted" ]] || fail "$method $path $* answers $code, not $wanted: $(cat "$WORK/answer")"
}

# `post STATUS PATH BODY CURL-FLAGS…`
post() {
    local wanted=$1 path=$2 body=$3
    shift 3
    call "$wanted" POST "$path" -H 'Content-Type: application/json' -d "$body" "$@"
}

# The answer, as JSON, is so.
is() { jq -e "$1" "$WORK/answer" >/dev/null || fail "not so: $1: $(cat "$WORK/answer")"; }
# The head of the answer has this line.
says() { tr -d '\r' <"$WORK/head" | grep -qix -- "$1" || fail "\`$1\` is missing in: $(cat "$WORK/head")"; }

# `refused CODE REASON`: the answer has the shape of google.rpc.Status.
refused() {
    is ".code == $1 and (.message | length) > 0 and ([.details[] | select(.[\"@type\"] == \"type.googleapis.com/google.rpc.ErrorInfo\")
        | .domain == \"pushgate\" and .reason == \"$2\"] | any)"
    says 'content-type: application/json'
}

# `names FIELD`: the answer is INVALID_ARGUMENT for it.
names() {
    refused 3 INVALID_ARGUMENT
    is "[.details[] | .fieldViolations[]?.field] == [\"$1\"]"
}

# Every path that the daemon itself names.
every_path() {
    call 404 GET /nothing
    refused 5 PATH_UNKNOWN
    local path
    for path in $(jq -r .message "$WORK/answer" | grep -oE '/[a-z/]+'); do
        [[ -n ${CALLED[GET $path]:-}${CALLED[POST $path]:-} ]] || fail "$path is not tried here; add it"
    done
}

every_call() {
    say "every call"
    connect alice
    post 200 /ws/send '{"user_id":"alice","notification":{"data":{"hello":"curl","n":1}}}'
    is '.outcome == "OUTCOME_STORED" and (.offset | type) == "string" and .sessions == 1 and .duplicate == false'
    within 10 grep -qaF '"data":{"hello":"curl","n":1}' "$WORK/alice.frames" || fail "it does not arrive"
    post 200 /ws/send '{"userId":"bob","notification":{"id":"mine","json":"{\"exact\":1.50}","ttl":"60s"},"wait":"WAIT_CONFIRMED","waitTimeout":"0.05s"}'
    is '.outcome == "OUTCOME_STORED" and .id == "mine" and .sessions == 0'
    post 200 /ws/send '{"user_id":"bob","notification":{"id":"mine","json":"{\"exact\":1.50}"}}'
    is .duplicate
    post 200 /ws/broadcast '{"notification":{"type":"system_message","data":"to all"}}'
    is '.outcome == "OUTCOME_ACCEPTED" and .sessions == 1 and .offset == "0"'
    within 10 grep -qaF '"data":"to all"' "$WORK/alice.frames" || fail "the broadcast does not arrive"
    post 200 /ws/broadcast '{"notification":{"data":"for long"},"durable":true,"filter":{"exclude_user_ids":["carol"]}}'
    is '.outcome == "OUTCOME_STORED" and (.offset | tonumber) > 0'

    call 200 GET /ws/online
    is '.nextPageToken == "" and (.users | length) == 1 and .users[0].userId == "alice" and .users[0].sessions == 1 and .users[0].claims == {"sub": "alice"}'
    call 200 GET /ws/stats
    is '.sessions == 1 and .connections.now == 1 and .pending.count != null and .store.healthy and (.errors | has("auth_failed")) and (.uptime | endswith("s"))'
    call 200 GET '/ws/sessions?user_id=alice'
    is '(.sessions | length) == 1 and .sessions[0].userId == "alice" and (.sessions[0].bytesSent | type) == "string"'
    call 200 GET '/ws/sessions?userId=nobody&pageSize=5'
    is '.sessions == []'
    post 200 /ws/cleanup '{}'
    is '. == {"closed": 0, "expired": 0}'
    call 200 POST /ws/cleanup -H 'Content-Type: application/json'

    call 200 GET /livez
    call 200 GET /readyz
    is '. == {"ready": true, "reasons": []}'
    call 200 GET /metrics
    curl -sSI --max-time 20 "${FLAGS[@]}" "http://$OPS/ws/stats" >"$WORK/head"
    says 'HTTP/1.1 200 OK'
    kill "$CLIENT"
    wait "$CLIENT" 2>/dev/null || true
    forget "$CLIENT"
}

metrics() {
    say "metrics, as Prometheus reads them"
    curl -sSf -D "$WORK/head" "http://$OPS/metrics" >"$WORK/metrics"
    says 'content-type: application/openmetrics-text; version=1.0.0; charset=utf-8'
    "$WORK/python/bin/python" - "$WORK/metrics" <<'END'
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families

families = {family.name: family for family in text_string_to_metric_families(open(sys.argv[1]).read())}
expected = """build ready start_time_seconds process_cpu_seconds process_resident_memory_bytes connections_open
    connections_open_peak connections sessions users_online messages traffic_bytes failures confirm_latency_seconds
    reply_latency_seconds alert_firing alerts scheduler_delay_seconds pending_notifications pending_bytes store_disk_bytes store_healthy event_streams events
    events_lost""".split()
missing = {"pushgate_" + name for name in expected} - families.keys()
assert not missing, missing
for family in families.values():
    assert family.name.startswith("pushgate_") and family.documentation, family
    for sample in family.samples:
        assert set(sample.labels) <= {"le", "alert", "kind", "direction", "limit", "listener", "outcome", "runtime", "version",
            "audience", "class", "code", "method", "result", "state", "transport"}, sample
print(len(families), "families")
END
}

say "with tokens"
anew false
start gateway serve --config "$WORK/pushgate.toml"
FLAGS=(-H 'Authorization: Bearer opens-everything')
every_call
every_path
FLAGS=()
metrics

say "refusals"
for header in '' 'Authorization: Bearer wrong' 'Authorization: Basic opens-everything' 'Cookie: token=opens-everything'; do
    FLAGS=(-H "$header")
    for path in /ws/online /ws/stats /ws/sessions; do
        call 401 GET "$path?token=opens-everything"
        refused 16 UNAUTHENTICATED
        says 'www-authenticate: Bearer'
    done
    for path in /ws/send /ws/broadcast /ws/cleanup; do
        post 401 $path '{}'
        refused 16 UNAUTHENTICATED
    done
done
FLAGS=(-H 'Authorization: Bearer only-sends')
for path in /ws/online /ws/stats /ws/sessions; do
    call 403 GET $path
    refused 7 SCOPE_MISSING
done
post 403 /ws/cleanup '{}'
refused 7 SCOPE_MISSING
post 200 /ws/send '{"user_id":"full","notification":{"id":"a","data":1}}'
FLAGS=(-H 'Authorization: Bearer only-reads')
post 403 /ws/send '{"user_id":"full","notification":{"data":1}}'
post 403 /ws/broadcast '{"notification":{"data":1}}'
call 200 GET /ws/online

FLAGS=(-H 'Authorization: Bearer opens-everything')
post 400 /ws/send '{'
names body
post 400 /ws/send '{"user_id":"a","notification":{"data":1},"waits":1}'
names waits
post 400 /ws/send '{"user_id":"a","notification":{"body":1}}'
names notification.body
post 400 /ws/send '{"user_id":1,"notification":{"data":1}}'
names user_id
post 400 /ws/send '{"notification":{"data":1}}'
names user_id
call 400 GET '/ws/sessions?user=a'
names user
call 415 POST /ws/send -d '{"user_id":"a","notification":{"data":1}}'
refused 3 CONTENT_TYPE
for type in text/plain multipart/form-data 'application/json; charset=latin1'; do
    call 415 POST /ws/send -H "Content-Type: $type" -d '{"user_id":"a","notification":{"data":1}}'
done
head -c 1100000 /dev/zero | tr '\0' x >"$WORK/large"
post 413 /ws/send "@$WORK/large"
refused 11 BODY_TOO_LARGE
is '.message | contains("1048576 bytes")'
post 413 /ws/send "@$WORK/large" -H 'Expect:'
post 413 /ws/send "@$WORK/large" -H 'Transfer-Encoding: chunked'
call 405 DELETE /ws/send
refused 12 METHOD_NOT_ALLOWED
says 'allow: POST'
call 405 POST /ws/stats
says 'allow: GET, HEAD'
call 405 OPTIONS /ws/send -H 'Origin: http://evil.example' -H 'Access-Control-Request-Method: POST'
if grep -qi '^access-control-' "$WORK/head"; then fail "another origin is let in: $(cat "$WORK/head")"; fi
post 403 /ws/send '{"user_id":"a","notification":{"data":1}}' -H 'Origin: http://evil.example'
refused 7 ORIGIN_REFUSED
post 409 /ws/send '{"user_id":"full","notification":{"id":"a","data":2}}'
refused 6 ID_TAKEN
for i in 2 3; do post 200 /ws/send '{"user_id":"full","notification":{"data":'"$i"'}}'; done
post 429 /ws/send '{"user_id":"full","notification":{"data":4}}'
refused 8 MAILBOX_FULL
says 'retry-after: 5'
stop "$PID"

say "without tokens, on loopback"
anew true
start gateway serve --config "$WORK/pushgate.toml"
FLAGS=()
every_call
call 403 GET /ws/stats -H 'Host: evil.example'
refused 7 HOST_REFUSED
stop "$PID"

say "http: passed"
