"""Classes: their parameters, life and methods. Each entrypoint asserts on values; test_classes.py runs them and looks at the logs."""

import asyncio
import os
import threading

import modal

app = modal.App("classes")


@app.cls()
class Plain:
    @modal.enter()
    def begin(self):
        self.seen = ["sync enter"]

    @modal.enter()
    async def begin_async(self):
        await asyncio.sleep(0)
        self.seen.append("async enter")

    @modal.method()
    def state(self, more):
        self.seen.append(more)
        return self.seen

    @modal.method()
    async def double(self, x):
        await asyncio.sleep(0)
        return 2 * x

    @modal.method()
    def power(self, x, to=2):
        return x**to

    @modal.method()
    def count(self, n):
        for i in range(n):
            yield i, len(self.seen)

    @modal.method()
    async def count_async(self, n):
        for i in range(n):
            yield -i

    @modal.method()
    def through_others(self, n):
        return self.power.local(n) + self.double.remote(n) + self.helper(n)

    def helper(self, n):
        return 1000 * n

    @modal.method()
    def fails(self):
        raise KeyError(self.seen[0])


@app.cls()
class Counter:
    name: str = modal.parameter()
    step: int = modal.parameter(default=2)
    key: bytes = modal.parameter(default=b"\x00k")
    on: bool = modal.parameter(default=True)

    @modal.enter()
    def begin(self):
        self.total = 0

    @modal.method()
    def add(self, n=1):
        self.total += self.step * n
        return self.name, self.total

    @modal.method()
    def values(self):
        return self.name, self.step, self.key, self.on, os.environ["MODAL_TASK_ID"]


@app.cls(env={"FROM": "class"}, timeout=100)
class Tuned:
    label: str = modal.parameter(default="base")

    @modal.enter()
    def begin(self):
        self.lock, self.met = threading.Lock(), threading.Barrier(2)

    @modal.method()
    def look(self):
        return self.label, os.environ.get("FROM"), os.environ.get("EXTRA"), os.environ["MODAL_TASK_ID"]

    @modal.method()
    def meet(self, x):
        self.met.wait(30)  # only two at once in one container get past
        return x, os.environ["MODAL_TASK_ID"]


@app.cls(max_containers=1)
class Leaving:
    who: str = modal.parameter()

    @modal.enter()
    def begin(self):
        print(f"{self.who} enters", flush=True)

    @modal.method()
    def work(self):
        print(f"{self.who} works", flush=True)

    @modal.exit()
    def first(self):
        print(f"{self.who} exits", flush=True)

    @modal.exit()
    async def second(self):
        await asyncio.sleep(0)
        print(f"{self.who} exits asynchronously", flush=True)


@app.cls()
class Failing:
    @modal.enter()
    def begin(self):
        raise RuntimeError("no model here")

    @modal.method()
    def work(self):
        return 1


@app.local_entrypoint()
def plain():
    it = Plain()
    assert it.state.remote("first") == ["sync enter", "async enter", "first"]
    assert it.state.remote("second") == ["sync enter", "async enter", "first", "second"], "one object serves one call after another"
    assert it.double.remote(4) == 8 and it.power.remote(3, to=3) == 27 and it.power.local(5) == 25
    assert list(it.power.map(range(20))) == [i * i for i in range(20)]
    assert list(it.power.starmap([(2, 5), (3, 1)])) == [32, 3]
    assert [i for i, _ in it.count.remote_gen(4)] == [0, 1, 2, 3] and list(it.count_async.remote_gen(3)) == [0, -1, -2]
    assert it.power.spawn(6).get(timeout=30) == 36
    assert it.through_others.remote(3) == 9 + 6 + 3000
    try:
        it.fails.remote()
        raise AssertionError("no exception from a method")
    except KeyError as e:
        assert e.args == ("sync enter",)


@app.local_entrypoint()
def parameters():
    a, b = Counter(name="a"), Counter(name="b", step=5, key=b"\xff", on=False)
    assert [a.add.remote(), a.add.remote(3)] == [("a", 2), ("a", 8)]
    assert b.add.remote() == ("b", 5), "each set of parameters has an object of its own"
    assert a.values.remote()[:4] == ("a", 2, b"\x00k", True) and b.values.remote()[:4] == ("b", 5, b"\xff", False)
    assert a.values.remote()[4] != b.values.remote()[4], "and containers of its own"
    assert Counter(name="a").add.remote() == ("a", 10), "the same parameters are the same object, written again"
    assert Counter(name="a", step=2).add.remote() == ("a", 12), "also where a default is spelled out"
    for wrong, words in ((lambda: Counter().add.remote(), "name"), (lambda: Counter(name="a", step="x").add.remote(), "Expected int")):
        try:
            wrong()
            raise AssertionError(words)
        except (TypeError, modal.exception.InvalidError) as e:
            assert words in str(e), repr(e)


@app.local_entrypoint()
def options():
    base = Tuned().look.remote()
    assert base[:3] == ("base", "class", None)
    variant = Tuned.with_options(env={"EXTRA": "variant"}, memory=256, max_containers=1)
    look = variant(label="v").look.remote()
    assert look[0] == "v" and look[2] == "variant" and look[3] != base[3], look
    assert Tuned().look.remote() == base, "the class itself stays as it was"
    pairs = list(Tuned.with_options(max_containers=1).with_concurrency(max_inputs=2)().meet.map(range(4)))
    assert [x for x, _ in pairs] == [0, 1, 2, 3] and len({task for _, task in pairs}) == 1, pairs


@app.local_entrypoint()
def leaving():
    for who in ("one", "two"):
        Leaving(who=who).work.remote()


@app.local_entrypoint()
def failing():
    try:
        Failing().work.remote()
        raise AssertionError("no exception")
    except RuntimeError as e:
        assert e.args == ("no model here",), repr(e)
        print("as it should be")
