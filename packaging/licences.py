"""The licences and notices of the crates that are in the binary: `licences.py FEATURES`, to standard output.

Every crate that Cargo compiles into it for this machine, with the licence that it names; then each file of its sources that
has a licence or a notice, equal texts once. A crate without one is listed with its licence's name alone. Needs Python 3.9
and the sources that Cargo has fetched.
"""

import json
import pathlib
import re
import subprocess
import sys

NOTICE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    features = sys.argv[1] if len(sys.argv) > 1 else ""
    tree = cargo("tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--features", features)
    compiled = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--features", features))
    crates, texts = [], {}
    for package in sorted(metadata["packages"], key=lambda package: (package["name"], package["version"])):
        name = f"{package['name']} {package['version']}"
        if package["source"] is None or (package["name"], f"v{package['version']}") not in compiled:
            continue
        crates.append(f"{name}: {package['license'] or 'see its text'}")
        for file in sorted(pathlib.Path(package["manifest_path"]).parent.iterdir()):
            if file.is_file() and NOTICE.match(file.name):
                text = file.read_text(encoding="utf-8", errors="replace").strip()
                texts.setdefault(text, []).append(f"{name} ({file.name})")
    if len(crates) < 50:
        sys.exit(f"only {len(crates)} crates were found")
    print("The crates that pushgate's binary contains, and what they are under.\n")
    print("\n".join(crates))
    for text, owners in texts.items():
        print("\n" + "-" * 80 + "\n" + "\n".join(owners) + "\n\n" + text)


main()
