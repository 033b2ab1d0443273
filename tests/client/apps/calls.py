"""Ways to call. Each entrypoint asserts on values; test_calls.py runs them."""

import asyncio
import os
import sys
import time

import modal

app = modal.App("calls")


@app.function()
def square(x, plus=0):
    return x * x + plus


@app.function()
def add(a, b):
    return a + b


@app.function()
def note(x):
    print(f"noted {x}", flush=True)


@app.function()
def where():
    return {"pid": os.getpid(), "local": modal.is_local(), "task": os.environ["MODAL_TASK_ID"], "call": modal.current_function_call_id(),
            "input": modal.current_input_id(), "file": __file__}


@app.function()
async def later(x):
    await asyncio.sleep(0.01)
    return x + 1


@app.function()
def outer(n):
    return sum(square.map(range(n))) + square.remote(n)


@app.function()
def fib(n):
    return n if n < 2 else fib.remote(n - 1) + fib.remote(n - 2)


@app.function(serialized=True)
def pickled(x):
    return x + 1


@app.function()
def maybe(x):
    if x % 3 == 0:
        raise ValueError(x)
    return x


@app.function(max_containers=1)
def slow(seconds):
    print("slow begins", flush=True)
    time.sleep(seconds)
    print("slow ends", flush=True)
    return "slept"


@app.local_entrypoint()
def remote():
    assert square.local(5) == 25
    assert square.remote(12) == 144
    assert square.remote(2, plus=5) == 9
    w = where.remote()
    assert not w["local"] and w["pid"] != os.getpid() and w["task"].startswith("ta-") and len(w["task"]) == 29, w
    assert w["call"].startswith("fc-") and w["input"].startswith("in-") and w["file"].endswith("/root/calls.py"), w
    assert where.remote()["task"] == w["task"], "a warm container serves the second call"
    assert add.remote("a", "b") == "ab"


@app.local_entrypoint()
def maps():
    assert list(square.map(range(200))) == [i * i for i in range(200)]
    assert sorted(square.map(range(50), order_outputs=False)) == [i * i for i in range(50)]
    assert list(square.map([], order_outputs=True)) == []
    assert list(square.map(range(3), kwargs={"plus": 1})) == [1, 2, 5]
    assert list(add.map([1, 2], [10, 20])) == [11, 22]
    assert list(add.starmap([(3, 4), (5, 6)])) == [7, 11]
    note.for_each(range(3))
    got = list(maybe.map(range(7), return_exceptions=True, wrap_returned_exceptions=False))
    assert [g for g in got if isinstance(g, int)] == [1, 2, 4, 5], got
    assert [e.args for e in got if isinstance(e, ValueError)] == [(0,), (3,), (6,)], got
    try:
        list(maybe.map(range(1, 5)))
        raise AssertionError("no exception from map")
    except ValueError as e:
        assert e.args == (3,)


@app.local_entrypoint()
def nested():
    assert outer.remote(10) == 285 + 100
    assert fib.remote(4) == 3


@app.local_entrypoint()
async def asyncs():
    assert await later.remote.aio(1) == 2
    assert await square.remote.aio(9) == 81
    assert [x async for x in square.map.aio(range(20))] == [i * i for i in range(20)]
    assert await asyncio.gather(*(later.remote.aio(i) for i in range(20))) == list(range(1, 21))


@app.local_entrypoint()
def spawned():
    call = square.spawn(9)
    assert call.object_id.startswith("fc-")
    assert call.get(timeout=20) == 81 and call.get() == 81
    assert modal.FunctionCall.from_id(call.object_id).get() == 81


@app.local_entrypoint()
def serialized():
    assert pickled.remote(41) == 42


@app.local_entrypoint()
def arguments(name: str, count: int = 1, loud: bool = False):
    print(f"name={name!r} count={count!r} loud={loud!r} remote={square.remote(count)}")


@app.local_entrypoint()
def long(seconds: float = 60):
    print(slow.remote(seconds))


@app.local_entrypoint()
def fails_here():
    square.remote(2)
    sys.exit(7)
