"""One long-lived client of one server. Reads orders from stdin, answers each with a line of JSON.

    calls N      N warm calls one after the other: every time in milliseconds, the client's CPU
    map N        one map of N no-op inputs through two containers
    idle         nothing: answers when asked, for interleaving
"""

import json
import sys
import time

import modal

app = modal.App("bench")


@app.function(max_containers=1)
def noop(x=None):
    return 1


@app.function(max_containers=2)
def pair(x=None):
    return 1


def calls(n):
    times, cpu = [], time.process_time()
    for i in range(n):
        t0 = time.perf_counter()
        noop.remote(i)
        times.append(round((time.perf_counter() - t0) * 1e3, 4))
    return {"times_ms": times, "client_cpu_us": (time.process_time() - cpu) / n * 1e6}


def mapped(n):
    t0, cpu = time.perf_counter(), time.process_time()
    got = sum(1 for _ in pair.map(range(n)))
    wall = time.perf_counter() - t0
    assert got == n
    return {"n": n, "wall_s": wall, "per_s": n / wall, "client_cpu_us": (time.process_time() - cpu) / n * 1e6}


if __name__ == "__main__":
    with app.run():
        for i in range(20):
            noop.remote(i)
        list(pair.map(range(100)))  # both containers are up
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            word, *rest = line.split()
            result = {"calls": calls, "map": mapped, "idle": lambda: {}}[word](*map(int, rest))
            print(json.dumps(result), flush=True)
