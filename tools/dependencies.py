#!/usr/bin/env python3
"""Writes docs/dependencies.md from tools/packages.txt and the requirements: one place says what is needed and why.

    tools/dependencies.py [--check]      --check: exit 1 if the page is not what would be written
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = [("build", "To build"), ("run", "To run"), ("test", "For the tests"), ("bench", "For `make bench`"), ("lint", "For `make lint`"),
          ("fuzz", "For `make fuzz`")]
PYPI = {
    "modal": "the official client, unmodified; its wheel's descriptors are the protocol that we are built from, and its files are what containers get in /pkg",
    "python-dotenv": "what `Secret.from_dotenv` reads with, on the caller's side; for its test",
    "pytest": "runs the client tests; not needed to use Lydian",
}
HEAD = """# Dependencies

Made by `tools/dependencies.py` from `tools/packages.txt` and `tools/requirements*.txt`; edit those. `tools/setup.sh` installs from the same files.

Lydian's rule: libraries come from Debian 12 alone, each with a reason; nothing is vendored or downloaded by the build. At run time Lydian
fetches what users ask for: Debian packages and one source archive for base images, the client's wheels, image layers.
"""


def packages():
    for line in (ROOT / "tools/packages.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, groups, why = (x.strip() for x in line.split("|"))
            yield name, groups.split(), why


def page():
    out = [HEAD]
    for group, title in GROUPS:
        rows = [(n, w) for n, g, w in packages() if g[0] == group]
        if rows:
            out += [f"\n## {title} (Debian)\n\n| package | why |\n|---|---|\n"] + [f"| `{n}` | {w} |\n" for n, w in rows]
    out.append("\n## From PyPI, into `.venv`\n\n| package | why |\n|---|---|\n")
    for name in ("requirements.txt", "requirements-test.txt"):
        for line in (ROOT / "tools" / name).read_text().splitlines():
            if line and not line.startswith("#"):
                out.append(f"| `{line}` | {PYPI[line.split('==')[0]]} |\n")
    out.append("\nWhat the client itself depends on is pip's business: see `.venv/bin/pip list`.\n")
    return "".join(out)


def main():
    target = ROOT / "docs/dependencies.md"
    if "--check" in sys.argv:
        same = target.exists() and target.read_text() == page()
        print("docs/dependencies.md: " + ("ok" if same else "run make docs"))
        return not same
    target.write_text(page())


if __name__ == "__main__":
    sys.exit(main())
