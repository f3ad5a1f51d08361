#!/usr/bin/env bash
# The admin API through the real grpcurl, against the built daemon: reflection, every symbol, every RPC, a stream,
# refusals with their details; over TCP with and without a token, and over the Unix socket. Installs grpcurl and jq where
# they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v jq >/dev/null || install_packages jq
command -v openssl >/dev/null || install_packages openssl
find_grpcurl
require curl jq openssl
find_binary

# What grpcurl exits with: 64 and the status code.
OK=0 INVALID_ARGUMENT=67 NOT_FOUND=69 ALREADY_EXISTS=70 PERMISSION_DENIED=71 RESOURCE_EXHAUSTED=72 UNAUTHENTICATED=80

configure "listen = [\"127.0.0.1:0\", \"unix:$WORK/admin.sock\"]" 'session_claims = ["sub"]'
start gateway serve --config "$WORK/pushgate.toml"

# `at ADDRESS FLAGS…`: where the calls below go, and with what.
at() {
    ADDRESS=$1
    shift
    FLAGS=(-plaintext -max-time 20 "$@")
}

# `grpc EXIT ARGUMENTS…`: grpcurl must exit so; what it says is in $WORK/answer.
grpc() {
    local wanted=$1 code=0
    shift
    grpcurl "${FLAGS[@]}" "$ADDRESS" "$@" >"$WORK/answer" 2>&1 || code=$?
    ((code == wanted)) || fail "grpcurl $* at $ADDRESS exits with $code, not $wanted: $(cat "$WORK/answer")"
}

# `call EXIT METHOD REQUEST`: the same for a method of the gateway.
declare -A CALLED=()
call() {
    local wanted=$1 code=0
    CALLED[$2]=1
    grpcurl "${FLAGS[@]}" -d "$3" "$ADDRESS" "pushgate.v1.Gateway/$2" >"$WORK/answer" 2>&1 || code=$?
    ((code == wanted)) || fail "$2 $3 at $ADDRESS exits with $code, not $wanted: $(cat "$WORK/answer")"
}

# The answer, as JSON, is so.
is() { jq -e "$1" "$WORK/answer" >/dev/null || fail "not so: $1: $(cat "$WORK/answer")"; }
# The answer has this text.
has() { grep -qF -- "$1" "$WORK/answer" || fail "\`$1\` is missing in: $(cat "$WORK/answer")"; }

reflection() {
    say "reflection at $ADDRESS: every service and symbol"
    grpc $OK list
    local service
    for service in grpc.health.v1.Health pushgate.v1.Gateway; do has "$service"; done
    # From the services to whatever they name.
    local -A known=()
    local queue symbol found commentless=()
    mapfile -t queue < <(grep -v '^grpc\.reflection\.' "$WORK/answer")
    while ((${#queue[@]})); do
        symbol=${queue[0]}
        queue=("${queue[@]:1}")
        if [[ -n ${known[$symbol]:-} ]]; then continue; fi
        known[$symbol]=1
        grpc $OK describe "$symbol"
        if [[ $symbol == pushgate.* ]] && ! grep -q '^ *//' "$WORK/answer"; then commentless+=("$symbol"); fi
        while read -r found; do queue+=("$found"); done < <(
            grep -v '^ *//' "$WORK/answer" | grep -oE '(^|[ (<])\.[a-z][a-z0-9]*(\.[A-Za-z0-9_]+)+' | sed 's/^[ (<]*\.//'
        )
    done
    ((${#commentless[@]} == 0)) || fail "nothing is said about ${commentless[*]}"
    # Nothing of the proto is left out but what nobody uses.
    while read -r symbol; do
        [[ -n ${known[pushgate.v1.$symbol]:-} ]] || fail "$symbol was not reached from the services"
    done < <(sed -n 's/^\(message\|enum\) \([A-Za-z]*\) .*/\2/p' proto/pushgate/v1/gateway.proto)
    echo "${#known[@]} symbols described"
    grpc $OK list pushgate.v1.Gateway
    mapfile -t METHODS < <(sed 's/^pushgate\.v1\.Gateway\.//' "$WORK/answer")
    local method
    for method in "${METHODS[@]}"; do grpc $OK describe "pushgate.v1.Gateway.$method"; done
    grpc $OK describe grpc.reflection.v1.ServerReflection
}

every_rpc() {
    local user=$1
    say "every RPC at $ADDRESS"
    CALLED=()
    grpc $OK grpc.health.v1.Health/Check
    is '.status == "SERVING"'

    call $OK GetStatus '{}'
    is '.version != "" and .draining != true and (.listeners | length) == 4 and .store.healthy'

    call $OK SendToUser '{"user_id":"'"$user"'","notification":{"data":{"hello":"world","n":1}}}'
    is '.outcome == "OUTCOME_STORED" and (.offset | tonumber) > 0 and (.id | length) == 36 and (.sessions // 0) == 0'
    call $OK SendToUser '{"user_id":"'"$user"'","notification":{"id":"mine","type":"order","json":"{\"exact\":1.50}"},"wait":"WAIT_ACCEPTED"}'
    is '.outcome == "OUTCOME_ACCEPTED" and .id == "mine"'
    call $OK SendToUser '{"user_id":"'"$user"'","notification":{"data":"gone","ttl":"0s"}}'
    is '.outcome == "OUTCOME_DROPPED"'
    call $OK SendToUser '{"user_id":"'"$user"'","notification":{"id":"mine","type":"order","json":"{\"exact\":1.50}"},"wait":"WAIT_CONFIRMED","wait_timeout":"0.01s"}'
    is '.outcome == "OUTCOME_STORED" and .duplicate'
    # A stream of requests, half-closed behind the last; the answers may come in any order.
    call $OK SendBatch '{"request_id":"good","send":{"user_id":"batch-'"$user"'","notification":{"data":1}}}
        {"request_id":"bad","send":{"user_id":""}}'
    jq -se 'map({(.requestId): .}) | add | .good.response.outcome == "OUTCOME_STORED" and .bad.error.code == 3
        and (.bad.error.details | length) == 2 and (.bad.error.details[0]["@type"] | startswith("type.googleapis.com/google.rpc."))' \
        "$WORK/answer" >/dev/null || fail "the batch answers otherwise: $(cat "$WORK/answer")"

    # What waits, and its clearing.
    call $OK ListPending '{"user_id":"'"$user"'","page_size":1}'
    is '(.notifications | length) == 1 and .nextPageToken != "" and (.notifications[0].waitingDevices // []) == []'
    call $OK ListPending '{"user_id":"'"$user"'"}'
    is '(.notifications | length) == 2 and .notifications[1].id == "mine" and .notifications[1].type == "order"'
    call $OK PurgePending '{"user_id":"batch-'"$user"'"}'
    is '.purged == 1'
    call $OK PurgePending '{"user_id":"batch-'"$user"'","force":true}'
    call $OK ListPending '{"user_id":"batch-'"$user"'"}'
    is '(.notifications // []) == []'

    # A stream, while a client comes and goes.
    grpcurl "${FLAGS[@]}" -d '{"user_id":"'"$user"'"}' "$ADDRESS" pushgate.v1.Gateway/StreamEvents >"$WORK/$user.events" 2>&1 &
    local stream=$!
    STARTED+=("$stream")
    CALLED[StreamEvents]=1
    within 10 streams 1 || fail "the stream is not counted: $(cat "$WORK/$user.events")"
    connect "$user"
    within 10 grep -qaF '"data":{"exact":1.50}' "$WORK/$user.frames" || fail "what waited does not arrive as it was written"
    grep -qaF '"data":{"hello":"world","n":1}' "$WORK/$user.frames" || fail "an integral number has changed"

    call $OK ListSessions '{"user_id":"'"$user"'"}'
    is '(.sessions | length) == 1 and .sessions[0].userId == "'"$user"'" and (.sessions[0].userAgent | startswith("curl"))'
    call $OK ListUsers '{}'
    is '(.users | length) == 1 and .users[0].userId == "'"$user"'" and .users[0].sessions == 1 and (.users[0].since | length) > 0'
    call $OK Broadcast '{"notification":{"type":"system_message","data":"to all"}}'
    is '.outcome == "OUTCOME_ACCEPTED" and .sessions == 1'
    within 10 grep -qaF '"data":"to all"' "$WORK/$user.frames" || fail "the broadcast does not arrive"
    call $OK Broadcast '{"notification":{"data":"to some"},"filter":{"user_agent":"CURL/*","devices":["", "phone"],"claims":{"sub":"'"$user"'"},"connected_after":"2026-01-01T00:00:00Z"}}'
    is '.sessions == 1'
    within 10 grep -qaF '"data":"to some"' "$WORK/$user.frames" || fail "the filtered broadcast does not arrive"
    call $OK Broadcast '{"notification":{"data":"to none"},"filter":{"connected_before":"2026-01-01T00:00:00Z"}}'
    is '.outcome == "OUTCOME_DROPPED"'
    call $OK ListSessions '{"address":"127.0.0.0/8"}'
    is '(.sessions | length) == 1'
    call $OK ListSessions '{"address":"2001:db8::/32"}'
    is '(.sessions // []) == []'
    call $OK Broadcast '{"notification":{"id":"for-'"$user"'","data":"for long","ttl":"60s"},"durable":true,"filter":{"exclude_user_ids":["nobody"]}}'
    is '.outcome == "OUTCOME_STORED" and (.offset | tonumber) > 0 and .sessions == 1'
    within 10 grep -qaF '"data":"for long"' "$WORK/$user.frames" || fail "the durable broadcast does not arrive"
    # To one session, as the answer to what it never asked.
    call $OK ListSessions '{"user_id":"'"$user"'"}'
    local session
    session=$(jq -r '.sessions[0].sessionId' "$WORK/answer")
    call $OK SendToSession '{"session_id":"'"$session"'","reply_to":"r-1","notification":{"data":"for one"}}'
    is '.outcome == "OUTCOME_ACCEPTED" and (.id | length) == 36'
    within 10 grep -qaF '"replyTo":"r-1","data":"for one"' "$WORK/$user.frames" || fail "the reply does not arrive"
    grpcurl "${FLAGS[@]}" -max-time 1 -d '{"snapshot":true}' "$ADDRESS" pushgate.v1.Gateway/StreamEvents >"$WORK/snapshot" 2>&1 || true
    jq -se '.[0].snapshotSession.session.sessionId == "'"$session"'" and .[1].snapshotEnd.sessions == 1' \
        <(sed '/^ERROR/,$d' "$WORK/snapshot") >/dev/null || fail "the snapshot is otherwise: $(cat "$WORK/snapshot")"
    call $OK Subscribe '{"topic":"room.7","user_ids":["'"$user"'"]}'
    is '.sessions == 1 and .changed == 1'
    call $OK Publish '{"topic":"room.7","notification":{"type":"chat","data":"to the room"}}'
    is '.outcome == "OUTCOME_ACCEPTED" and .sessions == 1'
    within 10 grep -qaF '"topic":"room.7","data":"to the room"' "$WORK/$user.frames" || fail "what is published does not arrive"
    call $OK ListTopics '{"prefix":"room."}'
    is '(.topics | length) == 1 and .topics[0] == {"topic":"room.7","sessions":1,"users":1}'
    call $OK ListSessions '{"topic":"room.7"}'
    is '.sessions[0].topics == ["room.7"]'
    call $OK Unsubscribe '{"topic":"room.7","user_ids":["'"$user"'"]}'
    is '.changed == 1'
    call $OK ListDevices '{"user_id":"'"$user"'"}'
    is '(.devices | length) == 1 and (.devices[0].device // "") == ""'
    is '.devices[0].sessions == 1 and .devices[0].pending == 2 and .devices[0].pendingBroadcasts == 1'
    call $OK CloseUserSessions '{"user_id":"'"$user"'","code":4001,"reason":"see you"}'
    is '.closed == 1'
    wait "$CLIENT" || true
    forget "$CLIENT"
    grep -qaF 'see you' "$WORK/$user.frames" || fail "the close reason does not arrive"
    within 10 grep -q sessionClosed "$WORK/$user.events" || fail "the stream does not tell: $(cat "$WORK/$user.events")"
    jq -se 'map(keys[]) | contains(["sessionOpened", "userOnline", "sessionClosed"])' "$WORK/$user.events" >/dev/null ||
        fail "the stream does not tell all: $(cat "$WORK/$user.events")"
    jq -se 'map(select(.sessionClosed)) | .[0].sessionClosed | .code == 4001 and .closedBy == "CLOSED_BY_CALLER"' \
        "$WORK/$user.events" >/dev/null || fail "the stream tells otherwise: $(cat "$WORK/$user.events")"
    kill "$stream"
    wait "$stream" 2>/dev/null || true
    forget "$stream"

    call $OK SetLogFilter '{"filter":"info,pushgate::store=debug"}'
    call $OK SetLogFilter '{"filter":"info"}'
    is '.previous == "info,pushgate::store=debug"'

    call $OK Reload '{}'
    is '(.changed // []) == [] and (.needsRestart // []) == []'

    call $OK Backup '{"path":"'"$WORK/backup-$user"'"}'
    is '(.bytes | tonumber) > 0 and (.records | tonumber) > 0'
    "$BIN" store check --path "$WORK/backup-$user" >"$WORK/said" 2>&1 || fail "the backup is not whole: $(cat "$WORK/said")"
    call $ALREADY_EXISTS Backup '{"path":"'"$WORK/backup-$user"'"}'
    has PATH_EXISTS
    call $NOT_FOUND ForgetDevice '{"user_id":"'"$user"'","device":"none"}'
    has 'DEVICE_UNKNOWN'
    call $OK ForgetDevice '{"user_id":"'"$user"'","device":""}'
    call $OK ListDevices '{"user_id":"'"$user"'"}'
    is '(.devices // []) == []'
    call $OK ForgetUser '{"user_id":"'"$user"'"}'
    call $OK RevokeTokens '{"user_id":"'"$user"'","expires_at":"'"$(date -u -d '+1 hour' +%FT%TZ)"'"}'
    is '(.closed // 0) == 0'
    call $OK ListPending '{"user_id":"'"$user"'"}'
    is '(.notifications // []) == []'
    # Out of service, step by step, and back.
    call $OK Drain '{"deadline":"5s"}'
    has DRAIN_STATE_NOT_READY
    has DRAIN_STATE_DRAINED
    call $OK Undrain '{}'
    is '.wasDraining == true'

    local method
    for method in "${METHODS[@]}"; do
        [[ -n ${CALLED[$method]:-} ]] || fail "$method is not tried here; add it"
    done
}

streams() {
    call $OK GetStatus '{}'
    jq -e "(.eventStreams.open // 0) == $1" "$WORK/answer" >/dev/null
}

refusals() {
    local user=$1
    say "refusals with their details at $ADDRESS"
    call $INVALID_ARGUMENT SendToUser '{"notification":{}}'
    has 'google.rpc.BadRequest'
    has '"field": "user_id"'
    has '"domain": "pushgate"'
    call $INVALID_ARGUMENT SendToUser '{"user_id":"'"$user"'"}'
    has '"field": "notification"'
    call $INVALID_ARGUMENT SendToUser '{"user_id":"'"$user"'","notification":{"json":"{"}}'
    call $INVALID_ARGUMENT SendToUser '{"user_id":"'"$user"'","notification":{"type":"auth_success"}}'
    call $INVALID_ARGUMENT CloseUserSessions '{"user_id":"'"$user"'","code":1001}'
    call $INVALID_ARGUMENT StreamEvents '{"types":["no_such_event"]}'
    call $INVALID_ARGUMENT StreamEvents '{"resume_after":{"sequence":1}}'
    has '"field": "resume_after.epoch"'
    call $INVALID_ARGUMENT SendToSession '{"session_id":"'"$user"'","notification":{}}'
    call $NOT_FOUND SendToSession '{"session_id":"0197f3a1-0000-7000-8000-000000000000","notification":{}}'
    has SESSION_UNKNOWN
    call $INVALID_ARGUMENT ListSessions '{"page_token":"made up"}'
    call $INVALID_ARGUMENT ListSessions '{"address":"10.0.0.0/33"}'
    has '"field": "address"'
    call $INVALID_ARGUMENT Broadcast '{"notification":{},"filter":{"devices":["a b"],"claims":{"email":"a@b"}}}'
    has '"field": "filter.devices"'
    has '"field": "filter.claims"'
    has 'auth.session_claims'
    call $INVALID_ARGUMENT Broadcast '{"notification":{},"durable":true,"filter":{"user_agent":"*"}}'
    call $INVALID_ARGUMENT ListUsers '{"page_token":"made up"}'
    call $INVALID_ARGUMENT SetLogFilter '{"filter":"info,pushgate=loud"}'
    has 'pushgate=loud'
    call $INVALID_ARGUMENT ListTopics '{"page_token":"made up"}'
    call $INVALID_ARGUMENT Publish '{"notification":{"data":1}}'
    has '"field": "topic"'
    call $INVALID_ARGUMENT Subscribe '{"topic":"room.7"}'
    call $INVALID_ARGUMENT Unsubscribe '{"topic":"room.7","session_ids":["made up"]}'
    call $INVALID_ARGUMENT Backup '{"path":"not/absolute"}'
    has '"field": "path"'
    call $INVALID_ARGUMENT ListPending '{"user_id":"'"$user"'","page_token":"made up"}'
    call $INVALID_ARGUMENT ForgetDevice '{"user_id":"'"$user"'"}'
    call $INVALID_ARGUMENT Broadcast '{"notification":{"ttl":"0s"},"durable":true}'
    call $OK SendToUser '{"user_id":"again-'"$user"'","notification":{"id":"a","data":1}}'
    call $ALREADY_EXISTS SendToUser '{"user_id":"again-'"$user"'","notification":{"id":"a","data":2}}'
    has ID_TAKEN
    local i
    for i in 1 2 3; do
        call $OK SendToUser '{"user_id":"full-'"$user"'","notification":{"data":'"$i"'}}'
    done
    call $RESOURCE_EXHAUSTED SendToUser '{"user_id":"full-'"$user"'","notification":{"data":4}}'
    has 'google.rpc.RetryInfo'
}

at "$GRPC" -H 'authorization: Bearer opens-everything'
reflection
every_rpc tom
refusals tom

at "$WORK/admin.sock" -unix
reflection
every_rpc una
refusals una

say "without a token, with a wrong one, with one that may not"
for header in '' 'authorization: Bearer wrong' 'authorization: Basic opens-everything'; do
    at "$GRPC" -H "$header"
    grpc 1 list
    has Unauthenticated
    # Without reflection the proto says what is called.
    at "$GRPC" -H "$header" -import-path proto -proto pushgate/v1/gateway.proto
    for method in "${METHODS[@]}"; do
        call $UNAUTHENTICATED "$method" '{}'
        has 'google.rpc.ErrorInfo'
    done
done
at "$GRPC" -H 'authorization: Bearer only-sends'
grpc $OK list
call $OK SendToUser '{"user_id":"sam","notification":{"data":1}}'
for method in Drain Undrain ForgetDevice ForgetUser GetStatus ListDevices ListPending ListSessions ListTopics ListUsers PurgePending \
    Reload RevokeTokens SetLogFilter StreamEvents; do
    call $PERMISSION_DENIED "$method" '{}'
    has SCOPE_MISSING
done
call $PERMISSION_DENIED CloseUserSessions '{"user_id":"sam"}'
call $PERMISSION_DENIED Backup '{"path":"/nowhere"}'

say "a daemon that is gone"
stop "$PID"
[[ ! -e $WORK/admin.sock ]] || fail "the Unix socket was left behind"
at "$GRPC" -import-path proto -proto pushgate/v1/gateway.proto -connect-timeout 2
code=0
grpcurl "${FLAGS[@]}" -d '{}' "$GRPC" pushgate.v1.Gateway/GetStatus >"$WORK/answer" 2>&1 || code=$?
((code != 0)) || fail "somebody answers"

say "grpcurl: passed"
