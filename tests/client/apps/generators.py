"""Generators: what they yield arrives as it is yielded, in order, and their end is the end. test_generators.py runs the entrypoints."""

import asyncio
import threading

import modal

app = modal.App("generators")


@app.function()
def up_to(n):
    for i in range(n):
        yield i


@app.function()
async def up_to_async(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@app.function()
def sized(sizes):
    for size in sizes:
        yield bytes([size % 251]) * size


@app.function()
def breaks(after):
    for i in range(after):
        yield i
    raise ValueError(f"after {after}")


@app.function()
async def breaks_async(after):
    for i in range(after):
        yield i
    raise LookupError(after)


@app.function()
def from_inside(n):
    return [x * x for x in up_to.remote_gen(n)]


@app.function()
def chained(n):
    for x in up_to_async.remote_gen(n):
        yield x, x


@app.cls(max_containers=1)
@modal.concurrent(max_inputs=3)
class Gate:
    @modal.enter()
    def begin(self):
        self.open = threading.Event()

    @modal.method()
    def wait(self, then=None):
        yield "before"
        yield self.open.wait(30)
        if then:
            raise then

    @modal.method()
    def release(self):
        self.open.set()


@app.local_entrypoint()
def plain():
    assert list(up_to.remote_gen(5)) == [0, 1, 2, 3, 4]
    assert list(up_to_async.remote_gen(5)) == [0, 1, 2, 3, 4]
    assert list(up_to.remote_gen(0)) == [] and list(up_to_async.remote_gen(0)) == []
    assert list(up_to.local(3)) == [0, 1, 2]
    assert list(up_to.remote_gen(2000)) == list(range(2000)), "none is lost, doubled or out of order"
    sizes = [0, 1, 3 << 20, 17, 5 << 20, 2]  # inline and as blobs
    assert [(len(x), x[:1]) for x in sized.remote_gen(sizes)] == [(s, bytes([s % 251])[: min(s, 1)]) for s in sizes]
    assert from_inside.remote(4) == [0, 1, 4, 9] and list(chained.remote_gen(3)) == [(0, 0), (1, 1), (2, 2)]


@app.local_entrypoint()
async def asyncs():
    assert [x async for x in up_to.remote_gen.aio(4)] == [0, 1, 2, 3]

    async def total(n):
        return sum([x async for x in up_to_async.remote_gen.aio(n)])

    assert await asyncio.gather(*(total(n) for n in range(8))) == [sum(range(n)) for n in range(8)]


@app.local_entrypoint()
def raising():
    for function, kind, args in ((breaks, ValueError, lambda n: (f"after {n}",)), (breaks_async, LookupError, lambda n: (n,))):
        for n in (0, 3):
            got = []
            try:
                for x in function.remote_gen(n):
                    got.append(x)
                raise AssertionError(f"no exception from {function}")
            except kind as e:
                assert e.args == args(n), repr(e)
            # The client raises as soon as the error is there, which may overtake the last items.
            assert got == list(range(len(got))) and len(got) <= n, got
    for wrong in (lambda: up_to.remote(3), lambda: up_to.spawn(3), lambda: list(from_inside.remote_gen(1))):
        try:
            wrong()
            raise AssertionError("no exception")
        except modal.exception.InvalidError:
            pass


@app.local_entrypoint()
def streaming():
    gate = Gate()
    items = gate.wait.remote_gen()
    assert next(items) == "before"
    gate.release.remote()  # the generator gets no further before its first item was seen here
    assert list(items) == [True]
    items = gate.wait.remote_gen(then=ValueError("at the end"))
    assert next(items) == "before"
    try:
        list(items)
        raise AssertionError("no exception")
    except ValueError as e:
        assert e.args == ("at the end",)


@app.local_entrypoint()
def left_early():
    for x in up_to.remote_gen(10_000):
        if x == 3:
            break
    assert list(up_to.remote_gen(2)) == [0, 1]
