#!/usr/bin/env python3
"""Writes docs/compatibility.md: every RPC of the client's protocol, what Lydian does with it, and which test shows it; then the
features of the client that have a test.

    .venv/bin/python tools/compatibility.py [--methods FILE] [--check]

What is registered comes from the router's own table (`lydian internal methods`: a line "service method kind" for each); --methods
reads it from a file instead. An RPC counts as built when a run of the client tests has seen it answered with OK, which the router records
(tests/client/answered.txt, written by `pytest tests/client --record`); registered ones that were not are named, and end --check with 1.
Where a test of an RPC or a feature is comes from the tests' markers `rpc` and `feature`.
"""

import argparse
import ast
import collections
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICES = {"modal.client.ModalClient": "modal_proto.api_pb2", "modal.task_command_router.TaskCommandRouter": "modal_proto.task_command_router_pb2"}
AREAS = [  # by the beginning of the name; the first that fits
    ("App", "Apps"), ("Function", "Functions and calls"), ("Attempt|Map", "Functions and calls: input plane (not used by this server)"), ("Class", "Classes"),
    ("Image", "Images"), ("Mount", "Mounts"), ("Blob", "Blobs"), ("Secret", "Secrets"), ("Volume", "Volumes"), ("SharedVolume", "Network file systems"),
    ("Dict", "Dicts"), ("Queue", "Queues"), ("Sandbox", "Sandboxes"), ("ContainerFilesystem|ContainerExec", "Sandboxes"), ("TaskResult|TaskCurrentInputs", "Containers"),
    ("Container", "Containers"), ("Task", "Tasks and exec"), ("Environment|Workspace", "Environments and workspaces"), ("Token|OAuth|AuthToken|Service", "Tokens"),
    ("Client|Cli", "Client"), ("Tunnel|Flash|Domain|Proxy", "Web and network"), ("Cluster", "Clusters"), ("", "Other"),
]


def declared():
    """{(service, method): kind} from the wheel's descriptors."""
    out = {}
    for service, module in SERVICES.items():
        descriptor = __import__(module, fromlist=["DESCRIPTOR"]).DESCRIPTOR.services_by_name[service.rsplit(".", 1)[1]]
        for m in descriptor.methods:
            kind = {(0, 0): "unary", (0, 1): "server stream", (1, 0): "client stream", (1, 1): "bidi"}[bool(m.client_streaming), bool(m.server_streaming)]
            out[service, m.name] = kind
    return out


def built(path):
    if path:
        text = Path(path).read_text()
    else:
        text = subprocess.run([ROOT / "build/src/bin/lydian", "internal", "methods"], capture_output=True, text=True, check=True).stdout
    return {tuple(line.split()[:2]) for line in text.splitlines() if line.strip()}


def answered():
    return {tuple(line.split("/")) for line in (ROOT / "tests/client/answered.txt").read_text().split()}


def tests():
    """RPC -> tests, feature -> tests, from the markers in tests/client."""
    rpcs, features = collections.defaultdict(list), collections.OrderedDict()
    for file in sorted((ROOT / "tests/client").glob("test_*.py")):
        tree = ast.parse(file.read_text())
        whole = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "pytestmark"]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for call in [d for d in node.decorator_list if isinstance(d, ast.Call)] + [v for v in whole if isinstance(v, ast.Call)]:
                    mark = getattr(call.func, "attr", "")
                    names = [x.strip() for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str) for x in a.value.split(", ")]
                    for name in names:
                        if mark == "rpc" and file.name not in rpcs[name]:
                            rpcs[name].append(file.name)
                        if mark == "feature":
                            features.setdefault(name, []).append(f"{file.name}::{node.name}")
    return rpcs, features


def area(name):
    return next(title for start, title in AREAS if re.match(start, name))


def page(registered):
    methods = registered & answered()
    everything, (rpcs, features) = declared(), tests()
    version = __import__("modal_version").__version__
    counts = collections.Counter(s for s, m in everything if (s, m) in methods)
    out = [f"# Compatibility with the modal client {version}\n\nMade by `tools/compatibility.py` (`make docs`) from the client's own descriptors, the router's table and the "
           "RPCs that a run of the client tests saw answered with OK: only those are called built. Any other answers UNIMPLEMENTED with its feature and "
           "what to do instead.\n\n| service | RPCs | built |\n|---|---|---|\n"]
    for s in SERVICES:
        out.append(f"| `{s}` | {sum(1 for x, _ in everything if x == s)} | {counts[s]} |\n")
    out.append("\n## What works, by the test that shows it\n\n| feature | test |\n|---|---|\n")
    for name, where in sorted(features.items(), key=lambda x: x[0].lower()):
        out.append(f"| {name} | {', '.join(f'`{w}`' for w in where[:3])}{' …' if len(where) > 3 else ''} |\n")
    for s in SERVICES:
        groups = collections.defaultdict(list)
        for (service, name), kind in everything.items():
            if service == s:
                groups[area(name)].append((name, kind))
        out.append(f"\n## `{s}`\n")
        for title in dict.fromkeys(t for _, t in AREAS):
            if title in groups:
                out.append(f"\n### {title}\n\n| RPC | kind | built | test |\n|---|---|---|---|\n")
                for name, kind in sorted(groups[title]):
                    out.append(f"| {name} | {kind} | {'yes' if (s, name) in methods else ''} | {', '.join(f'`{f}`' for f in rpcs.get(name, []))} |\n")
    unknown = sorted(set(rpcs) - {m for _, m in everything})
    if unknown:
        sys.exit(f"tests name RPCs that the protocol does not have: {', '.join(unknown)}")
    return "".join(out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", help="a file with the router's table")
    p.add_argument("--check", action="store_true", help="exit 1 if the page is not what would be written")
    a = p.parse_args()
    registered = built(a.methods)
    text, target = page(registered), ROOT / "docs/compatibility.md"
    untested = sorted("/".join(x) for x in registered - answered() if x[0] in SERVICES)
    for name in untested:
        print(f"{name} has a handler, and no test had it answered with OK")
    if a.check:
        same = target.exists() and target.read_text() == text
        print("docs/compatibility.md: " + ("ok" if same else "run make docs"))
        return not same or bool(untested)
    target.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
