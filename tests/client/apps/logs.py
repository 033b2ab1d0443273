"""What containers print."""

import os
import sys
import time

import modal

app = modal.App("logs")


@app.function()
def talk():
    print("to stdout \u00fc\u4e16")
    print("to stderr \u00e9", file=sys.stderr)
    for i in range(500):
        print(f"out {i:03}")
        print(f"err {i:03}", file=sys.stderr)
    sys.stdout.write("partial ")
    sys.stdout.flush()
    time.sleep(0.1)
    print("line")
    snow = "\u2603".encode()
    os.write(1, b"split " + snow[:1])
    time.sleep(0.1)
    os.write(1, snow[1:2])
    time.sleep(0.1)
    os.write(1, snow[2:] + b" whole\n")
    os.write(1, b"bad [\xff\xfe] bytes\n")
    os.write(2, b"cut [\xe2\x98] short\n")
    os.system("echo from a child; echo from a child on stderr >&2")
    sys.stdout.write("the last line has no newline")
    sys.stdout.flush()


@app.function()
def slowly():
    print("first", flush=True)
    time.sleep(3)
    print("second", flush=True)


@app.function()
def much(lines):
    for i in range(lines):
        print(f"{i:07} " + "x" * 100)
    return lines


@app.local_entrypoint()
def all_kinds():
    talk.remote()


@app.local_entrypoint()
def live():
    slowly.remote()


@app.local_entrypoint()
def flood(lines: int = 20000):
    assert much.remote(lines) == lines
