"""Cargo.lock and what Cargo says of it, held against deny.toml: tests/supply.sh calls it.

First the rules are tried on copies that were tampered with: of each it must say what is wrong, and nothing else. Then on
what is there. Exit code 1 where something is not allowed, or a rule does not see what it should.

Reads deny.toml as cargo-deny does, as far as it is used there; a key that it does not know is a violation, so that nothing
is left unchecked without a word. Licences and wildcards: every crate that Cargo resolves for the targets of [graph], with
build and development dependencies. Bans: every crate that is compiled for one of them. Sources, advisories and yanked
versions: every crate of Cargo.lock. Needs Python 3.11 and nothing beside it.
"""

import copy
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

# After so many days a look-up of advisories is warned of.
ADVISORY_DAYS_MAX = 180

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The keys of deny.toml that are understood; a tuple is all the values that are.
KNOWN = {
    "graph": {"targets": None, "all-features": (True, False)},
    "advisories": {"version": (2,), "yanked": ("deny",), "ignore": None},
    # The confidence is for guessing a licence from its text. Here nothing is guessed: a crate says what it is under.
    "licenses": {"version": (2,), "confidence-threshold": None, "allow": None},
    "bans": {"multiple-versions": ("allow",), "wildcards": ("deny",), "deny": None},
    "sources": {"unknown-registry": ("deny",), "unknown-git": ("deny",), "allow-registry": None, "allow-git": None},
}


class Inputs:
    """All that is looked at. `resolved`: packages by id; `compiled`: (name, version); `yanked`: what Cargo warns of."""

    def __init__(self, deny, lock, advisories, resolved, members, compiled, yanked):
        self.deny, self.lock, self.advisories = deny, lock, advisories
        self.resolved, self.members, self.compiled, self.yanked = resolved, members, compiled, yanked


# Licences: SPDX expressions (SPDX 2.3, annex D), and the `/` of old manifests, which means OR.


def permits(expression, allowed):
    """Whether the expression can be met by what is allowed. Raises ValueError where it is none."""
    words = re.findall(r"[()]|[A-Za-z0-9.+:-]+|\S", expression.replace("/", " OR "))

    def take(wanted):
        if words and words[0] == wanted:
            return words.pop(0)
        return None

    def either():
        met = both()
        while take("OR"):
            met = both() or met
        return met

    def both():
        met = one()
        while take("AND"):
            met = one() and met
        return met

    def one():
        if take("("):
            met = either()
            if not take(")"):
                raise ValueError("a parenthesis is open")
            return met
        name = identifier()
        # A licence with an exception is another one, and must be allowed as such.
        return (f"{name} WITH {identifier()}" if take("WITH") else name) in allowed

    def identifier():
        if not words or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+:-]*", words[0]) or words[0] in ("AND", "OR", "WITH"):
            raise ValueError(f"a licence is missing before {' '.join(words) or 'the end'}")
        return words.pop(0)

    met = either()
    if words:
        raise ValueError(f"not understood from {' '.join(words)} on")
    return met


def licences(inputs):
    allowed = set(inputs.deny["licenses"]["allow"])
    for package in inputs.resolved.values():
        name, expression = f"{package['name']} {package['version']}", package["license"]
        if not expression:
            yield f"licences: {name} does not say which it has; nothing is known that allows it"
            continue
        try:
            if not permits(expression, allowed):
                yield f"licences: {name}: `{expression}` cannot be met by what deny.toml allows"
        except ValueError as error:
            yield f"licences: {name}: `{expression}` is no SPDX expression: {error}"


# Bans.


def bans(inputs):
    for entry in inputs.deny["bans"].get("deny", []):
        name = entry.get("crate")
        if set(entry) - {"crate", "reason"} or not re.fullmatch(r"[A-Za-z0-9_-]+", name or ""):
            yield f"deny.toml: bans.deny: {entry} is not understood; write crate = \"name\" and reason"
            continue
        for found, version in sorted(inputs.compiled):
            if found == name:
                yield f"bans: {name} {version} is compiled: {entry.get('reason', 'denied')}"
    for package in inputs.resolved.values():
        for needed in package["dependencies"]:
            # What a published crate is tested with is none of ours.
            foreign = package["id"] not in inputs.members
            if needed["req"] == "*" and not (foreign and needed["kind"] == "dev"):
                yield f"bans: {package['name']} {package['version']} takes any version of {needed['name']} (`*`)"


# Sources.


def sources(inputs):
    rules = inputs.deny["sources"]
    ours = {inputs.resolved[member]["name"] for member in inputs.members}
    for package in inputs.lock["package"]:
        name, source = f"{package['name']} {package['version']}", package.get("source")
        if source is None:
            if package["name"] not in ours:
                yield f"sources: {name} comes from a folder"
            continue
        kind, _, address = source.partition("+")
        if kind == "git":
            if address.split("?")[0].split("#")[0] not in rules["allow-git"]:
                yield f"sources: {name} comes from {source}"
        elif kind not in ("registry", "sparse") or address not in rules["allow-registry"]:
            yield f"sources: {name} comes from {source}"
        elif not re.fullmatch(r"[0-9a-f]{64}", package.get("checksum", "")):
            yield f"sources: {name} has no checksum in Cargo.lock"


# Advisories.


def order(text):
    """A version that can be compared (Semantic Versioning 2.0.0, 11)."""
    numbers, _, pre = text.split("+")[0].partition("-")
    parts = [int(part) for part in numbers.split(".")]
    marks = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".") if part]
    return (parts + [0, 0])[:3], 0 if marks else 1, marks


def matches(version, requirement):
    """Whether a version meets all comparisons of a requirement. One with fewer numbers stands for all that begin so."""
    for part in requirement.split(","):
        found = re.fullmatch(r"\s*(>=|>|<=|<|=|\^)\s*([0-9]+(?:\.[0-9]+){0,2}(?:-[0-9A-Za-z.-]+)?)\s*", part)
        if not found:
            raise ValueError(f"`{requirement}` is no requirement")
        sign, text = found.groups()
        given = len(text.partition("-")[0].split("."))
        have, bound = order(version), order(text)
        same = have[0][:given] == bound[0][:given] and (given < 3 or have == bound)
        kept = next((at for at, number in enumerate(bound[0]) if number), given - 1) + 1
        met = {
            ">=": have >= bound,
            ">": have > bound and not same,
            "<=": have < bound or same,
            "<": have < bound,
            "=": same,
            "^": have >= bound and have[0][:kept] == bound[0][:kept],
        }[sign]
        if not met:
            return False
    return True


def advisories(inputs):
    locked = [(package["name"], package["version"]) for package in inputs.lock["package"]]
    ignored = {}
    for entry in inputs.deny["advisories"].get("ignore", []):
        name = entry.get("id", "?") if isinstance(entry, dict) else entry
        ignored[name] = False
        dated = re.match(r"(\d{4}-\d{2}-\d{2}): \S", entry.get("reason", "")) if isinstance(entry, dict) else None
        try:
            datetime.date.fromisoformat(dated.group(1) if dated else "")
        except ValueError:
            yield f"deny.toml: advisories.ignore: {name} needs a reason that begins with its date, `2026-01-31: why`"
    for advisory in inputs.advisories["advisory"]:
        harmless = advisory["patched"] + advisory.get("unaffected", [])
        for name, version in locked:
            if name == advisory["crate"] and not any(matches(version, one) for one in harmless):
                if advisory["id"] in ignored:
                    ignored[advisory["id"]] = True
                else:
                    yield f"advisories: {name} {version}: {advisory['id']}: {advisory['about']}"
    for name, used in ignored.items():
        if not used:
            yield f"deny.toml: advisories.ignore: {name} concerns nothing in Cargo.lock (any more); take it out"


def stale(text, today):
    """What to warn of where the advisories were last looked up too long ago: the last date of their head says when."""
    head = "\n".join(line for line in text.split("[[advisory]]")[0].splitlines() if line.startswith("#"))
    dates = [datetime.date.fromisoformat(found) for found in re.findall(r"\d{4}-\d{2}-\d{2}", head)]
    if not dates:
        return "the head of tests/supply/advisories.toml does not say when they were looked up (`2026-01-31`)"
    days = (today - max(dates)).days
    if days <= ADVISORY_DAYS_MAX:
        return None
    return f"tests/supply/advisories.toml was looked up {days} days ago, on {max(dates)}; look the crates up anew"


def yanked(inputs):
    for line in inputs.yanked.splitlines():
        if "yanked" in line:
            yield f"advisories: {line.strip().removeprefix('warning: ')}"


def configuration(inputs):
    for section, keys in inputs.deny.items():
        for key, value in keys.items():
            if key not in KNOWN.get(section, {}):
                yield f"deny.toml: {section}.{key} is not understood by tests/supply/check.py"
            elif KNOWN[section][key] is not None and value not in KNOWN[section][key]:
                yield f"deny.toml: {section}.{key} = {value!r} is not understood by tests/supply/check.py"
    for section, keys in KNOWN.items():
        for key in keys:
            if key not in inputs.deny.get(section, {}) and key != "confidence-threshold":
                yield f"deny.toml: {section}.{key} is missing"


def violations(inputs):
    """All of them, in order; what concerns two targets once."""
    unknown = list(configuration(inputs))
    if any(line.endswith("is missing") for line in unknown):
        return unknown
    found = unknown
    for rule in (licences, bans, sources, advisories, yanked):
        found += rule(inputs)
    return list(dict.fromkeys(found))


# What Cargo says.


def cargo(*arguments, folder=ROOT):
    """Its output, and what it said beside it. It must succeed."""
    # Its words are read: no colours, and none of a caller's own settings of them.
    environment = os.environ | {"CARGO_TERM_COLOR": "never", "CARGO_TERM_QUIET": "false", "CARGO_TERM_VERBOSE": "false"}
    done = subprocess.run(
        [os.environ.get("CARGO", "cargo"), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"FAILED: cargo {' '.join(arguments)}:\n{done.stderr}")
    return done.stdout, done.stderr


def compiled(tree):
    """The crates of `cargo tree --prefix none --format {p}`: a line each, `name v1.2.3 (what else)`."""
    return {tuple(line.replace(" v", " ", 1).split()[:2]) for line in tree.splitlines() if line.strip()}


def yanked_words(folder):
    """What Cargo warns of when it packs: it asks the registry about each locked version then."""
    with tempfile.TemporaryDirectory() as target:
        arguments = ["package", "--no-verify", "--allow-dirty", "--locked", "--target-dir", target]
        said = cargo(*arguments, folder=folder)[1]
    if "Packaged" not in said:
        sys.exit(f"FAILED: cargo package does not say that it is done:\n{said}")
    return said


def read():
    deny = tomllib.loads((ROOT / "deny.toml").read_text())
    features = ["--all-features"] if deny["graph"]["all-features"] else []
    resolved, members, built = {}, set(), set()
    for target in deny["graph"]["targets"]:
        arguments = ["metadata", "--locked", "--format-version", "1", *features, "--filter-platform", target]
        metadata = json.loads(cargo(*arguments)[0])
        nodes = {node["id"] for node in metadata["resolve"]["nodes"]}
        resolved |= {package["id"]: package for package in metadata["packages"] if package["id"] in nodes}
        members |= set(metadata["workspace_members"])
        arguments = ["tree", "--locked", *features, "--edges", "normal,build,dev", "--target", target]
        built |= compiled(cargo(*arguments, "--prefix", "none", "--format", "{p}")[0])
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    known = tomllib.loads((ROOT / "tests/supply/advisories.toml").read_text())
    # A copy that came without anything would pass.
    if min(len(resolved), len(built), len(lock["package"]), len(known["advisory"])) < 30:
        sys.exit("FAILED: Cargo names fewer than 30 crates, which this package never had")
    return Inputs(deny, lock, known, resolved, members, built, yanked_words(ROOT))


# The self-test.

# The registry that deny.toml allows.
REGISTRY = "registry+" + tomllib.loads((ROOT / "deny.toml").read_text())["sources"]["allow-registry"][0]


def locked(inputs, name):
    return next(package for package in inputs.lock["package"] if package["name"] == name)


def resolved(inputs, name):
    return next(package for package in inputs.resolved.values() if package["name"] == name)


def tampered():
    """What is done to the copy, and what must be said of it: a part of each line."""

    def licence(text):
        return lambda inputs: resolved(inputs, "tokio").update(license=text)

    def source(text):
        return lambda inputs: locked(inputs, "tokio").update(source=text)

    def version(name, text):
        return lambda inputs: locked(inputs, name).update(version=text)

    def wildcard(kind):
        return lambda inputs: resolved(inputs, "tokio")["dependencies"].append({"name": "any", "req": "*", "kind": kind})

    def deny(section, key, value):
        return lambda inputs: inputs.deny[section].update({key: value})

    def ignore(**entry):
        return lambda inputs: inputs.deny["advisories"]["ignore"].append(entry)

    no = "cannot be met"
    yield "a copyleft licence", licence("GPL-3.0-only"), [no]
    yield "one of two may be chosen", licence("GPL-3.0-only OR MIT"), []
    yield "the old sign for it", licence("GPL-3.0/MIT"), []
    yield "both are asked for", licence("MIT AND GPL-3.0-only"), [no]
    yield "AND binds before OR", licence("GPL-3.0-only AND MIT OR GPL-2.0-only"), [no]
    yield "parentheses before both", licence("(GPL-3.0-only OR MIT) AND Apache-2.0"), []
    yield "an exception is another licence", licence("Apache-2.0 WITH LLVM-exception"), [no]
    yield "a later version is another licence", licence("MIT+"), [no]
    yield "no licence", licence(None), ["does not say which"]
    yield "an expression that ends early", licence("MIT OR"), ["no SPDX expression"]
    yield "an expression with something behind it", licence("MIT Apache-2.0"), ["no SPDX expression"]
    for banned in ("openssl-sys", "native-tls", "ring"):
        line = f"{banned} v1.2.3\n"
        yield f"{banned} is compiled", lambda inputs, line=line: inputs.compiled.update(compiled(line)), [f"bans: {banned}"]
    yield "a crate whose name only begins so", lambda inputs: inputs.compiled.add(("ring-buffer", "1.0.0")), []
    yield "any version of a dependency", wildcard(None), ["takes any version of any"]
    yield "any version where it is built", wildcard("build"), ["takes any version of any"]
    yield "any version in the tests of others", wildcard("dev"), []
    yield "a git source", source("git+https://example.org/tokio?rev=1#0123"), ["comes from git+"]
    yield "another registry", source("registry+https://example.org/index"), ["comes from registry+"]
    yield "a folder", lambda inputs: locked(inputs, "tokio").pop("source"), ["comes from a folder"]
    yield "no checksum", lambda inputs: locked(inputs, "tokio").pop("checksum"), ["no checksum"]
    yield "a version with an advisory", version("rustls", "0.23.44"), ["RUSTSEC-2026-0285"]
    yield "a version from before the mistake", version("rustls", "0.23.12"), []
    yield "a version of an older line that was mended", version("tokio", "1.43.9"), []
    yield "a version between lines that were mended", version("tokio", "1.44.1"), ["RUSTSEC-2025-0023"]
    yield "a caret", version("tungstenite", "0.20.0"), ["RUSTSEC-2023-0065"]
    yield "a preview of what is mended", version("zlib-rs", "0.4.0-rc.1"), ["RUSTSEC-2024-0401"]
    yield "an old line by its caret", version("h2", "0.3.26"), ["RUSTSEC-2026-0258"]
    yield "nothing is ignored", deny("advisories", "ignore", []), ["RUSTSEC-2024-0384", "RUSTSEC-2025-0057"]
    yield "ignored, and it concerns nothing", ignore(id="RUSTSEC-2024-0332", reason="2026-11-21: why"), ["concerns nothing"]
    undated = [{"id": "RUSTSEC-2025-0057", "reason": "later"}, {"id": "RUSTSEC-2024-0384", "reason": "2026-13-01: no month"}]
    yield "ignored without a date", deny("advisories", "ignore", undated), ["reason that begins", "reason that begins"]
    gone = lambda inputs: inputs.lock["package"].remove(locked(inputs, "fxhash"))
    yield "ignored, and the crate has gone", gone, ["RUSTSEC-2025-0057 concerns nothing"]
    yield "a key that is not understood", deny("bans", "skip", []), ["bans.skip is not understood"]
    yield "a value that is not understood", deny("bans", "wildcards", "allow"), ["bans.wildcards"]
    yield "a key is missing", lambda inputs: inputs.deny["sources"].pop("unknown-git"), ["sources.unknown-git is missing"]


def yanked_for_real():
    """What Cargo says of a yanked version in a registry that is made up, in a folder."""
    with tempfile.TemporaryDirectory() as made:
        made = pathlib.Path(made)
        package, index = made / "package", made / "registry/index/ma/de"
        for folder in (package / "src", package / ".cargo", index):
            folder.mkdir(parents=True)
        row = {"name": "made-up", "vers": "1.0.0", "deps": [], "cksum": "0" * 64, "features": {}, "yanked": True}
        (index / "made-up").write_text(json.dumps(row) + "\n")
        (package / ".cargo/config.toml").write_text(
            f'[source.crates-io]\nreplace-with = "made-up"\n[source.made-up]\nlocal-registry = "{made}/registry"\n'
        )
        (package / "Cargo.toml").write_text(
            '[package]\nname = "package"\nversion = "0.1.0"\nedition = "2024"\n[dependencies]\nmade-up = "1"\n'
        )
        (package / "src/lib.rs").write_text("")
        (package / "Cargo.lock").write_text(
            f'version = 4\n\n[[package]]\nname = "made-up"\nversion = "1.0.0"\nsource = "{REGISTRY}"\n'
            f'checksum = "{"0" * 64}"\n\n[[package]]\nname = "package"\nversion = "0.1.0"\ndependencies = ["made-up"]\n'
        )
        return yanked_words(package)


def self_test(inputs):
    """Each tampered copy has its violations more than the real one, and no other. How many did not."""
    before = violations(inputs)
    cases = list(tampered())
    words = yanked_for_real()
    cases.append(("a yanked version", lambda inputs: setattr(inputs, "yanked", words), ["made-up v1.0.0"]))
    failed = 0
    for name, change, wanted in cases:
        tried = copy.deepcopy(inputs)
        change(tried)
        found = [line for line in violations(tried) if line not in before]
        if len(found) != len(wanted) or not all(part in line for part, line in zip(wanted, found)):
            failed += 1
            print(f"FAILED: {name}: wanted {wanted}, found {found}", file=sys.stderr)
    for text, today, wanted in [
        ("# found on 2026-01-01.\n[[advisory]]\n# 2030-01-01", "2026-06-30", None),
        ("# found on 2026-01-01.\n[[advisory]]\n# 2030-01-01", "2026-07-01", "181 days ago"),
        ("# found on 2025-01-01, and\n# on 2026-01-01.\n", "2026-07-01", "on 2026-01-01"),
        ("# found.\n[[advisory]]\n", "2026-01-01", "does not say when"),
    ]:
        found = stale(text, datetime.date.fromisoformat(today))
        cases.append((f"advisories of {today}", None, wanted))
        if (found is None) != (wanted is None) or (wanted and wanted not in found):
            failed += 1
            print(f"FAILED: advisories on {today}: wanted {wanted}, found {found}", file=sys.stderr)
    print(f"self-test: {len(cases) - failed} of {len(cases)} tampered copies and dates were told from the real ones")
    return failed


def main():
    inputs = read()
    if self_test(inputs):
        return 1
    warning = stale((ROOT / "tests/supply/advisories.toml").read_text(), datetime.date.today())
    if warning:
        print(f"WARNING: {warning}", file=sys.stderr)
    found = violations(inputs)
    for line in found:
        print(f"NOT ALLOWED: {line}", file=sys.stderr)
    print(
        f"{len(inputs.lock['package'])} crates in Cargo.lock, {len(inputs.resolved)} resolved and {len(inputs.compiled)} "
        f"compiled for {len(inputs.deny['graph']['targets'])} targets, held against {len(inputs.advisories['advisory'])} "
        f"advisories of tests/supply/advisories.toml: {len(found)} violations"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
