#!/usr/bin/env bash
# What takes bytes from strangers, fuzzed: tests/fuzz.sh [TARGET...], FUZZ_SECONDS for each (20), as many at a time as there
# are cores. CONTRIBUTING.md, "Fuzzing", has the rest of what it takes from the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec cargo test --locked --quiet --features fuzzing --test fuzz -- "$@"
