#!/usr/bin/env python3
"""Writes the client's protocol, as a FileDescriptorSet, from the descriptors in the installed `modal` wheel.

    extract_descriptors.py OUT.pb [--version X.Y.Z]

protoc then reads it with --descriptor_set_in. Enum values named like <cstdio> macros are renamed (the wire has numbers
only), since the generated C++ would not compile.
"""

import argparse
import os
import sys

from google.protobuf import descriptor_pb2

STDIO_MACROS = {"SEEK_SET", "SEEK_CUR", "SEEK_END", "EOF", "stdin", "stdout", "stderr"}


def rename(enum):
    for value in enum.value:
        if value.name in STDIO_MACROS:
            value.name += "_"


def walk(message):
    for enum in message.enum_type:
        rename(enum)
    for nested in message.nested_type:
        walk(nested)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--version", help="fail unless this client version is installed")
    args = parser.parse_args()

    import modal_version
    from modal_proto import api_pb2, task_command_router_pb2

    if args.version and modal_version.__version__ != args.version:
        sys.exit(f"modal {modal_version.__version__} is installed, {args.version} is pinned: run `make setup` again")

    done, out = set(), descriptor_pb2.FileDescriptorSet()

    def add(file):
        if file.name in done:
            return
        done.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = out.file.add()
        file.CopyToProto(proto)
        for enum in proto.enum_type:
            rename(enum)
        for message in proto.message_type:
            walk(message)

    add(api_pb2.DESCRIPTOR)
    add(task_command_router_pb2.DESCRIPTOR)
    data = out.SerializeToString()
    temporary = f"{args.out}.tmp{os.getpid()}"
    with open(temporary, "wb") as f:
        f.write(data)
    os.rename(temporary, args.out)


if __name__ == "__main__":
    main()
