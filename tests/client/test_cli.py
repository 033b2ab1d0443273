"""The command lines: ours, and those of the client that show and stop things."""

import json
import re
import tomllib
import urllib.request

import pytest
from conftest import APPS
from harness.client import Client
from harness.lydian import ROLES, alive, until

OTHER = '''[hosted]
token_id = "ak-hosted"
token_secret = "as-hosted"
active = true
'''


@pytest.mark.feature("lydian login")
def test_login_keeps_other_profiles(lydian, tmp_path):
    config = tmp_path / "modal.toml"
    config.write_text(OTHER)
    p = lydian.cli("login", env={"MODAL_CONFIG_PATH": str(config)})
    profiles = tomllib.loads(config.read_text())
    assert profiles["hosted"] == {"token_id": "ak-hosted", "token_secret": "as-hosted", "active": True}
    assert profiles["lydian"]["server_url"] == f"http://127.0.0.1:{lydian.port}" and profiles["lydian"]["disable_api_proxy"] is True
    assert not profiles["lydian"].get("active"), "who uses another service must not change target unawares"
    assert "MODAL_PROFILE=lydian" in p.stdout + p.stderr
    assert config.stat().st_mode & 0o077 == 0, "it holds a token"
    client = Client(config, tmp_path, {"MODAL_PROFILE": "lydian", "http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"})
    client.modal("app", "list").ok()
    lydian.cli("login", env={"MODAL_CONFIG_PATH": str(config)})  # again: the same
    assert tomllib.loads(config.read_text()) == profiles


@pytest.mark.feature("lydian login")
def test_login_alone_is_active(lydian, tmp_path):
    config = tmp_path / "modal.toml"
    lydian.cli("login", env={"MODAL_CONFIG_PATH": str(config)})
    assert tomllib.loads(config.read_text())["lydian"]["active"] is True


@pytest.mark.feature("lydian status")
def test_status(lydian, client):
    s = lydian.status()
    assert {p["role"] for p in s["processes"]} == set(ROLES)
    assert all(alive(p["pid"]) for p in s["processes"])
    assert any(str(lydian.port) in x for x in s["listeners"])
    text = lydian.cli("status").stdout
    assert all(role in text for role in ROLES) and str(lydian.port) in text
    run = client.start_modal("run", f"{APPS}/faults.py::sleeping")
    run.wait_for("sleeping")
    (task,) = [t for t in lydian.tasks() if "sleeps" in str(t)]
    assert task["task_id"].startswith("ta-") and task["container_id"] and alive(task["pid"]), task
    run.signal(2)
    run.finish(20)
    until("the task is gone", 10, lambda: task["task_id"] not in str(lydian.tasks()))


@pytest.mark.feature("lydian status")
def test_status_while_control_is_down(lydian):
    """From the worker; up restarts control at once, so it is stopped, not killed."""
    import os
    import signal
    pid = lydian.pid("control")
    os.kill(pid, signal.SIGSTOP)
    try:
        s = json.loads(lydian.cli("status", "--json", timeout=20).stdout)
        assert {"worker", "spawner"} <= {p["role"] for p in s["processes"]}
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.feature("lydian token", "AuthError")
def test_tokens(lydian, client, tmp_path):
    made = json.loads(lydian.cli("token", "create", "--json").stdout)
    config = tmp_path / "modal.toml"

    def with_token(token, secret):
        config.write_text(f'[p]\nserver_url = "http://127.0.0.1:{lydian.port}"\ntoken_id = "{token}"\ntoken_secret = "{secret}"\nactive = true\n')
        return Client(config, tmp_path).modal("app", "list", "--json")

    with_token(made["token_id"], made["token_secret"]).ok()
    for wrong in (with_token(made["token_id"], "as-wrong"), with_token("ak-unknown", made["token_secret"])):
        assert wrong.code != 0 and "AuthError" in wrong.text or "oken" in wrong.text and wrong.code != 0, wrong
    assert made["token_id"] in lydian.cli("token", "list").stdout and made["token_secret"] not in lydian.cli("token", "list").stdout
    lydian.cli("token", "revoke", made["token_id"])
    assert with_token(made["token_id"], made["token_secret"]).code != 0
    code = "import modal\ntry:\n    modal.App.lookup('x', create_if_missing=True)\nexcept modal.exception.AuthError as e:\n    print('AUTH', e)\n"
    assert Client(config, tmp_path).python("-c", code).ok().out.startswith("AUTH")


@pytest.mark.feature("lydian token: workspaces")
def test_another_workspace_sees_nothing(lydian, client, tmp_path):
    made = json.loads(lydian.cli("token", "create", "--workspace", "elsewhere", "--json").stdout)
    client.modal("secret", "create", "--force", "ours", "A=1").ok()
    config = tmp_path / "modal.toml"
    config.write_text(f'[p]\nserver_url = "http://127.0.0.1:{lydian.port}"\ntoken_id = "{made["token_id"]}"\n'
                      f'token_secret = "{made["token_secret"]}"\nactive = true\n')
    other = Client(config, tmp_path)
    assert "ours" not in other.modal("secret", "list", "--json").ok().out
    client.modal("secret", "delete", "ours", "--yes").ok()


@pytest.mark.feature("lydian up")
def test_a_second_up_says_who_runs(lydian):
    p = lydian.cli("up", "--background", check=False)
    assert p.returncode != 0 and str(lydian.pid("up")) in p.stdout + p.stderr


@pytest.mark.feature("lydian debug run")
def test_debug_run(lydian):
    def run(*args, check=False):
        return lydian.cli("debug", "run", *args, check=check)
    p = run("--image", "python:3.11-slim-bookworm", "--", "python", "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (p.returncode, p.stdout, p.stderr) == (3, "out\n", "err\n"), p
    p = run("--image", "python:3.11-slim-bookworm", "--", "sh", "-c", "kill -9 $$")
    assert p.returncode == 137, p
    p = run("--image", "python:3.11-slim-bookworm", "--memory", "64M", "--", "python", "-c", "x = bytearray(300 << 20)")
    assert p.returncode != 0, p
    p = run("--image", "python:3.11-slim-bookworm", "--", "/no/such/program")
    assert p.returncode != 0 and "/no/such/program" in p.stderr and "No such file" in p.stderr, p


@pytest.mark.feature("lydian doctor")
def test_doctor(lydian):
    p = lydian.cli("doctor", check=False)
    text = p.stdout.lower()
    for word in ("cgroup", "overlay", "seccomp", "nft", "user namespace", "quota", "python:3.11", "python:3.13"):
        assert word in text, f"{word}\n{p.stdout}"


@pytest.mark.feature("modal app list", "modal app stop", "modal container list", "modal container stop")
def test_apps_and_containers(client, lydian):
    run = client.start_modal("run", f"{APPS}/faults.py::sleeping")
    run.wait_for("sleeping")
    app_id = re.search(r"ap-\w{22}", run.text())[0]
    apps = client.modal("app", "list", "--json").ok().out
    assert app_id in apps and "faults" in apps
    containers = client.modal("container", "list", "--json").ok().out
    task_id = re.search(r"ta-[0-9A-Z]{26}", containers)[0]
    assert app_id in containers
    client.modal("container", "stop", task_id, "--yes").ok()
    until("the container has stopped", 40, lambda: task_id not in str(lydian.tasks()))
    client.modal("app", "stop", app_id, "--yes").ok()
    done = run.finish(30)
    assert "RESULT" not in done.out
    until("nothing runs", 10, lambda: app_id not in str(lydian.tasks()))


@pytest.mark.feature("modal serve")
def test_serve(client, program):
    text = """
import modal
app = modal.App("served")

@app.cls(min_containers=1)
class Served:
    @modal.enter()
    def begin(self):
        print("version one is up", flush=True)

    @modal.method()
    def none(self):
        pass
"""
    path = program(text, "serve/served.py")
    run = client.start_modal("serve", path)
    run.wait_for("one is up")
    path.write_text(text.replace("version one", "version two"))
    run.wait_for("two is up")
    run.signal(2)
    done = run.finish(30)
    assert "App aborted" in done.out and "can't be started" not in done.text, done


@pytest.mark.feature("app page")
def test_app_page(client, lydian):
    done = client.modal("run", f"{APPS}/logs.py::live").ok()
    url = re.search(r"View run at\s+(http\S+)", done.out)[1]
    assert url.startswith(f"http://127.0.0.1:{lydian.port}/")
    with urllib.request.urlopen(url, timeout=10) as r:
        page = r.read().decode()
        assert r.status == 200 and r.headers.get_content_type() == "text/html"
    for word in ("logs", "slowly", "first", "second"):
        assert word in page, word
    assert "stopped" in page.lower() or "done" in page.lower()


@pytest.mark.feature("unknown names")
def test_unknown_names(client, lydian):
    code = ("import modal\nfor f in (lambda: modal.Function.from_name('no-such-app', 'f').remote(),\n"
            "          lambda: modal.Function.from_name('no-such-app', 'f', environment_name='nowhere').remote()):\n"
            "    try:\n        f()\n    except modal.exception.NotFoundError as e:\n        print('NOT FOUND', e)\n")
    lines = client.python("-c", code).ok().out.splitlines()
    assert len(lines) == 2 and "no-such-app" in lines[0] and "main" in lines[0] and "nowhere" in lines[1], lines
