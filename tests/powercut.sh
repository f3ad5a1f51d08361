#!/usr/bin/env bash
# Power cuts: the daemon is killed in the middle of its work and started again on what it had synced, and on nothing else.
# Needs a C compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh

require cc
say "building"
quiet cc -shared -fPIC -O1 -Wall -Wextra -o "$WORK/faults.so" tests/support/faults.c -ldl
cargo test --locked --test faults --no-run

say "power cuts"
FAULTS_SHIM=$WORK/faults.so cargo test --locked --test faults -- --nocapture --test-threads 1 power:: |
    tee "$WORK/said"
grep -qE 'test result: ok\. 2 passed' "$WORK/said" || fail "not all of them were run"

say "powercut: passed"
