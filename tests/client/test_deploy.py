"""Apps that stay: deploy, look up from elsewhere, deploy again, stop."""

import json
import re
import sys

import pytest

pytestmark = pytest.mark.rpc("AppGetOrCreate", "AppPublish", "FunctionGet")

SHOP = """
import os
import time

import modal

app = modal.App("shop")
VERSION = 1

@app.function()
def version(x=0):
    return VERSION + x

@app.function()
def old_one():
    print("waits for the new one", flush=True)
    while modal.Function.from_name("shop", "version").remote() == 1:
        time.sleep(0.05)
    return VERSION

@app.function()
def count(n):
    yield from range(VERSION, VERSION + n)

@app.cls(env={"FROM": "class"})
class Till:
    start: int = modal.parameter(default=0)

    @modal.method()
    def add(self, n):
        return self.start + n * VERSION

    @modal.method()
    def extra(self):
        return os.environ.get("FROM"), os.environ.get("EXTRA")
"""

WARM = """
import modal
app = modal.App("warm")

@app.cls(min_containers=1)
class Warm:
    @modal.enter()
    def begin(self):
        print("is up", flush=True)

    @modal.method()
    def say(self, what):
        print(what, flush=True)

    @modal.exit()
    def end(self):
        print("is down", flush=True)
"""

CUSTOMER = """
import json
import modal

version = modal.Function.from_name("shop", "version")
till = modal.Cls.from_name("shop", "Till")
print(json.dumps({
    "version": version.remote(), "map": list(version.map([10, 20])), "spawn": version.spawn(x=30).get(timeout=30),
    "count": list(modal.Function.from_name("shop", "count").remote_gen(3)),
    "till": [till().add.remote(5), till(start=100).add.remote(1)],
    "extra": till.with_options(env={"EXTRA": "more"})().extra.remote()[1],
    "id": version.object_id, "by id": modal.Function.from_id(version.object_id).remote(),
}))
"""

STRANGER = """
import modal
for what in (lambda: modal.Function.from_name("shop", "nothing").remote(), lambda: modal.Cls.from_name("shop", "Nothing")().x.remote(),
             lambda: modal.Function.from_name("shop", "version", environment_name="elsewhere").remote()):
    try:
        what()
        print("no error")
    except modal.exception.NotFoundError as e:
        print("NOT FOUND", e)
"""

CALLER = """
import modal
app = modal.App("caller")

@app.function()
def calls():
    return modal.Function.from_name("shop", "version").remote(x=5)

@app.local_entrypoint()
def main():
    print("RESULT", calls.remote())
"""


def customer(client):
    return json.loads(client.python("-c", CUSTOMER).ok().out)


def expected(version):
    return {"version": version, "map": [version + 10, version + 20], "spawn": version + 30, "count": [version, version + 1, version + 2],
            "till": [5 * version, 100 + version], "extra": "more", "by id": version}


def without_id(seen):
    return {k: v for k, v in seen.items() if k != "id"}


def app_id(client, name):
    """Of the one that is deployed; None if there is none."""
    found = [a for a in json.loads(client.modal("app", "list", "--json").ok().out) if a["description"] == name and a["state"] == "deployed"]
    assert len(found) <= 1, found
    return found[0]["app_id"] if found else None


@pytest.fixture
def shop(client, program):
    yield program(SHOP, "shop.py")
    client.modal("app", "stop", "shop", "--yes")


@pytest.fixture
def warm(client, program):
    yield program(WARM, "warm.py")
    client.modal("app", "stop", "warm", "--yes")


@pytest.mark.feature("modal deploy", "Function.from_name", "Cls.from_name", "modal app stop")
@pytest.mark.rpc("AppList", "AppStop", "FunctionBindParams", "FunctionGetById")
def test_deploy_and_redeploy(client, shop):
    done = client.modal("deploy", shop).ok()
    assert "App deployed" in done.out and "http://" in done.out, done
    first = customer(client)
    assert without_id(first) == expected(1)
    app = app_id(client, "shop")
    lines = client.python("-c", STRANGER).ok().out.splitlines()
    assert len(lines) == 3 and all(x.startswith("NOT FOUND") and "shop" in x for x in lines), lines
    assert "nothing" in lines[0] and "Nothing" in lines[1] and "elsewhere" in lines[2], lines

    # A call that is under way while the new version comes ends with the code that it began with.
    waiting = client.start(sys.executable, "-c", 'import modal; print("OLD", modal.Function.from_name("shop", "old_one").remote())')
    logs = client.start_modal("app", "logs", app, "-f")
    logs.wait_for("waits for the new one")
    shop.write_text(SHOP.replace("VERSION = 1", "VERSION = 2") + '\n@app.function()\ndef added():\n    return "new"\n')
    client.modal("deploy", shop).ok()
    assert waiting.finish(60).ok().out == "OLD 1\n"
    logs.signal(2)
    logs.finish(20)

    second = customer(client)
    assert without_id(second) == expected(2), "no container of the first version serves the second"
    assert second["id"] == first["id"] and app_id(client, "shop") == app, "who holds an id goes on"
    assert client.python("-c", 'import modal; print(modal.Function.from_name("shop", "added").remote())').ok().out == "new\n"

    client.modal("app", "stop", "shop", "--yes").ok()
    assert app_id(client, "shop") is None
    gone = client.python("-c", 'import modal\ntry:\n    modal.Function.from_name("shop", "version").remote()\n'
                         'except modal.exception.NotFoundError as e:\n    print("NOT FOUND", e)').ok()
    assert gone.out.startswith("NOT FOUND") and "shop" in gone.out, gone
    client.modal("deploy", shop).ok()
    third = customer(client)
    assert without_id(third) == expected(2) and third["id"] != first["id"] and app_id(client, "shop") not in (None, app), "an app of its own"


@pytest.mark.feature("deployed apps outlive a restart", "deployed apps: calls from other apps")
def test_it_stays(client, lydian, shop, program):
    client.modal("deploy", shop).ok()
    ids = customer(client)["id"]
    lydian.back("control", lydian.kill("control"))
    assert without_id(customer(client)) == expected(1) and customer(client)["id"] == ids
    assert "RESULT 6" in client.modal("run", program(CALLER, "caller.py")).ok().out


@pytest.mark.feature("App.deploy", "modal deploy --name", "modal environment")
@pytest.mark.rpc("EnvironmentCreate", "EnvironmentList", "EnvironmentDelete")
def test_names_and_environments(client, shop, lydian):
    client.modal("environment", "delete", "side", "--yes")  # of a run that was cut off
    client.modal("environment", "create", "side").ok()
    assert "side" in client.modal("environment", "list").ok().out
    client.modal("deploy", "--name", "other", "-e", "side", shop).ok()
    code = 'import modal; print(modal.Function.from_name("other", "version"{}).remote())'
    assert client.python("-c", code.format(', environment_name="side"')).ok().out == "1\n"
    here = client.python("-c", code.format(""))
    assert here.code != 0 and "NotFoundError" in here.text, "a name is one of its environment"
    client.python("-c", f"import runpy; runpy.run_path({str(shop)!r})['app'].deploy(name='other')").ok()
    assert client.python("-c", code.format("")).ok().out == "1\n"
    client.modal("app", "stop", "other", "--yes").ok()
    assert client.python("-c", code.format(', environment_name="side"')).ok().out == "1\n"
    client.modal("environment", "delete", "side", "--yes").ok()  # with what is deployed there
    assert "version" not in str(lydian.tasks()) and "side" not in client.modal("environment", "list").ok().out


@pytest.mark.feature("modal app logs", "modal deploy: min_containers")
@pytest.mark.rpc("AppFetchLogs", "AppGetByDeploymentName")
def test_logs(client, lydian, warm):
    client.modal("deploy", warm).ok()
    follow = client.start_modal("app", "logs", "warm", "-f")
    follow.wait_for("is up")  # nobody has called it
    (task,) = [t for t in lydian.tasks() if "Warm" in str(t)]
    client.python("-c", 'import modal; modal.Cls.from_name("warm", "Warm")().say.remote("hello there")').ok()
    follow.wait_for("hello there")
    text = client.modal("app", "logs", "warm").ok().out
    assert re.search(r"is up(.|\n)*hello there", text), text
    assert [t["task_id"] for t in lydian.tasks() if "Warm" in str(t)] == [task["task_id"]], "the one that was there serves"
    app = app_id(client, "warm")
    client.modal("app", "stop", "warm", "--yes").ok()
    follow.finish(30)
    assert "is down" in client.modal("app", "logs", app).ok().out
