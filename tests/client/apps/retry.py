"""Attempts are counted by what they leave outside: each attempt prints a line."""

import os
import signal

import modal

app = modal.App("retry")


@app.function(retries=modal.Retries(max_retries=2, initial_delay=0.1, backoff_coefficient=1.0), max_containers=1)
def always(kind):
    print(f"attempt of {kind}", flush=True)
    if kind == "exception":
        raise ValueError("every time")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        os._exit(5)


@app.function(retries=modal.Retries(max_retries=3, initial_delay=0.1, backoff_coefficient=1.0), max_containers=1)
def third(path="/tmp/attempts"):
    with open(path, "a") as f:
        f.write("x")
    n = os.path.getsize(path)
    print(f"third's attempt {n}", flush=True)
    if n < 3:
        raise RuntimeError("not yet")
    return n


@app.function(max_containers=1)
def once():
    print("attempt of once", flush=True)
    os._exit(6)


@app.local_entrypoint()
def main():
    assert third.remote() == 3
    for kind, word in (("exception", "every time"), ("kill", "SIGKILL"), ("exit", "exit code 5")):
        try:
            always.remote(kind)
        except Exception as e:
            assert word in str(e), repr(e)
            assert (type(e) is ValueError) == (kind == "exception"), repr(e)
        else:
            raise AssertionError(kind)
    try:
        once.remote()
    except Exception as e:
        assert "exit code 6" in str(e), repr(e)
    else:
        raise AssertionError("once")
