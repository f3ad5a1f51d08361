#!/usr/bin/env bash
# The .deb on a Debian that really boots: systemd as process 1 in a container of systemd-nspawn, without a network but its own
# loopback. Installed, configured by `pushgate init`, started; killed, hung, reloaded, restarted under connects, upgraded,
# rebooted, removed, purged.
#
#   tests/boot.sh           all of it; needs root, and a machine on which systemd-nspawn can boot
#   tests/boot.sh --probe   exit code 0 where it can
#
# Where it cannot, it says `NOT RUN: boot` and ends well, unless REQUIRE_BOOT=1. BOOT_PROBED is what was found out before, `yes` or
# why not: it is not tried again. The Debian is made with debootstrap, from the
# mirror of this machine's apt, and kept; see tests/support/debian.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh
# shellcheck source=tests/support/debian.sh
. tests/support/debian.sh

CONFIG=/etc/pushgate/pushgate.toml
MACHINE=$WORK/machine
BEGUN=$SECONDS
# nspawn's process, and process 1 of the machine, as they are called out here.
NSPAWN=
LEADER=
# Where the machine's control groups are, where this machine has no systemd that gives it some.
GROUPS_MADE=()
# Process 1 before the last boot.
BEFORE=
STEPS=()

# Ends the machine with whatever runs in it, and whatever became of the script; then what gateway.sh ends.
leave() {
    local code=$? group
    set +e
    if ((code != 0)) && [[ -n $NSPAWN ]]; then logs >&2; fi
    halt
    for group in "${GROUPS_MADE[@]}"; do
        within 5 remove_group "$group" || echo "$group cannot be removed" >&2
    done
    (exit "$code")
    finish
}
trap leave EXIT

gone() { ! kill -0 "$1" 2>/dev/null; }
remove_group() { find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; [[ ! -d $1 ]]; }

# In order first (nspawn asks process 1 on the first signal), then at once. Process 1 outlives an nspawn that is killed.
halt() {
    [[ -n $NSPAWN ]] || return 0
    kill -TERM "$NSPAWN" 2>/dev/null
    within 20 gone "$NSPAWN" || kill -KILL "$NSPAWN" 2>/dev/null
    if [[ -n $LEADER ]]; then kill -KILL "$LEADER" 2>/dev/null; fi
    wait "$NSPAWN" 2>/dev/null
    NSPAWN='' LEADER=''
}

# `boot OPTIONS… [-- WORDS FOR PROCESS 1]`: systemd-nspawn in the background. What the machine says to its console is in
# $WORK/console.
boot() {
    local options=(--quiet --register=no --private-network --link-journal=no --console=pipe --boot "--machine=boot-$$") group hierarchy
    if [[ ! -d /run/systemd/system ]]; then
        # No systemd out here that would make a scope: a control group of our own, in each hierarchy that systemd uses.
        options+=(--keep-unit)
        for hierarchy in $(findmnt -rn -t cgroup2 -o TARGET | head -n 1) $(findmnt -rn -t cgroup -O name=systemd -o TARGET | head -n 1); do
            group=$hierarchy/pushgate-boot-$$
            [[ -d $group ]] || mkdir "$group" 2>/dev/null || continue
            GROUPS_MADE+=("$group")
        done
    fi
    : >"$WORK/console"
    (
        for group in "${GROUPS_MADE[@]}"; do echo "$BASHPID" >"$group/cgroup.procs"; done
        # systemd in the machine is given the second version of control groups, also where this machine has both.
        exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn "${options[@]}" "$@"
    ) </dev/null >>"$WORK/console" 2>&1 &
    NSPAWN=$!
}

# Process 1 of the machine: nspawn's child. After a reboot another one.
find_leader() {
    gone "$NSPAWN" && fail "systemd-nspawn ended: $(tail -n 20 "$WORK/console")"
    LEADER=$(pgrep -P "$NSPAWN" | head -n 1) && [[ $LEADER != "$BEFORE" && $(cat "/proc/$LEADER/comm" 2>/dev/null) == systemd ]]
}

# `inside COMMAND…`: runs it in the machine, for at most LIMIT seconds.
inside() {
    timeout -k 5 "${LIMIT:-60}" nsenter --target "$LEADER" --mount --uts --ipc --net --pid -- \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

logs() {
    echo '--- the console'
    tail -n 20 "$WORK/console"
    echo '--- the journal'
    LIMIT=10 inside journalctl --no-pager --boot --lines=80 --output=short-monotonic
    LIMIT=10 inside systemctl status --no-pager --full 'pushgate*'
}

# Where the machine's own systemd boots in nspawn, with nothing of this machine but /usr, the Debian of below will.
can_boot() {
    ((EUID == 0)) || { echo 'that needs root'; return 1; }
    command -v apt-get >/dev/null || { echo 'there is no apt-get'; return 1; }
    command -v systemd-nspawn >/dev/null || install_packages systemd-container >&2
    command -v debootstrap >/dev/null || install_packages debootstrap >&2
    boot --volatile=yes --directory=/ systemd.unit=sysinit.target
    local code=0
    within 20 is_probed || code=1
    ((code == 0)) || { echo "systemd-nspawn does not boot: $(tail -n 3 "$WORK/console" | tr -s '[:space:]' ' ')"; }
    set +e
    halt
    set -e
    return "$code"
}

is_probed() {
    # An end would be a refusal here, not a failure.
    if gone "$NSPAWN"; then return 1; fi
    find_leader && [[ $(LIMIT=5 inside systemctl is-active sysinit.target 2>/dev/null) == active ]]
}

if [[ ${1:-} == --probe ]]; then
    if can_boot >"$WORK/reason"; then echo 'boot: systemd-nspawn boots here'; else echo "boot: $(<"$WORK/reason")"; exit 1; fi
    exit 0
fi
[[ $# == 0 ]] || fail "usage: tests/boot.sh [--probe]"

is_bootable() {
    case ${BOOT_PROBED:-} in
    yes) return 0 ;;
    '') say "whether systemd-nspawn boots here" && can_boot >"$WORK/reason" ;;
    *)
        printf '%s\n' "$BOOT_PROBED" >"$WORK/reason"
        return 1
        ;;
    esac
}

if ! is_bootable; then
    [[ ${REQUIRE_BOOT:-} != 1 ]] || fail "boot: $(<"$WORK/reason")"
    note "NOT RUN: boot ($(<"$WORK/reason"))"
    exit 0
fi

command -v jq >/dev/null || install_packages jq
command -v python3 >/dev/null || install_packages python3
require curl jq python3 nsenter findmnt
find_packages
debian_root "$MACHINE"

# --- what the steps ask

# `step NAME FUNCTION`: its name, what it says, and how long it took.
step() {
    local since=$SECONDS
    say "$1"
    "$2"
    STEPS+=("$(printf '%5ds  %s' $((SECONDS - since)) "$1")")
}

not_tried() {
    note "NOT RUN: boot: $1"
    STEPS+=("       NOT RUN: $1")
}

# A property of the service, as systemd has it.
property() { inside systemctl show --property="$1" --value "${2:-pushgate.service}"; }
is_active() { [[ $(property ActiveState) == active ]]; }
is_down() { [[ $(property ActiveState)/$(property SubState) == "$1" ]]; }
other_process() { is_active && [[ $(property MainPID) != "$1" ]]; }
is_ready() { [[ $(out curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:7002/readyz) == 200 ]]; }

# `out COMMAND…`: a program of this machine, on the machine's loopback.
out() { nsenter --target "$LEADER" --net -- "$@"; }

# `receive USER DEVICE SECONDS`: the first notification that comes, confirmed.
receive() { inside pushgate listen --config "$CONFIG" --user "$1" --device "$2" --count 1 --for "$3s" --json; }

mode_of() { inside stat -c '%a %U %G' "$1" 2>/dev/null || echo missing; }

# `has_mode PATH MODE OWNER GROUP`
has_mode() { [[ $(mode_of "$1") == "$2 $3 $4" ]] || fail "$1: mode, owner, group are $(mode_of "$1"), not $2 $3 $4"; }

start_machine() {
    boot --directory="$MACHINE"
    await_machine
}

await_machine() {
    within 60 find_leader || fail "the machine has no process 1"
    within 60 is_booted || fail "the machine does not come up: $(inside systemctl is-system-running; inside systemctl --failed --no-pager)"
}

is_booted() { [[ $(LIMIT=5 inside systemctl is-system-running 2>/dev/null) == running ]]; }

# --- the steps

install_deb() {
    cp "$DEB" "$MACHINE/root/pushgate.deb"
    # What it depends on is there; what it only recommends may be missing.
    inside dpkg --install /root/pushgate.deb
    [[ $(inside systemctl is-enabled pushgate.service) == disabled ]] || fail "the installation enables the service"
    is_down inactive/dead || fail "the installation starts the service"
    [[ $(property NRestarts) == 0 ]] || fail "the service was tried"
    has_mode /etc/pushgate 750 root pushgate
    has_mode /etc/default/pushgate 644 root root
    [[ $(mode_of "$CONFIG") == missing ]] || fail "the package brings a $CONFIG"
    inside getent passwd pushgate | grep -q ':/var/lib/pushgate:/usr/sbin/nologin$' || fail "there is no user pushgate"
    inside sh -c 'test -s /usr/share/man/man1/pushgate-send.1.gz && bash -n /usr/share/bash-completion/completions/pushgate'
}

# Enabled too early by somebody: it must not be tried for ever.
start_without_keys() {
    if inside systemctl start pushgate.service 2>/dev/null; then fail "it starts without a key"; fi
    within 60 is_down failed/failed || fail "without a key it is tried again and again: $(property SubState)"
    local restarts
    restarts=$(property NRestarts)
    ((restarts <= 5)) || fail "without a key it was tried $restarts times"
    # Nothing is pending that would try once more.
    inside systemctl list-jobs --no-legend | grep pushgate && fail "a job waits"
    inside systemctl reset-failed pushgate.service
    echo "failed and left alone after $restarts restarts"
}

init_and_start() {
    inside pushgate init >"$WORK/admin.token" 2>"$WORK/said"
    cat "$WORK/said"
    [[ -s $WORK/admin.token ]] || fail "there is no token"
    has_mode "$CONFIG" 640 root pushgate
    local next
    next=$(sed -n 's/^Next: //p' "$WORK/said")
    [[ $next == "systemctl enable --now pushgate" ]] || fail "the next command is $next"
    # As it stands there.
    # shellcheck disable=SC2086
    LIMIT=120 inside $next
    is_active || fail "it is not active"
    [[ $(inside systemctl is-enabled pushgate.service) == enabled ]] || fail "it is not enabled"
    within 10 is_ready || fail "it is not ready"
    has_mode /var/lib/pushgate 700 pushgate pushgate
    has_mode /run/pushgate 750 pushgate pushgate
    has_mode /run/pushgate/admin.sock 660 pushgate pushgate
    inside runuser -u pushgate -- pushgate doctor || fail "the doctor finds something"
    inside systemctl show --property=StatusText --value pushgate.service
}

send_and_receive() {
    inside pushgate send alice '{"n":"first"}' >/dev/null
    receive alice phone 20 >"$WORK/received"
    jq -e 'select(.data.n == "first")' "$WORK/received" >/dev/null || fail "it does not arrive: $(cat "$WORK/received")"
    # By its token over TCP, as a service on the same machine would.
    inside sh -c 'umask 077; cat >/root/admin.token' <"$WORK/admin.token"
    inside pushgate send --grpc 127.0.0.1:7001 --token-file /root/admin.token alice '{"n":"second"}' >/dev/null
    receive alice phone 20 >"$WORK/received"
    jq -e 'select(.data.n == "second")' "$WORK/received" >/dev/null || fail "it does not arrive: $(cat "$WORK/received")"
}

# A client that takes what comes and confirms nothing: its frames' texts are in $WORK/mute.
connect_mute() {
    local token
    token=$(inside pushgate token user --config "$CONFIG" --sub "$1" --ttl 1h)
    : >"$WORK/mute"
    # Without `out`, so that the id is curl's.
    nsenter --target "$LEADER" --net -- curl -sN --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
        -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H "Authorization: Bearer $token" \
        "http://127.0.0.1:7000/ws?device=$2" >"$WORK/mute" 2>/dev/null &
    MUTE=$!
    STARTED+=("$MUTE")
    within 10 grep -qa '"type":"auth_success"' "$WORK/mute" || fail "$1 cannot connect"
}

leave_mute() {
    kill "$MUTE" 2>/dev/null || true
    wait "$MUTE" 2>/dev/null || true
    forget "$MUTE"
}

kill_and_replay() {
    connect_mute bob phone
    inside pushgate send bob '{"n":"unconfirmed"}' >/dev/null
    within 10 grep -qa unconfirmed "$WORK/mute" || fail "it does not arrive"
    local before restarts
    before=$(property MainPID) restarts=$(property NRestarts)
    inside sh -c "kill -KILL $before"
    within 30 other_process "$before" || fail "it is not restarted"
    (($(property NRestarts) == restarts + 1)) || fail "that was $(property NRestarts) restarts, not $((restarts + 1))"
    leave_mute
    within 10 is_ready || fail "it is not ready"
    receive bob phone 20 >"$WORK/received"
    jq -e 'select(.data.n == "unconfirmed" and .replayed)' "$WORK/received" >/dev/null || fail "it does not come again: $(cat "$WORK/received")"
}

hang() {
    local watchdog before restarts
    watchdog=$(property WatchdogUSec)
    if [[ $watchdog == 0 || $watchdog == infinity ]]; then
        not_tried "SIGSTOP, then the watchdog: the unit has no WatchdogSec"
        return
    fi
    before=$(property MainPID) restarts=$(property NRestarts)
    inside sh -c "kill -STOP $before"
    local since=$SECONDS
    # A stopped process hears no signal but SIGKILL, which comes after TimeoutAbortSec (TimeoutStopSec where that is not set).
    within 180 other_process "$before" || fail "it hangs, and is not restarted; WatchdogUSec=$watchdog"
    (($(property NRestarts) == restarts + 1)) || fail "that was $(property NRestarts) restarts, not $((restarts + 1))"
    inside journalctl --no-pager --boot --unit=pushgate.service --grep='[Ww]atchdog' --lines=1 --output=cat || fail "that was not the watchdog"
    within 10 is_ready || fail "it is not ready"
    echo "restarted $((SECONDS - since)) s after it was stopped; WatchdogUSec=$watchdog"
}

reload() {
    local before
    before=$(property MainPID)
    connect_mute carol phone
    # A caller that is only in the file now.
    inside pushgate token admin --name reloaded --scopes send >"$WORK/reloaded.token" 2>"$WORK/block"
    inside sh -c 'umask 077; cat >/root/reloaded.token' <"$WORK/reloaded.token"
    inside sh -c "cat >>$CONFIG" <"$WORK/block"
    LIMIT=60 inside systemctl reload pushgate.service
    [[ $(property MainPID)/$(property ActiveState) == "$before/active" ]] || fail "a reload restarts it"
    inside pushgate send carol '{"n":"reloaded"}' >/dev/null
    within 10 grep -qa '"reloaded"' "$WORK/mute" || fail "a session does not outlive a reload"
    leave_mute
    if inside pushgate reload --help >/dev/null 2>&1; then
        inside pushgate send --grpc 127.0.0.1:7001 --token-file /root/reloaded.token carol '1' >/dev/null || fail "the new caller is not let in"
        # What is wrong changes nothing, and is said.
        inside cp "$CONFIG" /root/good.toml
        inside sh -c "printf '\n[heartbeat]\ninterval = \"soon\"\n' >>$CONFIG"
        if inside pushgate reload 2>"$WORK/said"; then fail "a wrong file is taken"; fi
        grep -q heartbeat "$WORK/said" || fail "it is not said what is wrong: $(cat "$WORK/said")"
        inside sh -c "cat /root/good.toml >$CONFIG"
        inside pushgate send --grpc 127.0.0.1:7001 --token-file /root/reloaded.token carol '2' >/dev/null || fail "a wrong file changes something"
    else
        not_tried "a reload of the configuration: there is no \`pushgate reload\`"
    fi
}

# Systemd holds the listeners: who connects during a restart waits, and is refused by nobody.
restart_under_connects() {
    local sockets token
    mapfile -t sockets < <(inside sh -c 'cd /usr/lib/systemd/system && ls pushgate*.socket 2>/dev/null')
    if ((${#sockets[@]} == 0)); then
        not_tried "socket activation across a restart under connects: there is no socket unit"
        return
    fi
    inside systemctl stop pushgate.service
    inside systemctl enable --now "${sockets[@]}"
    # The first connection starts it.
    within 60 is_ready || fail "a connection does not start it"
    within 60 is_active || fail "it is not active"
    token=$(inside pushgate token user --config "$CONFIG" --sub dora --ttl 1h)
    local round before
    : >"$WORK/connects"
    nsenter --target "$LEADER" --net -- python3 tests/boot/connects.py 127.0.0.1 7000 /ws "$token" "$WORK/connected" >"$WORK/connects" 2>&1 &
    local client=$! callers=() port
    STARTED+=("$client")
    # Callers and probes, too: whatever they are answered, somebody is there.
    for port in 7001 7002; do
        nsenter --target "$LEADER" --net -- python3 tests/boot/connects.py 127.0.0.1 "$port" /livez none "$WORK/connected" >"$WORK/connects-$port" 2>&1 &
        callers+=("$!")
        STARTED+=("$!")
    done
    for round in 1 2 3; do
        before=$(property MainPID)
        LIMIT=120 inside systemctl restart pushgate.service
        other_process "$before" || fail "round $round: it is not restarted"
    done
    within 10 is_ready || fail "it is not ready"
    : >"$WORK/connected"
    wait "$client" || fail "connects: $(cat "$WORK/connects")"
    forget "$client"
    cat "$WORK/connects"
    jq -e '.refused == 0 and .opened > 0' "$WORK/connects" >/dev/null || fail "connections were refused"
    for port in 7001 7002; do
        wait "${callers[0]}" || fail "connects to $port: $(cat "$WORK/connects-$port")"
        forget "${callers[0]}"
        callers=("${callers[@]:1}")
        jq -e '.refused == 0' "$WORK/connects-$port" >/dev/null || fail "connections to $port were refused: $(cat "$WORK/connects-$port")"
    done
}

stop_in_time() {
    local allowed since took
    allowed=$(inside systemctl show --property=TimeoutStopUSec --value pushgate.service)
    connect_mute emil phone
    # Sockets would start it again: they stop with it, and stay enabled.
    local sockets
    mapfile -t sockets < <(inside sh -c 'cd /usr/lib/systemd/system && ls pushgate*.socket 2>/dev/null')
    since=$(date +%s%N)
    LIMIT=120 inside systemctl stop pushgate.service "${sockets[@]}"
    took=$((($(date +%s%N) - since) / 1000000))
    [[ $(property Result)/$(property ExecMainCode)/$(property ExecMainStatus) == success/1/0 ]] ||
        fail "it does not end well: $(property Result), $(property ExecMainCode), $(property ExecMainStatus)"
    # shutdown.deadline, and a moment for systemd.
    ((took < 27000)) || fail "that took $took ms"
    grep -qa '"type":"draining"' "$WORK/mute" || fail "the session was not told"
    leave_mute
    echo "stopped in $took ms, with a session; TimeoutStopUSec=$allowed"
    if ((${#sockets[@]})); then inside systemctl start "${sockets[@]}"; fi
    inside systemctl start pushgate.service
}

upgrade() {
    local before
    inside sh -c "echo '# by the administrator' >>$CONFIG; echo PUSHGATE_LOG__FILTER=info >>/etc/default/pushgate"
    inside pushgate send frida '{"n":"upgrade"}' >/dev/null
    before=$(property MainPID)
    LIMIT=180 inside dpkg --install /root/pushgate.deb
    other_process "$before" || fail "an upgrade does not restart what runs"
    inside sh -c "grep -q 'by the administrator' $CONFIG && grep -q ^PUSHGATE_LOG /etc/default/pushgate" || fail "an upgrade changes the configuration"
    has_mode "$CONFIG" 640 root pushgate
    within 10 is_ready || fail "it is not ready"
    receive frida phone 20 >"$WORK/received"
    jq -e 'select(.data.n == "upgrade")' "$WORK/received" >/dev/null || fail "the store is lost: $(cat "$WORK/received")"
}

reboot_machine() {
    inside pushgate send gustav '{"n":"reboot"}' >/dev/null
    local boot_before boot_after
    boot_before=$(inside journalctl --list-boots --no-pager | wc -l)
    BEFORE=$LEADER
    inside systemctl reboot || true
    within 60 gone "$BEFORE" || fail "it does not go down"
    # nspawn boots it again by itself, or, where it has not made its own scope (--keep-unit), ends with 133 to be asked to.
    if within 5 gone "$NSPAWN"; then
        local code=0
        wait "$NSPAWN" || code=$?
        ((code == 133)) || fail "systemd-nspawn ended with $code: $(tail -n 20 "$WORK/console")"
        boot --directory="$MACHINE"
    fi
    await_machine
    within 30 is_active || fail "it does not start with the machine"
    within 10 is_ready || fail "it is not ready"
    boot_after=$(inside journalctl --list-boots --no-pager | wc -l)
    ((boot_after == boot_before + 1)) || fail "that was no reboot: $boot_before boots before, $boot_after after"
    receive gustav phone 20 >"$WORK/received"
    jq -e 'select(.data.n == "reboot")' "$WORK/received" >/dev/null || fail "the store is lost: $(cat "$WORK/received")"
}

remove_deb() {
    inside pushgate send hanna '{"n":"removed"}' >/dev/null
    LIMIT=120 inside dpkg --remove pushgate
    [[ $(property LoadState) == not-found || $(property ActiveState) == inactive ]] || fail "it runs on: $(property ActiveState)"
    inside sh -c '! grep -sqx pushgate /proc/[0-9]*/comm && ! test -e /usr/bin/pushgate && ! ls /usr/lib/systemd/system/pushgate* 2>/dev/null' || fail "something stays"
    has_mode "$CONFIG" 640 root pushgate
    inside ls -A /var/lib/pushgate | grep -q . || fail "the store is gone"
    # And back again: what was there is used.
    inside dpkg --install /root/pushgate.deb
    is_down inactive/dead || fail "the installation starts what was removed"
    LIMIT=120 inside systemctl start pushgate.service
    receive hanna phone 20 >"$WORK/received"
    jq -e 'select(.data.n == "removed")' "$WORK/received" >/dev/null || fail "the store is lost: $(cat "$WORK/received")"
}

purge_deb() {
    inside sh -c ': >/etc/pushgate/by-hand.pem'
    inside pushgate init --force >/dev/null 2>&1
    LIMIT=120 inside dpkg --purge pushgate
    [[ $(inside ls /etc/pushgate) == by-hand.pem ]] || fail "in /etc/pushgate there is $(inside ls /etc/pushgate)"
    local path
    for path in /var/lib/pushgate /run/pushgate /etc/default/pushgate; do
        [[ $(mode_of "$path") == missing ]] || fail "$path stays"
    done
    inside find /etc/systemd /var/lib/systemd -name 'pushgate*' | grep . && fail "systemd remembers it"
    inside rm -r /etc/pushgate
    # A new machine for whoever installs it again, and nothing of it where it is purged twice.
    inside dpkg --install /root/pushgate.deb
    inside dpkg --purge pushgate
    [[ $(mode_of /etc/pushgate) == missing ]] || fail "/etc/pushgate stays"
    [[ $(inside systemctl is-system-running) == running ]] || fail "something failed: $(inside systemctl --failed --no-pager)"
}

step "the machine boots" start_machine
step "the .deb is installed: neither enabled nor started" install_deb
step "started without a key, it fails and is left alone" start_without_keys
step "pushgate init, and the command that it names" init_and_start
step "send and receive" send_and_receive
step "kill -9: restarted, and what was not confirmed comes again" kill_and_replay
step "SIGSTOP: the watchdog has it restarted" hang
step "reload" reload
step "restarted under connects, none is refused" restart_under_connects
step "stopped within its deadline" stop_in_time
step "upgraded while it runs" upgrade
step "rebooted: started again, with its store" reboot_machine
step "removed: the data stays, and is used again" remove_deb
step "purged: nothing of it stays" purge_deb

note "boot: passed in $((SECONDS - BEGUN)) s"
for line in "${STEPS[@]}"; do note "$line"; done
