"""How many containers a function has, and how many inputs each takes. test_containers.py runs the entrypoints; those that must wait
for something in the logs do so at the FIFO named by GATE."""

import asyncio
import os
import threading
import time

import modal

app = modal.App("containers")


def task():
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=10_000)
def full(xs, ys):
    return [(x + y, len(xs)) for x, y in zip(xs, ys)]


@app.function()
@modal.batched(max_batch_size=4, wait_ms=50)
async def lone(xs):
    await asyncio.sleep(0)
    return [(x, len(xs)) for x in xs]


@app.function(max_containers=1)
@modal.batched(max_batch_size=3, wait_ms=10_000)
def broken(xs):
    if "raise" in xs:
        raise ValueError(sorted(xs))
    return xs[1:]


@app.cls(max_containers=1)
class Batcher:
    by: int = modal.parameter(default=10)

    @modal.batched(max_batch_size=2, wait_ms=10_000)
    def times(self, xs):
        return [(self.by * x, len(xs)) for x in xs]


class Crowd:
    """Who is in at once, in one container."""

    def __init__(self, size):
        self.size, self.lock, self.here, self.most = size, threading.Lock(), 0, 0
        self.met = threading.Barrier(size)

    def __enter__(self):
        with self.lock:
            self.here += 1
            self.most = max(self.most, self.here)

    def __exit__(self, *_):
        with self.lock:
            self.here -= 1


threads, tasks, burst = Crowd(4), Crowd(5), Crowd(3)


@app.function(max_containers=1)
@modal.concurrent(max_inputs=4)
def in_threads(x):
    with threads:
        threads.met.wait(30)  # four must be here, or none gets on
        return x, task(), threads.most, modal.current_input_id(), modal.current_function_call_id()


gather = None


@app.function(max_containers=1)
@modal.concurrent(max_inputs=5)
async def in_tasks(x):
    global gather
    gather = gather or asyncio.Barrier(5)
    with tasks:
        async with asyncio.timeout(30):
            await gather.wait()
        return x, task(), tasks.most, modal.current_input_id(), threading.get_ident()


@app.function(max_containers=1)
@modal.concurrent(max_inputs=3, target_inputs=1)
def bursting(x):
    with burst:
        burst.met.wait(30)
        return task()


@app.cls(max_containers=2)
@modal.concurrent(max_inputs=4, target_inputs=1)
class Spread:
    @modal.enter()
    def begin(self):
        print("one of two is up", flush=True)

    @modal.method()
    def wait(self):
        time.sleep(60)


@app.function(max_containers=2)
def at_most_two(x):
    time.sleep(0.1)
    return task()


@app.function(single_use_containers=True)
def single(x):
    return task()


@app.function()
def quick_or_slow(seconds):
    time.sleep(seconds)
    return task()


@app.cls(min_containers=1, scaledown_window=2)
class Warm:
    @modal.enter()
    def begin(self):
        print(f"warm {task()}", flush=True)

    @modal.method()
    def where(self):
        return task()


@app.cls(scaledown_window=2)
class Idle:
    @modal.method()
    def where(self):
        return task()

    @modal.exit()
    def end(self):
        print(f"idle {task()} leaves", flush=True)


@app.cls(buffer_containers=1)
class Buffered:
    @modal.enter()
    def begin(self):
        print(f"buffered {task()} is up", flush=True)

    @modal.method()
    def wait(self):
        time.sleep(60)


def wait_here():
    with open(os.environ["GATE"]) as gate:
        assert gate.readline() == "go\n"


def raised(kind, op):
    try:
        value = op()
    except kind as e:
        return e
    raise AssertionError(f"{kind} was not raised; got {value!r}")


@app.local_entrypoint()
def batches():
    assert list(full.map(range(8), range(8))) == [(2 * i, 4) for i in range(8)], "two full batches, each output to its own input"
    assert lone.remote(7) == (7, 1), "one that stays alone goes when its time is over"
    assert sorted(x for x, _ in lone.map(range(30), order_outputs=False)) == list(range(30))
    assert list(Batcher(by=3).times.map(range(4))) == [(3 * i, 2) for i in range(4)]
    got = list(broken.map(["a", "raise", "b"], return_exceptions=True))
    assert [e.args for e in got] == [(["a", "b", "raise"],)] * 3, got
    got = list(broken.map(["a", "b", "c"], return_exceptions=True))
    assert all(isinstance(e, Exception) and "equal length" in str(e) for e in got) and len(got) == 3, got


@app.local_entrypoint()
def concurrent():
    got = list(in_threads.map(range(8)))
    assert [x for x, *_ in got] == list(range(8)) and len({t for _, t, *_ in got}) == 1 and {m for _, _, m, *_ in got} == {4}, got
    assert len({i for *_, i, _ in got}) == 8 and all(i.startswith("in-") for *_, i, _ in got), "each thread sees its own input"
    assert len({c for *_, c in got}) == 1 and got[0][4].startswith("fc-"), "and their common call"
    got = list(in_tasks.map(range(10)))
    assert [x for x, *_ in got] == list(range(10)) and {m for _, _, m, *_ in got} == {5}, got
    assert len({i for *_, i, _ in got}) == 10 and len({t for *_, t in got}) == 1, "one thread, each task sees its own input"
    assert len(set(bursting.map(range(6)))) == 1, "beyond the target where there may be no other container"


@app.local_entrypoint()
def target():
    calls = [Spread().wait.spawn() for _ in range(2)]
    wait_here()
    for call in calls:
        call.cancel(terminate_containers=True)


@app.local_entrypoint()
def counts():
    where = list(at_most_two.map(range(24)))
    assert len(set(where)) <= 2, where
    assert len({single.remote(i) for i in range(2)} | set(single.map(range(2)))) == 4, "each input a container of its own"
    slow = quick_or_slow.spawn(60)
    for _ in range(3):
        quick_or_slow.remote(0)  # not behind the slow one, though it was there first
    slow.cancel(terminate_containers=True)


@app.local_entrypoint()
def lives():
    wait_here()  # a container is up that nobody asked for
    print(f"served by {Warm().where.remote()}")
    first = Idle().where.remote()
    assert Idle().where.remote() == first
    Buffered().wait.spawn()
    wait_here()  # it left while the app goes on, and two are up for one input
    assert Idle().where.remote() != first
    print(f"served by {Warm().where.remote()}")
