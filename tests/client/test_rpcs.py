"""RPCs that no other test asks for and that users reach by the client's own commands and objects; the few without such a way are asked for directly."""

import base64
import json
import re
import time

import pytest
from modal_proto import api_pb2

SHOP = '''
import modal
app = modal.App("window")

@app.function(image=modal.Image.debian_slim(python_version="3.11"))
def look(x):
    print("looked at", x)
    return x + 1

@app.cls(image=modal.Image.debian_slim(python_version="3.11"))
class Till:
    start: int = modal.parameter(default=0)

    @modal.method()
    def add(self, x):
        print("adding to", self.start)
        return self.start + x
'''


@pytest.fixture
def shop(client, program):
    client.modal("deploy", program(SHOP, "window.py")).ok()


@pytest.mark.feature("modal app info")
@pytest.mark.rpc("AppGetInfo")
def test_app_info(client, shop, raw):
    info = json.loads(client.modal("app", "info", "window", "--json").ok().out)
    assert "look" in info["functions"] and info["functions"]["look"]["id"].startswith("fu-"), info
    assert "deployed" in client.modal("app", "info", "window").ok().out.lower()


CALLS = '''
import modal
look = modal.Function.from_name("window", "look")
call = look.spawn(41)
assert call.get(timeout=60) == 42
again = modal.FunctionCall.from_id(call.object_id)
assert again.num_inputs() == 1
print("CALL", call.object_id, look.object_id)
'''


@pytest.mark.feature("function calls by id")
@pytest.mark.rpc("FunctionCallGetInfo", "FunctionCallList", "FunctionCallFromId")
def test_function_calls(client, program, shop, raw):
    done = client.python(program(CALLS)).ok()
    call_id, function_id = re.search(r"CALL (fc-\w+) (fu-\w+)", done.out).groups()
    info = raw.call("FunctionCallGetInfo", api_pb2.FunctionCallGetInfoRequest(function_id=function_id, function_call_id=call_id)).info
    assert info.total_inputs == 1 and info.succeeded_inputs.total == 1 and info.failed_inputs.total == 0, info
    listed = raw.call("FunctionCallList", api_pb2.FunctionCallListRequest(function_id=function_id)).function_calls
    assert call_id in {c.function_call_id for c in listed}, listed


VARIANTS = '''
import modal
till = modal.Cls.from_name("window", "Till")
assert till(start=100).add.remote(1) == 101
assert till().add.remote(5) == 5
'''


@pytest.mark.feature("modal function logs")
@pytest.mark.rpc("AppCountLogs")
def test_function_logs_has_variants(client, program, shop, raw):
    client.python(program(VARIANTS)).ok()
    out = client.modal("function", "logs", "window/Till.*", "--all-variants").ok().out
    assert "adding to 100" in out and "adding to 0" in out, out
    info = json.loads(client.modal("app", "info", "window", "--json").ok().out)
    function_id = raw.call("FunctionGet", api_pb2.FunctionGetRequest(app_name="window", object_tag="Till.*")).function_id
    request = api_pb2.AppCountLogsRequest(app_id=info["app_id"], function_id=function_id, bucket_secs=60)
    request.since.FromSeconds(int(time.time()) - 3600)
    request.until.FromSeconds(int(time.time()) + 60)
    assert sum(b.stdout_logs for b in raw.call("AppCountLogs", request).buckets) >= 2


IMAGE = '''
import modal
app = modal.App("by-id")
made = modal.Image.debian_slim(python_version="3.11").env({"FROM": "its id"})
with modal.enable_output(), app.run():
    made.build(app)
image = modal.Image.from_id(made.object_id)
app = modal.App("by-id-2", image=image)

@app.function(serialized=True)
def f():
    import os
    return os.environ["FROM"]

with app.run():
    print("GOT", f.remote())
'''


@pytest.mark.feature("images by id")
@pytest.mark.rpc("ImageFromId")
def test_image_from_id(client, program):
    assert "GOT its id" in client.python(program(IMAGE), timeout=120).ok().out


SECRET = '''
import modal
secret = modal.Secret.from_name("updated")
secret.hydrate()
secret.update({"TWO": "2"})
print("INFO", secret.info().name)
by_id = modal.Secret._from_id(secret.object_id)
app = modal.App("secret-by-id")

@app.function(secrets=[by_id], image=modal.Image.debian_slim(python_version="3.11"), serialized=True)
def f():
    import os
    return os.environ["ONE"], os.environ["TWO"]

with app.run():
    print("GOT", *f.remote())
'''


@pytest.mark.feature("secrets are changed and looked at")
@pytest.mark.rpc("SecretGetInfo", "SecretUpdate")
def test_secret_update(client, program):
    client.modal("secret", "create", "--force", "updated", "ONE=1").ok()
    done = client.python(program(SECRET)).ok()
    client.modal("secret", "delete", "updated", "--yes").ok()
    assert "INFO updated" in done.out and "GOT 1 2" in done.out, done


@pytest.mark.feature("modal environment update")
@pytest.mark.rpc("EnvironmentUpdate")
def test_environment_update(client):
    def names():
        return {e.get("name") or e.get("Name") for e in json.loads(client.modal("environment", "list", "--json").ok().out)}
    client.modal("environment", "create", "before").ok()
    client.modal("environment", "update", "before", "--set-name", "after").ok()
    seen = names()
    client.modal("environment", "delete", "after", "--yes").ok()
    assert "after" in seen and "before" not in seen, seen
    assert "after" not in names()


@pytest.mark.feature("who am I")
@pytest.mark.rpc("TokenInfoGet", "WorkspaceNameLookup", "ClientHello", "AuthTokenGet")
def test_who_am_i(client, program, raw):
    told = client.modal("token", "info").ok().out
    assert "main" in told and raw.token in told, told
    assert "main" in client.modal("profile", "list").ok().out
    client.python(program("import modal\nmodal.Client.from_env().hello()\nprint('HELLO')\n")).ok()
    token = raw.call("AuthTokenGet").token
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert time.time() < claims["exp"] <= time.time() + 7200 and signature, claims


GRACEFUL = '''
import modal, time
app = modal.App("graceful", image=modal.Image.debian_slim(python_version="3.11"))

@app.function(max_containers=1)
def slow():
    print("begun", flush=True)
    time.sleep(6)
    print("finished", flush=True)
    return "whole"

@app.local_entrypoint()
def main():
    print("GOT", slow.remote())
'''


@pytest.mark.feature("modal container stop --graceful")
@pytest.mark.rpc("ContainerStop")
def test_a_graceful_stop_lets_inputs_finish(client, program, lydian):
    run = client.start_modal("run", program(GRACEFUL))
    run.wait_for("begun")
    (task,) = [t["task_id"] for t in lydian.tasks() if "slow" in str(t)]
    client.modal("container", "stop", "--graceful", "--yes", task).ok()
    done = run.finish(60)
    assert done.code == 0 and "GOT whole" in done.out and done.out.count("begun") == 1, done


LINES = '''
import modal, sys, time
app = modal.App("lines", image=modal.Image.debian_slim(python_version="3.11"))

@app.function(max_containers=3)
def say(i):
    for k in range(4):
        sys.stdout.write(f"<{i}.{k} "); sys.stdout.flush()
        time.sleep(0.15)
        sys.stdout.write(f"{i}.{k}>\\n"); sys.stdout.flush()

@app.function()
def bar():
    for i in range(5):
        sys.stdout.write(f"\\rbar {i}"); sys.stdout.flush()
        time.sleep(0.2)

@app.local_entrypoint()
def main():
    list(say.map(range(6)))
    bar.remote()
'''


@pytest.mark.feature("lines of several containers stay whole")
def test_begun_lines_are_not_mixed(client, program):
    done = client.modal("run", program(LINES)).ok()
    whole = re.findall(r"^<(\d\.\d) \1>\r?$", done.out, re.M)
    assert sorted(whole) == [f"{i}.{k}" for i in range(6) for k in range(4)], done
    assert all(f"bar {i}" in done.out for i in range(5)), done


INSIDE = '''
import modal, ctypes, os
app = modal.App("inside", image=modal.Image.debian_slim(python_version="3.11"))

@app.function(memory=(128, 256))
def inside():
    libc = ctypes.CDLL(None, use_errno=True)
    traced = libc.ptrace(16, 1, None, None)  # PTRACE_ATTACH
    shm = os.statvfs("/dev/shm")
    return traced, ctypes.get_errno(), shm.f_blocks * shm.f_frsize

@app.local_entrypoint()
def main():
    print("GOT", *inside.remote())
'''


@pytest.mark.feature("init can't be traced; /dev/shm is as large as the memory")
def test_init_and_shared_memory(client, program):
    done = client.modal("run", program(INSIDE)).ok()
    traced, error, shm = map(int, re.search(r"GOT (-?\d+) (\d+) (\d+)", done.out).groups())
    assert (traced, error) == (-1, 1), done
    assert shm == 256 << 20, done
