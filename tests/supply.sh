#!/usr/bin/env bash
# What is depended on, held against deny.toml: licences, banned crates, sources, advisories, yanked versions.
#
# tests/supply/check.py does that by what Cargo says. Where cargo-deny is installed (`cargo install --locked cargo-deny`)
# it looks as well, at the whole database of advisories if that can be fetched. What was not looked at is said at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf -- '-- %s\n' "$*"; }
# What the summary of .ci/run is to say as well.
note() {
    say "$*"
    printf '%s\n' "$*" >>"${CI_NOTES:-/dev/null}"
}

python3 -c 'import tomllib' || { echo 'FAILED: Python 3.11 or newer is needed' >&2; exit 1; }

say "deny.toml by tests/supply/check.py"
python3 tests/supply/check.py

not_run=
if cargo deny --version >/dev/null 2>&1; then
    say "deny.toml by $(cargo deny --version)"
    cargo deny --locked check bans licenses sources
    if cargo deny --locked fetch db; then
        cargo deny --locked check advisories
    else
        not_run='the advisory database cannot be fetched'
    fi
else
    not_run='cargo-deny is not installed'
fi
if [[ -n $not_run ]]; then
    note "NOT RUN: supply: the whole database of advisories ($not_run); only those of tests/supply/advisories.toml were looked for"
fi
say "supply: passed"
