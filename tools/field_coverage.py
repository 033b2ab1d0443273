#!/usr/bin/env python3
"""Which fields of the client's requests are looked at: walks every request message of every RPC that is built, and the messages in it.

    .venv/bin/python tools/field_coverage.py [--methods FILE]

A field is accounted for when the code of the API calls its accessor (it is read, or refused by name), or when src/api/fields.txt says why it may be
ignored. Exit 1: a field is neither; or the table names a field that doesn't exist, or one that is read by now. An accessor is found by its name alone,
so a name that several messages have counts for all of them: the table can say more ("Message.field  read nowhere, because ...") with a "!" in front.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from modal_proto import api_pb2

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "src/api/fields.txt"
SOURCES = [*ROOT.glob("src/api/*.cc"), *ROOT.glob("src/worker/guest_api*.cc"), *ROOT.glob("src/worker/task_job.cc")]


def accessors():
    """Names of fields for which some code calls .name(), ->has_name(), .name_size() and the like."""
    text = "\n".join(f.read_text() for f in SOURCES if not f.stem.endswith("_test"))
    names = set(re.findall(r"(?:\.|->)(?:has_|mutable_)?(\w+)\(", text))
    return names | {n.removesuffix("_size") for n in names}


def built(path):
    text = Path(path).read_text() if path else subprocess.run(
        [ROOT / "build/src/bin/lydian", "internal", "methods"], capture_output=True, text=True, check=True).stdout
    return {line.split()[1] for line in text.splitlines() if line.startswith("modal.client.ModalClient ")}


def requests(methods):
    """{message name: descriptor} of the requests of these methods and of all messages in them."""
    found = {}

    def walk(message):
        name = message.full_name
        if name in found or not name.startswith("modal.client."):
            return
        if not message.GetOptions().map_entry:
            found[name] = message
        for field in message.fields:
            if field.message_type:
                walk(field.message_type)
    for method in api_pb2.DESCRIPTOR.services_by_name["ModalClient"].methods:
        if method.name in methods:
            walk(method.input_type)
    return {name.removeprefix("modal.client."): message for name, message in found.items()}


def table():
    """{(message, field or "*"): reason}"""
    entries = {}
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        m = re.fullmatch(r"([\w.]+)\.(\w+|\*)\s{2,}(\S.*)", line)
        if not m or m.groups()[:2] in entries:
            sys.exit(f"{TABLE.relative_to(ROOT)}:{number}: not 'Message.field  reason', or there twice")
        entries[m[1], m[2]] = m[3]
    return entries


def problems(methods):
    messages, entries, read = requests(methods), table(), accessors()
    for name, message in messages.items():
        fields = [f.name for f in message.fields]
        listed = {f for m, f in entries if m == name}
        for field in sorted(listed - set(fields) - {"*"}):
            yield f"{name}.{field} is listed and doesn't exist"
        for field in fields:
            called = field.lower() in read or field.lower() + "_" in read  # "default" is default_() in C++
            forced = entries.get((name, field), "").startswith("!")
            if field in listed and called and not forced:
                yield f"{name}.{field} is listed as ignored, and something reads a field of that name"
            if field not in listed and "*" not in listed and not called:
                yield f"{name}.{field} is sent by clients, and nothing reads it, refuses it or says why not"
    for name in sorted({m for m, _ in entries} - set(messages)):
        yield f"{name} is listed, and no request has it"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", help="a file with the router's table")
    found = list(problems(built(p.parse_args().methods)))
    for problem in found:
        print(problem)
    print(f"{TABLE.relative_to(ROOT)}: " + (f"{len(found)} problems" if found else "ok"))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
