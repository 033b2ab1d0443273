"""Calls that nobody waits for at once: their results, their cancelling, their time limits. test_background.py runs the entrypoints.

Where a call must have begun before something else happens, the entrypoint waits at a FIFO that the test writes to when it has seen the
call's line in the logs."""

import asyncio
import os
import sys
import threading
import time

import modal

app = modal.App("background")


@app.function()
def square(x):
    return x * x


@app.function()
def family(n):
    return sum(square.remote(i) for i in range(n))


@app.function()
def fails(x):
    raise KeyError(x)


@app.function(max_containers=1)
def gated(what):
    """Runs alone: a second input waits for the first."""
    print(f"{what} begins", flush=True)
    try:
        time.sleep(60 if what.startswith("long") else 0)
    finally:
        print(f"{what} cleans up", flush=True)
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1)
async def gated_async(what):
    print(f"{what} begins", flush=True)
    try:
        await asyncio.sleep(60 if what.startswith("long") else 0)
    finally:
        print(f"{what} cleans up", flush=True)
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1, timeout=1)
def limited(how):
    if how == "sleeps":
        time.sleep(60)
    if how == "is deaf":
        for _ in range(10):  # whatever interrupts it, it goes on
            try:
                time.sleep(60)
            except BaseException:
                pass
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1, timeout=1)
async def limited_async(how):
    if how == "sleeps":
        await asyncio.sleep(60)
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1, timeout=1)
@modal.concurrent(max_inputs=2)
def limited_threads(seconds):
    threading.Event().wait(seconds)
    return seconds


@app.cls(startup_timeout=1)
class Late:
    @modal.enter()
    def begin(self):
        threading.Event().wait(60)

    @modal.method()
    def work(self):
        return 1


def raised(kind, op):
    try:
        value = op()
    except kind as e:
        return e
    raise AssertionError(f"{kind} was not raised; got {value!r}")


def wait_here():
    with open(os.environ["GATE"]) as gate:  # until the test opens it
        assert gate.readline() == "go\n"


@app.local_entrypoint()
def results():
    call = square.spawn(9)
    assert call.get(timeout=30) == 81 and call.get() == 81, "a result can be fetched again"
    assert modal.FunctionCall.from_id(call.object_id).get(timeout=0) == 81
    assert call.num_inputs() == 1
    assert modal.FunctionCall.gather(*(square.spawn(i) for i in range(10))) == [i * i for i in range(10)]
    failing = fails.spawn("k")
    for _ in range(2):
        assert raised(KeyError, failing.get).args == ("k",)
    raised(KeyError, lambda: modal.FunctionCall.gather(square.spawn(1), failing))
    many = square.experimental_spawn_map(range(120))
    assert many.num_inputs() == 120 and many.get(index=7) == 49
    assert list(many.iter()) == [i * i for i in range(120)] and list(many.iter(start=100, end=103)) == [10000, 10201, 10404]
    waiting = gated.spawn("long")
    began = time.monotonic()
    raised(TimeoutError, lambda: waiting.get(timeout=0))
    assert time.monotonic() - began < 5
    raised(TimeoutError, lambda: waiting.get(timeout=0.3))
    assert [(x.function_name, x.status.name) for x in call.get_call_graph()] == [("square", "SUCCESS")]
    parent = family.spawn(3)
    assert parent.get(timeout=30) == 0 + 1 + 4
    (root,) = parent.get_call_graph()
    assert root.function_name == "family" and [(c.function_name, c.status.name) for c in root.children] == [("square", "SUCCESS")] * 3, root
    raised(modal.exception.NotFoundError, lambda: modal.FunctionCall.from_id("fc-" + "0" * 26).get(timeout=0))
    print("SPAWNED", call.object_id, failing.object_id)


@app.local_entrypoint()
async def results_async():
    calls = [await square.spawn.aio(i) for i in range(5)]
    assert await modal.FunctionCall.gather.aio(*calls) == [0, 1, 4, 9, 16]
    assert await calls[3].get.aio(timeout=5) == 9


@app.local_entrypoint()
def cancels(terminate: bool = False):
    for function in (gated, gated_async):
        kind = "async" if function is gated_async else "sync"
        before = function.remote(f"{kind} before")
        running, queued = function.spawn(f"long {kind}"), function.spawn(f"long queued {kind}")
        wait_here()
        stats = function.get_current_stats()
        assert (stats.backlog, stats.num_running_inputs, stats.num_total_runners, stats.input_headroom) == (1, 1, 1, 0), stats
        queued.cancel()
        running.cancel(terminate_containers=terminate)
        for call in (running, queued):
            e = raised(Exception, lambda call=call: call.get(timeout=20))
            assert not isinstance(e, TimeoutError) and "cancel" in str(e), repr(e)
            call.cancel()  # again: no harm
        after = function.remote(f"{kind} after")
        assert (after == before) is not terminate, "the container goes on with the next call, unless it was to be terminated"
    print("finished", file=sys.stderr)


@app.local_entrypoint()
def timeouts():
    began = time.monotonic()
    late = Late().work.spawn()
    threads = [limited_threads.spawn(60), limited_threads.spawn(0.1)]
    calls = limited.spawn("sleeps"), limited.spawn("is deaf"), limited_async.spawn("sleeps"), threads[0]
    for call in calls:
        e = raised(modal.exception.FunctionTimeoutError, call.get)
        assert "1 s" in str(e) and "limited" in str(e), repr(e)
    assert threads[1].get() == 0.1, "another input of the same container"
    assert 1 <= time.monotonic() - began < 30
    for function in (limited, limited_async):
        assert function.remote("is quick").startswith("ta-"), "the next call works"
    e = raised(Exception, late.get)
    assert "startup timeout of 1 s" in str(e) and "Late" in str(e), repr(e)


@app.function(max_containers=1, retries=0)
def slowly(x):
    time.sleep(0.1)
    return x


@app.local_entrypoint()
def crowd():
    """More calls than may be queued: each is made when there is room."""
    async def make():
        calls = await asyncio.gather(*(slowly.spawn.aio(i) for i in range(30)))
        return await asyncio.gather(*(call.get.aio() for call in calls), *(slowly.remote.aio(100 + i) for i in range(15)))
    got = asyncio.run(make())
    assert got == [*range(30), *range(100, 115)], got
