"""Holds docs/operations.md to the program: python3 tests/support/handbook.py [BINARY], in a clone's folder.

Without a build: each warning and error that the source can write is a row of "What the log says", at its level, and each row is in
the source; each `runbook` of the alert rules and each key of `[alerts]` has its heading, and each heading its alert; links lead
somewhere, also those to that page; keys and metrics that it names are in the tables of README.md and docs/metrics.md. With the
binary: each command that it shows is one, with those flags.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = "docs/operations.md"
problems = []


def text(path):
    return (ROOT / path).read_text()


def without_comments(rust):
    """The same with comments blanked out, so that lines stay where they are; strings are left alone."""
    token = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.[^\']*|[^\'\\])\'|//[^\n]*|/\*.*?\*/', re.S)
    return token.sub(lambda one: re.sub(r"[^\n]", " ", one[0]) if one[0].startswith("/") else one[0], rust)


def arguments(rust, begin):
    """What stands between the parenthesis before `begin` and the one that closes it, split at its own commas."""
    found, depth, at, last = [], 0, begin, begin
    while True:
        if rust[at] == '"':
            at = re.compile(r'"(?:\\.|[^"\\])*"', re.S).match(rust, at).end()
            continue
        if rust[at] in ")]}" and depth == 0:
            return [*found, rust[last:at].strip()]
        if rust[at] == "," and depth == 0:
            found.append(rust[last:at].strip())
            last = at + 1
        depth += (rust[at] in "([{") - (rust[at] in ")]}")
        at += 1


def logged():
    """The messages of the source with their levels, and where they stand."""
    messages = {}
    for path in sorted((ROOT / "src").rglob("*.rs")):
        if path.stem == "tests" or "tests" in path.parts[len(ROOT.parts) :]:
            continue
        rust = without_comments(re.split(r"\n#\[cfg\(test\)\]\nmod \w+ \{", path.read_text())[0])
        for call in re.finditer(r"\b(warn|error)!\s*\(", rust):
            where = f"{path.relative_to(ROOT)}:{rust.count(chr(10), 0, call.start()) + 1}"
            # Fields come first, so the first argument that is nothing but text is the message.
            literals = [one for one in arguments(rust, call.end()) if one.startswith('"')]
            if not literals:
                problems.append(f"{where}: a {call[1]}! without a message of its own, which nobody could look up")
                continue
            message = re.sub(r"\\\n\s*", "", literals[0][1:-1]).replace('\\"', '"').replace("\\\\", "\\")
            messages.setdefault((message, call[1]), where)
    return messages


def section(page, heading):
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.S | re.M)[1]


def anchors(path):
    """As GitHub makes them of headings."""
    page = re.sub(r"^```.*?^```", "", text(path), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.*)$", page, re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def check_log(page):
    rows = re.findall(r"^\| `(.+?)` \| (\w+) \| (.*?) \| (.*?) \|$", section(page, "What the log says"), re.M)
    shown = [(message, level) for message, level, *_ in rows]
    messages = logged()
    for (message, level), where in messages.items():
        if (message, level) not in shown:
            problems.append(f"{PAGE} lacks a row of its log table: | `{message}` | {level} | … ({where})")
    for row in shown:
        if row not in messages:
            problems.append(f"{PAGE} has a row of its log table that is not in the source: | `{row[0]}` | {row[1]} |")
        if shown.count(row) > 1:
            problems.append(f"{PAGE} has a row twice: | `{row[0]}` | {row[1]} |")
    return len(shown)


def check_alerts(page):
    rules = text("ops/prometheus/pushgate.rules.yml")
    of_rules = set(re.findall(r"^ +- alert: (\w+)$", rules, re.M))
    of_daemon = set(re.findall(r"^\| `alerts\.(\w+)`", text("README.md"), re.M)) - {"fire_after", "clear_after", "clear_below"}
    for heading, expected in (("Prometheus' alerts", of_rules), ("The gateway's own alerts", of_daemon)):
        headings = set(re.findall(r"^### `?(\w+)`?$", section(page, heading), re.M))
        problems.extend(f'{PAGE} lacks the alert {one} under "{heading}"' for one in sorted(expected - headings))
        problems.extend(f'{PAGE} has an alert under "{heading}" that there is not: {one}' for one in sorted(headings - expected))
    for target in re.findall(r"^ +runbook: (.*)$", rules, re.M):
        path, _, anchor = target.partition("#")
        if path != PAGE or anchor not in anchors(PAGE):
            problems.append(f"ops/prometheus/pushgate.rules.yml: the runbook {target} is not there")
    return len(of_rules) + len(of_daemon)


def check_links():
    count = 0
    for path in ("docs/operations.md", "docs/metrics.md", "README.md"):
        page = re.sub(r"^```.*?^```", "", text(path), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)\s]+)\)", page):
            if re.match(r"[a-z]+:", target):
                continue
            count += 1
            file, _, anchor = target.partition("#")
            whole = (ROOT / path).parent / file if file else ROOT / path
            if not whole.exists():
                problems.append(f"{path}: there is no file {target}")
            elif anchor and whole.suffix == ".md" and anchor not in anchors(whole):
                problems.append(f"{path}: no heading for {target}")
    return count


def check_names(page):
    """Keys of the configuration and metrics, by the tables that other tests hold to the program."""
    readme, metrics = text("README.md"), text("docs/metrics.md")
    sections = "http ws grpc ops auth store delivery heartbeat presence limits events alerts topics clients shutdown drain log"
    for key in sorted(set(re.findall(rf"`((?:{sections.replace(' ', '|')})\.[a-z_.]+)(?: = [^`]*)?`", page))):
        if f"`{key}" not in readme:
            problems.append(f"{PAGE}: the key {key} is not in README.md")
    for name in sorted(set(re.findall(r"\bpushgate_[a-z_]{4,}", page))):
        if f"`{name}`" not in metrics:
            problems.append(f"{PAGE}: the metric {name} is not in docs/metrics.md")


def check_commands(page, binary):
    """Lines of `sh` blocks and code that begins with `pushgate`: the command is there, and takes each flag."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.S | re.M))
    lines = re.findall(r"(?:^|sudo |-u pushgate )(pushgate [a-z][^\n|#]*)", blocks, re.M)
    rest = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    lines += re.findall(r"`(?:sudo )?(?:-u pushgate )?(pushgate [a-z][^`|]*)`", re.sub(r"\s+", " ", rest))
    helped = {}

    def help_of(*command):
        if command not in helped:
            ran = subprocess.run([binary, *command, "--help"], capture_output=True, text=True, check=False)
            helped[command] = ran.stdout if ran.returncode == 0 else None
        return helped[command]

    lines = dict.fromkeys(line.strip() for line in lines)
    for line in lines:
        words = line.split()[1:]
        command = words[:1]
        if help_of(*command) is None:
            problems.append(f"{PAGE}: there is no command `{line}`")
            continue
        subcommands = re.search(r"^Commands:\n(.*?)\n\n", help_of(*command), re.S | re.M)
        if subcommands and len(words) > 1:
            command = words[:2]
            if help_of(*command) is None:
                problems.append(f"{PAGE}: there is no command `{line}`")
                continue
        for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*", line):
            if not re.search(rf"^ +(?:-\w, )?{flag}\b", help_of(*command), re.M):
                problems.append(f"{PAGE}: `{line}` has a flag that there is not: {flag}")
    return len(lines)


def main():
    page = text(PAGE)
    counts = {"messages": check_log(page), "alerts": check_alerts(page), "links": check_links()}
    check_names(page)
    if len(sys.argv) > 1:
        counts["commands"] = check_commands(page, sys.argv[1])
    for problem in problems:
        print(problem, file=sys.stderr)
    print(json.dumps(counts))
    # Should the page or the source be laid out otherwise one day, nothing found is no success.
    return 1 if problems or min(counts.values()) < 20 else 0


sys.exit(main())
