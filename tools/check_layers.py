#!/usr/bin/env python3
"""Checks who includes whom: a module may include only from those that its CMakeLists.txt names in USES, and USES only from
modules above it. Prints each edge that breaks a rule. Also: the client's generated headers only where the design allows, and
nobody with rights on the host opens a path below a tree that a tenant made, but image/tree and image/copy_upper."""

import re
import sys
from pathlib import Path

ORDER = "base os rpc store blob sched solver image lazyfs runtime snapshot spawner build control api gateway worker cli bin".split()
NEVER = {
    "control": {"lazyfs", "runtime", "snapshot", "spawner", "build"},
    "api": {"lazyfs", "runtime", "snapshot", "spawner", "build"},
    "gateway": {"lazyfs", "runtime", "snapshot", "spawner", "build"},
    "runtime": {"image", "blob", "rpc", "lazyfs"},
    "sched": {"os", "rpc", "store", "blob"},
    "worker": {"control", "api", "gateway"},
}
CLIENT_HEADERS = re.compile(r"^(api/[^/]+\.cc|gateway/asgi_codec\.cc|worker/(guest_api|exec)_[^/]+\.cc)$")

# A layer's path or a transaction's upper with something put behind it; a walk by the standard library, which follows links.
TENANT_MODULES = {"build", "image", "worker"}
TENANT_PATH = re.compile(r'(\.|->)path\s*\+|"/upper|/fs"|recursive_directory_iterator|[^_]dir\(\)\s*\+')
# Who may: what looks at trees, the store that keeps them, and what makes trees of our own (bases, the launcher).
TENANT_FILES = {"image/tree.cc", "image/copy_upper.cc", "image/layer_store_folders.cc", "build/bases.cc", "build/step_runner.cc",
                "worker/worker.cc"}


def uses(folder):
    text = (folder / "CMakeLists.txt").read_text()
    found = re.search(r"USES\s+([^)]*?)(?:LIBS|EXCLUDE|\))", text, re.S)
    return set(found.group(1).split()) if found else set()


def main():
    src, bad = Path(__file__).resolve().parent.parent / "src", []
    for module in sorted(d.name for d in src.iterdir() if (d / "CMakeLists.txt").exists()):
        if module not in ORDER:
            bad.append(f"{module}: not in the list of modules")
            continue
        allowed = uses(src / module)
        for other in allowed:
            if other not in ORDER or ORDER.index(other) >= ORDER.index(module):
                bad.append(f"{module} -> {other}: not above it (src/{module}/CMakeLists.txt)")
            if other in NEVER.get(module, ()):
                bad.append(f"{module} -> {other}: forbidden (src/{module}/CMakeLists.txt)")
        for file in sorted((src / module).glob("*.[ch]*")):
            name = str(file.relative_to(src))
            for n, line in enumerate(file.read_text().splitlines(), 1):
                if module in TENANT_MODULES and name not in TENANT_FILES and not name.endswith("_test.cc"):
                    if TENANT_PATH.search(line.split("//")[0]):
                        bad.append(f"a path below a tree that a tenant may have made: src/{name}:{n} (use image::Tree or lydian-stage)")
                m = re.match(r'\s*#include "([^"/]+)/', line)
                if m and m.group(1) in ORDER and m.group(1) != module and m.group(1) not in allowed:
                    bad.append(f"{module} -> {m.group(1)}: not in USES ({file.relative_to(src)}:{n})")
                if "modal_proto/" in line and line.lstrip().startswith("#include"):
                    if not CLIENT_HEADERS.match(str(file.relative_to(src))) and not file.name.endswith("_test.cc"):
                        bad.append(f"the client's header in {file.relative_to(src)}:{n}: only in the files that the design names")
    for line in bad:
        print(line)
    print(f"layers: {len(bad)} broken" if bad else "layers: ok")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
