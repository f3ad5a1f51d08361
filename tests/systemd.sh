#!/usr/bin/env bash
# The unit and its companions as systemd sees them: nothing to complain of, little left exposed, and a configuration
# that lacks its key and nothing else. Needs systemd-analyze; installs systemd where it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

EXPOSURE_MAX=1.5

if ! command -v systemd-analyze >/dev/null; then
    install_packages systemd
fi
require systemd-analyze systemd-sysusers systemd-tmpfiles curl
find_binary

say "systemd-analyze verify"
# The unit names an installed binary; here it is the built one.
sed "s|/usr/bin/pushgate|$BIN|" systemd/pushgate.service >"$WORK/pushgate.service"
grep -q "^ExecStart=$BIN serve" "$WORK/pushgate.service" || fail "the unit does not start /usr/bin/pushgate"
# What is newer than this systemd is passed over with a warning of just that: the back-off by 253 and older, the type of
# the reload by 252 and older.
verify() {
    systemd-analyze verify "$@" >"$WORK/verify" 2>&1 || fail "verify: $(cat "$WORK/verify")"
    local strange
    strange=$(grep -vE "notify-reload|'RestartSteps'|'RestartMaxDelaySec'" "$WORK/verify" || true)
    [[ -z $strange ]] || fail "verify: $strange"
}
verify "$WORK/pushgate.service"
cp systemd/*.socket "$WORK"
verify "$WORK"/pushgate*.socket "$WORK/pushgate.service"

say "the sockets are the listeners of the configuration, by their names"
for pair in "http pushgate.socket" "grpc pushgate-grpc.socket" "ops pushgate-ops.socket"; do
    section=${pair%% *} unit=systemd/${pair##* }
    grep -qx "FileDescriptorName=$section" "$unit" && grep -qx 'Service=pushgate.service' "$unit" || fail "$unit: not named $section"
    stream=$(sed -n 's/^ListenStream=//p' "$unit" | head -n 1)
    [[ $stream != /* ]] || stream=unix:$stream
    sed -n "/^\[$section\]/,/^\[/p" systemd/pushgate.toml | grep -qxF "#listen = [\"$stream\"]" || fail "$unit: $stream is not $section.listen"
    grep -qxF 'Backlog=4096' "$unit" || fail "$unit: no Backlog"
done
grep -qx 'ListenStream=127.0.0.1:7001' systemd/pushgate-grpc.socket || fail "the place for callers with a token is not passed in"
[[ $(cat systemd/*.socket | grep -c '^ListenStream=') == 4 ]] || fail "a socket that no configuration has"
grep -qx 'SocketMode=0660' systemd/pushgate-grpc.socket || fail "the admin API's socket is open to all"

say "what newer versions can do"
mkdir "$WORK/pushgate.service.d"
cp systemd/pushgate-254.conf "$WORK/pushgate.service.d/254.conf"
verify "$WORK/pushgate.service"
rm -r "$WORK/pushgate.service.d"

say "a crash loop is never given up, and what is faster than it is"
value() { sed -n "s/^$1=//p" systemd/pushgate.service; }
(($(value StartLimitIntervalSec) / $(value RestartSec) < $(value StartLimitBurst))) || fail "it would be left alone"
[[ $(value WatchdogSec) -gt 0 && $(value WatchdogSignal) == SIGKILL ]] || fail "no watchdog, or one that leaves a core"

say "systemd-analyze security: at most $EXPOSURE_MAX"
systemd-analyze security --offline=true --threshold="${EXPOSURE_MAX/./}" systemd/pushgate.service >"$WORK/security" 2>&1 ||
    fail "$(cat "$WORK/security")"
grep 'Overall exposure level' "$WORK/security" || fail "no exposure level: $(cat "$WORK/security")"

say "the stop has more time than the daemon takes"
seconds=$(sed -n 's/^TimeoutStopSec=//p' systemd/pushgate.service)
deadline=$(sed -n 's/^#deadline = "\([0-9]*\)s"$/\1/p' systemd/pushgate.toml)
((seconds > deadline)) || fail "TimeoutStopSec=$seconds is not above shutdown.deadline, $deadline s"

say "sysusers and tmpfiles, in a folder of their own"
root=$WORK/root
mkdir -p "$root"/usr/lib/{sysusers.d,tmpfiles.d} "$root/etc/pushgate"
cp systemd/pushgate.sysusers "$root/usr/lib/sysusers.d/pushgate.conf"
cp systemd/pushgate.tmpfiles "$root/usr/lib/tmpfiles.d/pushgate.conf"
cp systemd/pushgate.toml "$root/etc/pushgate/pushgate.toml"
head -c 32 /dev/urandom | base64 >"$root/etc/pushgate/jwt.key"
chmod 0600 "$root"/etc/pushgate/*
quiet systemd-sysusers --root="$root" pushgate.conf
grep -q '^pushgate:.*:/var/lib/pushgate:/usr/sbin/nologin$' "$root/etc/passwd" || fail "no user pushgate in $root/etc/passwd"
if ((EUID == 0)); then
    quiet systemd-tmpfiles --root="$root" --create pushgate.conf
    group=$(sed -n 's/^pushgate:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/group")
    for wanted in "750 etc/pushgate" "640 etc/pushgate/pushgate.toml" "640 etc/pushgate/jwt.key"; do
        found=$(stat -c '%a %u %g' "$root/${wanted#* }")
        [[ $found == "${wanted%% *} 0 $group" ]] || fail "${wanted#* }: mode, owner, group are $found"
    done
else
    note "NOT RUN: systemd: owners of files (that needs root)"
fi

say "the file that is installed is refused for its missing key, and valid with one"
code=0
"$BIN" config check --config systemd/pushgate.toml >"$WORK/check" 2>&1 || code=$?
((code == 78)) || fail "config check exits with $code, not 78: $(cat "$WORK/check")"
[[ $(wc -l <"$WORK/check") == 1 && $(cat "$WORK/check") == *": auth.keys: no key is configured"* ]] || fail "$(cat "$WORK/check")"
sed -e 's/^#\(\[\[auth.keys\]\]\|algorithm = \)/\1/' -e "s|^#\(secret_file = \"\)/|\1$root/|" systemd/pushgate.toml >"$WORK/pushgate.toml"
"$BIN" config check --config "$WORK/pushgate.toml"

say "what the daemon asks of the kernel is what the unit lets through"
command -v strace >/dev/null || install_packages strace
if strace -qq -o "$WORK/probe" true 2>/dev/null; then
    unfold() {
        local name
        for name in $(systemd-analyze syscall-filter "$1" | sed -n 's/^ \+\([a-z0-9_@-]\+\)$/\1/p'); do
            if [[ $name == @* ]]; then unfold "$name"; else echo "$name"; fi
        done
    }
    unfold @system-service | sort -u >"$WORK/in"
    { unfold @privileged && unfold @resources; } | sort -u >"$WORK/out"
    comm -23 "$WORK/in" "$WORK/out" >"$WORK/let"
    grep -qx accept4 "$WORK/let" || fail "the filter could not be read"
    # -D: the daemon stays the child of this script, which stops it.
    TRACE=(strace -D -f -qq -o "$WORK/trace")
    start traced serve --dev --http-listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 \
        --store-path "$WORK/data"
    curl -sf "http://$OPS/readyz" "http://$HTTP/livez" >/dev/null || fail "the daemon does not answer"
    stop "$PID"
    within 10 grep -q 'exit_group(' "$WORK/trace" || fail "strace has not seen the end"
    sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p' "$WORK/trace" | sort -u >"$WORK/asked"
    grep -qx accept4 "$WORK/asked" || fail "strace saw no listener"
    unknown=$(comm -23 "$WORK/asked" "$WORK/let")
    [[ -z $unknown ]] || fail "not let through: $unknown"
    echo "$(wc -l <"$WORK/asked") system calls, all of them allowed"
else
    note "NOT RUN: systemd: the system calls (this machine does not let processes be traced)"
fi

say "systemd: passed"
