"""What Lydian keeps on disk: collection, what takes space, damage. On a Lydian of its own that keeps nothing without a use."""

import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness.client import Client
from harness.lydian import Lydian, until

pytestmark = pytest.mark.rpc("BlobCreate", "MountGetOrCreate", "ImageGetOrCreate")

NOTHING_WITHOUT_USE = ["--keep-files", "0", "--keep-images", "0", "--keep-apps", "0"]

# Its source is another one for each STEP, and so is its image now and then.
EDITED = """
import os
import modal

STEP = {step}
image = modal.Image.debian_slim(python_version="3.11").run_commands("head -c 300000 /dev/urandom > /step; echo {image}")
app = modal.App("edited", image=image, include_source=True)

@app.function()
def length(data):
    return len(data) + STEP

if __name__ == "__main__":
    app.deploy()
    call = modal.Function.from_name("edited", "length").spawn(os.urandom(100_000))
    assert call.get(timeout=60) == 100_000 + STEP
    with app.run():
        assert length.remote(b"x" * 3_000_000) == 3_000_000 + STEP
    print("DONE")
"""


@pytest.fixture
def own(request, server):
    """Makes Lydians of the test's own, with a client each."""
    if server is None:
        pytest.skip("needs Lydian itself, not just a server")
    made = []

    def make():
        state = tempfile.mkdtemp(prefix="lydian-store-", dir="/var/tmp")
        it = Lydian(state)
        made.append(it)
        it.up(timeout=120, options=NOTHING_WITHOUT_USE)
        home = Path(tempfile.mkdtemp(prefix="lydian-home-"))
        it.login(home / "modal.toml")
        return it, Client(home / "modal.toml", home)
    yield make
    for it in made:
        it.stop()
        it.remove()


def store(lydian, *args, code=0):
    p = lydian.cli("store", *args, timeout=300, check=False)
    assert p.returncode == code, f"{p.returncode}\n{p.stdout}{p.stderr}\n{lydian.log_tail()}"
    return p.stdout


def rows(lydian):
    tables = ("app", "function", "definition", "mount", "object", "image", "recipe", "blob", "orphan", "reference", "bound_function")
    with sqlite3.connect(f"file:{lydian.state}/control/state.db?mode=ro", uri=True) as db:
        return {table: db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables}


def files(folder):
    found = [p for p in Path(folder).rglob("*") if p.is_file() and "/tx/" not in str(p)]
    return len(found), sum(p.stat().st_size for p in found)


def footprint(lydian):
    """What is there of a kind: how many, and how many bytes."""
    layers = lydian.state / "worker/layers/layers"
    return {
        "blobs": files(lydian.state / "control/blobs"),
        "objects": files(lydian.state / "control/objects"),
        "worker objects": files(lydian.state / "worker/objects"),
        "layers": len(os.listdir(layers)),
    }


def step(client, program, number, image):
    path = program(EDITED.format(step=number, image=image), "edited.py")
    done = client.python(path, timeout=120).ok()
    assert "DONE" in done.out


@pytest.mark.feature("collection")
@pytest.mark.parametrize("steps", [pytest.param(6), pytest.param(50, marks=pytest.mark.slow)])
def test_what_is_left_is_what_the_living_need(own, program, steps):
    used, client = own()
    for number in range(steps):
        step(client, program, number, number // 5)
    grown = footprint(used)
    assert grown["blobs"][0] >= steps and grown["objects"][0] >= steps
    would = json.loads(store(used, "gc", "--dry-run", "--json"))
    assert footprint(used) == grown, "a dry run touches nothing"
    assert sum(int(line["freed"]) for line in would["collected"]) > 0
    print(store(used, "gc"))
    store(used, "gc")  # what the first has left without a use

    fresh, other = own()
    step(other, program, steps - 1, (steps - 1) // 5)
    store(fresh, "gc")
    store(fresh, "gc")
    assert rows(used) == rows(fresh)
    left, needed = footprint(used), footprint(fresh)
    print(grown, left, needed)
    assert left["layers"] == needed["layers"]
    for kind in ("blobs", "objects", "worker objects"):
        assert left[kind] == needed[kind], kind
    # And it goes on working.
    assert client.modal("app", "list").ok()
    done = client.python(program("import modal; print(modal.Function.from_name('edited', 'length').remote(b'12'))"), timeout=90).ok()
    assert done.out.strip() == str(2 + steps - 1)
    assert "0 are damaged" in store(used, "verify")


@pytest.mark.feature("lost layers")
def test_what_is_lost_is_found_and_made_again(own, program):
    lydian, client = own()
    step(client, program, 1, 1)
    assert "0 are damaged" in store(lydian, "verify")
    usage = json.loads(store(lydian, "du", "--json"))["usage"]
    assert {"blobs", "files", "layers", "logs", "database"} <= {u["kind"] for u in usage}
    assert any(u["kind"] == "layers" and u["workspace"] == "main" and int(u["bytes"]) > 200_000 for u in usage), usage
    assert "KIND" in store(lydian, "du")
    # The RUN's layer and a source file, with nobody told.
    client.modal("app", "stop", "edited", "--yes").ok()
    layers = lydian.state / "worker/layers/layers"
    lost = [p for p in layers.iterdir() if (p / "fs/step").exists()]
    assert len(lost) == 1
    shutil.rmtree(lost[0])
    damaged = next(p for p in (lydian.state / "control/objects").glob("??/*"))
    damaged.write_bytes(b"other bytes")
    said = store(lydian, "verify", code=1)
    assert lost[0].name in said and "built again" in said and damaged.name in said, said
    assert "0 are damaged" in store(lydian, "verify")
    step(client, program, 1, 1)
    assert "0 are damaged" in store(lydian, "verify")


@pytest.mark.feature("lost layers")
def test_a_deployed_function_gets_its_lost_image_again(own, program):
    lydian, client = own()
    step(client, program, 2, 2)
    for task in lydian.tasks():
        client.modal("container", "stop", task["task_id"], "-y").ok()
    until("its containers are gone", 30, lambda: not lydian.tasks())
    layers = lydian.state / "worker/layers/layers"
    lost = next(p for p in layers.iterdir() if (p / "fs/step").exists())
    shutil.rmtree(lost)
    assert "built again" in store(lydian, "verify", code=1)
    done = client.python(program("import modal; print(modal.Function.from_name('edited', 'length').remote(b'123'))"), timeout=120).ok()
    assert done.out.strip() == "5"
    assert lost.exists()


def test_only_root_may_ask(own):
    lydian, _ = own()
    p = subprocess.run([str(lydian.binary), "store", "du", "--state", str(lydian.state)], capture_output=True, text=True, user=65534, group=65534)
    assert p.returncode == 1 and "root" in p.stderr
