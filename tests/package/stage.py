"""The last stage of a Dockerfile as JSON, for tests/package.sh: `stage.py DOCKERFILE`.

`run`: the shell's lines; `copy`: lists of paths, the last is where to; `user`; `entrypoint`, `cmd`, `healthcheck`: commands in exec
form. An instruction that it does not know is an error, so that none goes untried.
"""

import json
import re
import sys


def main():
    text = re.sub(r"^\s*#.*\n", "", open(sys.argv[1], encoding="utf-8").read(), flags=re.MULTILINE)
    stage = {}
    for line in filter(None, (line.strip() for line in text.replace("\\\n", " ").splitlines())):
        name, rest = line.split(None, 1)
        if name == "FROM":
            stage = {"run": [], "copy": [], "user": None, "entrypoint": [], "cmd": [], "healthcheck": []}
        elif name == "RUN":
            stage["run"].append(rest)
        elif name == "COPY":
            words = rest.split()
            stage["copy"].append([word for word in words if not word.startswith("--")])
        elif name == "USER":
            stage["user"] = rest
        elif name in ("ENTRYPOINT", "CMD"):
            stage[name.lower()] = json.loads(rest)
        elif name == "HEALTHCHECK":
            stage["healthcheck"] = json.loads(rest[rest.index("CMD") + 3 :])
        elif name not in ("WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL"):
            sys.exit(f"{sys.argv[1]}: {name} is not known")
    print(json.dumps(stage))


main()
