"""Work that says what it does, for tests that kill things meanwhile."""

import time

import modal

app = modal.App("faults")


@app.function(max_containers=2)
def work(i, seconds=0.2):
    print(f"ran {i}.", flush=True)
    time.sleep(seconds)
    return i * i


@app.function(max_containers=1)
def talks(lines):
    for i in range(lines):
        print(f"line {i}.", flush=True)
        time.sleep(0.1)
    return "done talking"


@app.function(max_containers=1)
def sleeps(seconds):
    print("sleeping", flush=True)
    time.sleep(seconds)
    return "woke"


@app.local_entrypoint()
def mapping(count: int = 60, seconds: float = 0.2):
    got = list(work.map(range(count), kwargs={"seconds": seconds}))
    assert got == [i * i for i in range(count)], got
    print("DELIVERED", len(got))


@app.local_entrypoint()
def talking(lines: int = 80):
    print("RESULT", talks.remote(lines))


@app.local_entrypoint()
def sleeping(seconds: float = 100):
    print("RESULT", sleeps.remote(seconds))
