"""The official client, unmodified, against one Lydian that lives as long as the test session.

    pytest tests/client                           a Lydian of its own, state removed afterwards
    LYDIAN_TEST_STATE=DIR pytest tests/client     the same with a state that is kept: images are built once
    pytest tests/client --server URL              some other server; what needs Lydian itself is skipped
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.client import Client  # noqa: E402
from harness.lydian import BINARY, Lydian, read  # noqa: E402

APPS = Path(__file__).resolve().parent / "apps"


RECORD = APPS.parent / "answered.txt"  # methods that a test run has seen answered with OK; tools/compatibility.py reads it


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write what this run saw answered with OK to answered.txt")
    parser.addoption("--server", help="URL of a server that is up already")
    parser.addoption("--slow", action="store_true", default=os.environ.get("CI") == "true", help="the slow ones too")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


def pytest_configure(config):
    # Every Lydian of this run, its daemons included, adds to it (rpc/router.cc).
    fd, path = tempfile.mkstemp(prefix="lydian-answered-")
    os.fchmod(fd, 0o666)  # control has a user of its own
    os.close(fd)
    os.environ["LYDIAN_RPC_RECORD"] = path


def pytest_unconfigure(config):
    Path(os.environ.pop("LYDIAN_RPC_RECORD")).unlink(missing_ok=True)


def built():
    table = subprocess.run([BINARY, "internal", "methods"], capture_output=True, text=True, check=True).stdout
    return {"/".join(line.split()[:2]) for line in table.splitlines() if line.startswith("modal.")}


def pytest_sessionfinish(session, exitstatus):
    """A whole run must have seen each RPC that is called built answered with OK."""
    if session.config.getoption("--server") or not BINARY.exists():
        return
    answered = set(read(os.environ["LYDIAN_RPC_RECORD"]).split()) & built()
    options = session.config.option
    whole = not (options.keyword or options.markexpr or options.collectonly) and [Path(a).resolve() for a in session.config.args] == [APPS.parent]
    if session.config.getoption("--record"):  # a part of the tests adds to it
        before = set() if whole else set(read(RECORD).split())
        RECORD.write_text("".join(f"{name}\n" for name in sorted((before | answered) & built())))
    session.config.unanswered = sorted(built() - answered) if whole and exitstatus in (0, 1) else []
    if session.config.unanswered:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for name in getattr(config, "unanswered", []):
        terminalreporter.write_line(f"FAILED {name} is called built, and no test had it answered with OK", red=True)
    before = os.environ.get("LYDIAN_FAILED_BEFORE", "").split()
    if before:
        terminalreporter.write_line(f"FAILED before these: {' '.join(before)} tests (see above)", red=True)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def server(request, home):
    """What every client test needs: a URL and a configuration file. `lydian` is the same with handles on the processes."""
    url = request.config.getoption("--server")
    config = home / "modal.toml"
    if url:
        config.write_text(f'[other]\nserver_url = "{url}"\ntoken_id = "ak-x"\ntoken_secret = "as-x"\nactive = true\n')
        yield None
        return
    assert os.geteuid() == 0, "the client tests start containers: run them as root"
    assert BINARY.exists(), f"{BINARY} is missing: build first (make build)"
    kept = os.environ.get("LYDIAN_TEST_STATE")
    state = kept or tempfile.mkdtemp(prefix="lydian-test-", dir="/var/tmp")
    it = Lydian(state)
    try:
        it.up()
        it.login(config)
        yield it
    finally:
        if "up" in {p["role"] for p in (it.status()["processes"] if it.cli("status", "--json", check=False).returncode == 0 else [])}:
            it.stop()
        shutil.copytree(it.state / "log", Path(tempfile.gettempdir()) / "lydian-test-logs", dirs_exist_ok=True)
        if not kept:
            it.remove()


@pytest.fixture
def lydian(server):
    if server is None:
        pytest.skip("needs Lydian itself, not just a server")
    return server


@pytest.fixture
def client(server, home):
    return Client(home / "modal.toml", home)


@pytest.fixture
def raw(server, home):
    from harness.raw import Raw  # imports the client's messages: not before they are wanted
    return Raw(home / "modal.toml")


@pytest.fixture
def entry(client):
    """entry("calls", "remote") runs apps/calls.py::remote under `modal run`; its asserts are the test."""
    def run(file, name, *args, timeout=90, env=None):
        return client.modal("run", f"{APPS / file}.py::{name}", *args, timeout=timeout, env=env).ok()
    return run


@pytest.fixture
def gate(tmp_path):
    """Where a program waits until the test has seen something: it reads a line of the FIFO that GATE names; `gate()` writes one."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)  # a reader and a writer at once: neither side waits for the other to open

    def go():
        os.write(fd, b"go\n")
    go.env = {"GATE": str(path)}
    yield go
    os.close(fd)


@pytest.fixture
def program(tmp_path):
    """program("text") writes a script of its own and returns its path."""
    def write(text, name="program.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"^\n", "", text))
        return path
    return write
