#!/usr/bin/env bash
# What a failing disk does to the daemon: a sync that fails, a sync that hangs, a file system without room. Needs a C
# compiler, and the right to mount a tmpfs in a namespace of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

require cc unshare mount
say "building"
quiet cc -shared -fPIC -O1 -Wall -Wextra -o "$WORK/faults.so" tests/support/faults.c -ldl
cargo test --locked --test faults --no-run
export FAULTS_SHIM=$WORK/faults.so

# `faults FILTER`: the tests of that name, which print what they counted. None at all is a failure.
faults() {
    cargo test --locked --test faults -- --nocapture --test-threads 1 "$@" | tee "$WORK/said"
    grep -qE 'test result: ok\. [1-9]' "$WORK/said" || fail "no test was run: $*"
}
export -f faults fail
export WORK

say "syncs that fail and syncs that hang"
faults sync::

# A mount of its own, which goes with its processes.
unshared=(unshare --mount)
if ((EUID != 0)); then unshared=(unshare --map-root-user --mount); fi
mkdir "$WORK/disk"
export FAULTS_DISK=$WORK/disk
"${unshared[@]}" mount -t tmpfs -o size=32m tmpfs "$FAULTS_DISK" || fail "a tmpfs cannot be mounted here, and it is needed"
for size in 32 48; do
    say "a disk of $size MiB without room"
    "${unshared[@]}" bash -euo pipefail -c "mount -t tmpfs -o size=${size}m tmpfs '$FAULTS_DISK'; faults full::"
done

say "faults: passed"
