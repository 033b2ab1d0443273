"""What is around a function in its container, and what it must not reach."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import APPS


@pytest.fixture(scope="module")
def seen(server, home, tmp_path_factory):
    if server is None:
        pytest.skip("needs Lydian itself, not just a server")
    from harness.client import Client
    out = tmp_path_factory.mktemp("environment") / "seen.json"
    client = Client(home / "modal.toml", home, {"HOST_ONLY": "1", "TZ": "Asia/Tokyo"})
    done = client.modal("run", f"{APPS}/environment.py::main", "--out", out).ok()
    return json.loads(out.read_text()) | {"printed": done.out}


pytestmark = pytest.mark.feature("container environment")


def test_identity(seen):
    assert seen["hostname"] != socket.gethostname() and seen["hostname"] != "localhost"
    assert seen["cwd"] == "/root" and seen["home"] == "/root" and seen["uid"] == 0
    assert seen["pid"] == 2 and seen["pid1"].startswith("lydian-init"), seen["pid1"]
    assert sorted(map(int, seen["processes"]))[:2] == [1, 2] and len(seen["processes"]) <= 4


def test_locale_and_time(seen):
    assert seen["encoding"].upper().replace("-", "") == "UTF8" and seen["fs"] == "utf-8" and "UTF-8" in seen["lang"]
    assert seen["zone"] == "UTC" and seen["offset"] == 0


def test_files(seen):
    assert seen["stdin"] == "/dev/null" and seen["read"] == ""
    assert "through /dev/stdout" in seen["printed"] and "through /dev/stderr" in seen["printed"]
    assert seen["certificates"] > 50 and seen["tmp"] == "0o1777" and seen["shm"] and seen["null"] and seen["urandom"] == 4


def test_python(seen):
    import sys
    assert tuple(seen["version"]) == sys.version_info[:2]
    assert seen["python"] == "/usr/local/bin/python" and seen["site"] == "/usr/local/lib/python3.11/site-packages"


def test_network(seen):
    assert set(seen["links"]) == {"lo", "eth0"}, seen["links"]
    assert seen["links"]["eth0"] and not seen["links"]["eth0"].startswith("127.") and seen["loopback"] == "127.0.0.1"
    assert "nameserver" in seen["resolv"] and "127.0.0" not in seen["resolv"]


def test_variables(seen):
    env = seen["env"]
    assert env["MODAL_IS_REMOTE"] == "1" and env["MODAL_TASK_ID"].startswith("ta-") and env["MODAL_IMAGE_ID"].startswith("im-")
    assert env["MODAL_SERVER_URL"].startswith("unix:") and env["MODAL_ENVIRONMENT"] == "main" and env["MODAL_DISABLE_API_PROXY"] == "1"
    assert "/root" in env["PYTHONPATH"].split(":") and "/pkg" in env["PYTHONPATH"].split(":")
    assert "MODAL_TOKEN_ID" not in env and "MODAL_TOKEN_SECRET" not in env
    for name in ("HOST_ONLY", "MODAL_CONFIG_PATH", "LYDIAN_STATE", "SSH_CONNECTION", "OLDPWD"):
        assert name not in env
    host = {k for k in os.environ if k not in ("PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "TERM", "TZ", "USER", "HOSTNAME", "SHELL", "LC_ALL")}
    bundle = {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"}
    assert not {k for k in host & set(env) - bundle if os.environ[k] == env[k]}, "none of the host's variables"


@pytest.mark.feature("DNS")
def test_name_resolution(client, lydian):
    """Through the relay, whatever the host's resolver is: a name that the host can resolve."""
    name = next((n for n in (*_package_hosts(), "example.com") if _resolves(n)), None)
    if name is None:
        pytest.skip("this machine resolves no public name")
    done = client.modal("run", f"{APPS}/environment.py::resolve", "--name", name).ok()
    assert re.search(r"ADDRESS [0-9a-f.:]+", done.out)


def _package_hosts():
    """Names that this machine itself takes its packages from."""
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    return sorted({h for f in lists if f.is_file() for h in re.findall(r"https?://([^/\s:]+)", f.read_text())})


def _resolves(name):
    try:
        return bool(socket.getaddrinfo(name, 80))
    except OSError:
        return False


@pytest.mark.feature("isolation")
def test_rights(entry, lydian):
    entry("isolation", "right_checks")


@pytest.mark.feature("isolation: network")
def test_reaches_neither_host_nor_lydian(client, lydian):
    """Listeners on loopback and on every address of the host; Lydian's own port. None may be reached."""
    addresses = [a for a in subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split() if "." in a]
    with socket.create_server(("0.0.0.0", 0)) as wide, socket.create_server(("127.0.0.1", 0)) as local:
        targets = [f"127.0.0.1:{local.getsockname()[1]}", f"127.0.0.1:{lydian.port}", f"GATEWAY:{wide.getsockname()[1]}", f"GATEWAY:{lydian.port}",
                   *(f"{a}:{wide.getsockname()[1]}" for a in addresses)]
        with socket.create_connection(("127.0.0.1", wide.getsockname()[1]), 2):
            pass  # the listener itself works
        done = client.modal("run", f"{APPS}/isolation.py::reaching", "--targets", ",".join(targets)).ok()
    got = re.findall(r"REACH (\S+) (\S+)", done.out)
    assert len(got) >= len(set(targets)) - 2, done  # the gateway may be among the addresses
    assert not [x for x in got if x[1] == "connected"], got


@pytest.mark.feature("isolation: other containers")
def test_does_not_reach_another_container(client, lydian):
    run = client.start_modal("run", f"{APPS}/isolation.py::neighbour")
    run.wait_for("LISTENING")
    run.wait_for("8123", 5)
    address = re.search(r"LISTENING (\S+) 8123", run.text())[1]
    other = client.modal("run", f"{APPS}/isolation.py::reaching", "--targets", f"{address}:8123").ok()
    assert f"REACH {address}:8123 " in other.out and "connected" not in other.out, other
    assert "RESULT nobody came" in run.finish(60).ok().out


@pytest.mark.feature("limits: processes")
def test_process_limit(entry, lydian):
    entry("limits", "processes")


@pytest.mark.feature("limits: ephemeral_disk")
def test_disk_limit(entry, lydian):
    entry("limits", "disk", timeout=120)


@pytest.mark.feature("limits: cpu")
def test_cpu_limit(entry, lydian):
    entry("limits", "processor")

