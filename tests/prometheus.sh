#!/usr/bin/env bash
# The metrics, the alert rules and what they stand on, by Prometheus' own programs: `promtool` checks the rules, runs their
# tests and reads what the daemon exposes; a real Prometheus scrapes it, loads the rules, and is asked over its HTTP API for
# every family of docs/metrics.md. Installs what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

command -v curl >/dev/null || install_packages curl
command -v jq >/dev/null || install_packages jq
command -v openssl >/dev/null || install_packages openssl
command -v python3 >/dev/null || install_packages python3
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then install_packages prometheus; fi
require curl jq openssl python3 prometheus promtool
find_binary
RULES=$PWD/ops/prometheus/pushgate.rules.yml

say "the rules, and their tests"
quiet promtool check rules "$RULES"
quiet promtool test rules "${RULES%.yml}.test.yml"
# A test that a rule cannot fail says nothing: with another bound in it the tests must fail.
mkdir "$WORK/bent"
for bend in 's/pushgate_ready == 0/pushgate_ready == 2/' 's/ unless pushgate_draining == 1//' 's/code="4409"/code="4408"/' 's/> 0\.5$/> 50/'; do
    sed "$bend" "$RULES" >"$WORK/bent/pushgate.rules.yml"
    if cmp -s "$RULES" "$WORK/bent/pushgate.rules.yml"; then fail "nothing is bent by $bend"; fi
    cp "${RULES%.yml}.test.yml" "$WORK/bent/"
    if promtool test rules "$WORK/bent/pushgate.rules.test.yml" >/dev/null 2>&1; then fail "the tests hold with $bend"; fi
done
# Each alert is tried, and says where it is told what to do.
for alert in $(sed -n 's/^ *- alert: //p' "$RULES"); do
    for does in fires 'is quiet'; do
        grep -qx "  - name: $alert $does" "${RULES%.yml}.test.yml" || fail "that $alert $does is not tested"
    done
done

say "a daemon with something to tell"
configure $'listen = ["127.0.0.1:0"]' ''
start gateway serve --config "$WORK/pushgate.toml"
connect alice
send() {
    curl -sSf --max-time 20 -H 'Authorization: Bearer opens-everything' -H 'Content-Type: application/json' \
        -d '{"user_id":"'"$1"'","notification":{"data":1}}' "http://$OPS/ws/send" >/dev/null
}
send alice
send bob

say "promtool check metrics"
# It reads the older text format, which is asked for.
curl -sSf "http://$OPS/metrics" >"$WORK/metrics"
tail -n 1 "$WORK/metrics" | grep -qx '# EOF' || fail "it does not end with # EOF"
curl -sSf -D "$WORK/head" -H 'Accept: text/plain;version=0.0.4' "http://$OPS/metrics" >"$WORK/metrics.old"
grep -qi '^content-type: text/plain; version=0.0.4' "$WORK/head" || fail "it is sent as $(grep -i '^content-type' "$WORK/head")"
promtool check metrics <"$WORK/metrics.old" >"$WORK/said" 2>&1 || fail "promtool check metrics: $(cat "$WORK/said")"

say "a Prometheus that scrapes it"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$WORK/prometheus.yml" <<END
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["$RULES"]
scrape_configs:
  - job_name: pushgate
    static_configs:
      - targets: ["$OPS"]
END
quiet promtool check config "$WORK/prometheus.yml"
prometheus --config.file="$WORK/prometheus.yml" --storage.tsdb.path="$WORK/tsdb" --web.listen-address="127.0.0.1:$port" \
    >"$WORK/prometheus.log" 2>&1 </dev/null &
STARTED+=("$!")

# `asked PATH JQ CURL-FLAGS…`: what Prometheus answers, as jq has it.
asked() {
    local path=$1 filter=$2
    shift 2
    curl -sSf --max-time 10 -G "$@" "http://127.0.0.1:$port/api/v1/$path" 2>/dev/null | jq -er "$filter" 2>/dev/null
}
value() { asked query '.data.result[0].value[1]' --data-urlencode "query=$1"; }
is_value() { [[ $(value "$1") == "$2" ]]; }
within 60 is_value 'up{job="pushgate"}' 1 || fail "it is not up: $(asked targets . || true) $(tail "$WORK/prometheus.log")"

say "every family of the table"
asked label/__name__/values '.data[]' | sort >"$WORK/names"
missing=()
while IFS='|' read -r _ name kind _; do
    name=$(tr -d ' `' <<<"$name") kind=$(tr -d ' ' <<<"$kind")
    if [[ $kind == histogram ]]; then name+=_bucket; fi
    # No listener of this daemon has a certificate.
    if [[ $name == pushgate_tls_certificate_expiry_timestamp_seconds ]]; then continue; fi
    grep -qx "$name" "$WORK/names" || missing+=("$name")
done < <(grep '^| `pushgate_' docs/metrics.md)
((${#missing[@]} == 0)) || fail "Prometheus lacks ${missing[*]}"
is_value 'pushgate_sessions{job="pushgate"}' 1 || fail "it does not see the session"
is_value 'pushgate_notifications_total{outcome="stored"}' 2 || fail "it does not see what was sent"

say "the rules are loaded, and none of them fails, fires or is about to"
rules=$(grep -c '^ *- alert: ' "$RULES")
loaded() { [[ $(asked rules '[.data.groups[].rules[] | select(.health == "ok")] | length') == "$rules" ]]; }
within 60 loaded || fail "not all of $rules rules are in order: $(asked rules '.data.groups[].rules[] | select(.health != "ok")' || true)"
# The disk that this runs on may be as full and as slow as it likes, and its cores as busy.
firing=$(asked alerts '[.data.alerts[] | .labels.alertname
    | select(IN("PushgateStoreDiskLow", "PushgateStoreCommitsSlow", "PushgateSchedulerDelayed") | not)] | unique | join(" ")' || true)
[[ -z $firing ]] || fail "$firing fires, or is pending, over a daemon in order"

say "a daemon that is gone is an alert"
crash "$PID"
noticed() { asked alerts '.data.alerts[] | select(.labels.alertname == "PushgateDown") | .state' | grep -q 'pending\|firing'; }
within 30 noticed || fail "nobody notices that it is down"

say "$(grep -c '^| `pushgate_' docs/metrics.md) families, $rules rules"
say "prometheus: passed"
