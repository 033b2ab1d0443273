"""How things go wrong, and that the next call works."""

import os
import signal
import sys
import traceback

import modal

app = modal.App("errors")


class Refused(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


@app.function()
def fails(kind):
    if kind == "custom":
        raise Refused(41)
    if kind == "value":
        deeper("bad value")
    sys.exit(3)


def deeper(text):
    raise ValueError(text)


@app.function(max_containers=1)
def dies(how):
    print(f"dying by {how}", flush=True)
    if how == "exit":
        os._exit(3)
    if how == "exit 0":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    return "alive"


@app.function(memory=(128, 256), max_containers=1)
def eats(mib):
    held = [bytearray(b"x") * (1 << 20) for _ in range(mib)]
    return len(held)


def raised(kind, op):
    try:
        value = op()
    except kind as e:
        return e
    raise AssertionError(f"{kind} was not raised; got {value!r}")


@app.local_entrypoint()
def exceptions():
    e = raised(Refused, lambda: fails.remote("custom"))
    assert e.code == 41 and type(e) is Refused
    e = raised(ValueError, lambda: fails.remote("value"))
    assert e.args == ("bad value",)
    text = "".join(traceback.format_exception(e))
    assert "in deeper" in text and "in fails" in text and "errors.py" in text, text
    assert raised(SystemExit, lambda: fails.remote("exit")).code == 3
    assert dies.remote("not") == "alive"


def says(e, *words):
    for w in words:
        assert w in str(e), f"{w!r} is not in {e!r}"


@app.local_entrypoint()
def deaths():
    says(raised(Exception, lambda: dies.remote("exit")), "exit code 3", "dies")
    assert dies.remote("not") == "alive"
    says(raised(Exception, lambda: dies.remote("kill")), "SIGKILL", "9", "dies")
    says(raised(Exception, lambda: dies.remote("segv")), "SIGSEGV", "11", "dies")
    says(raised(Exception, lambda: dies.remote("exit 0")), "exit", "dies")
    assert dies.remote("not") == "alive"


@app.local_entrypoint()
def memory():
    assert eats.remote(50) == 50
    says(raised(Exception, lambda: eats.remote(600)), "out of memory", "256 MiB", "eats")
    assert eats.remote(50) == 50


@app.local_entrypoint()
def uncaught():
    fails.remote("value")
