"""One Lydian of the tests' own: state, port and names that meet no other's."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("LYDIAN_BINARY", REPO / "build/src/bin/lydian"))
ROLES = ("up", "control", "worker", "spawner")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def alive(pid):
    stat = read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def wait_gone(pid, timeout):
    """Waits by pidfd for the end of a process that need not be our child."""
    import select
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)


def until(what, timeout, condition, every=0.05):
    """For states that nothing announces to a bystander (a cgroup that has gone, a pid that has changed)."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what} (last seen: {value!r})")
        time.sleep(every)


class Lydian:
    def __init__(self, state, port=None, binary=BINARY):
        self.state, self.binary, self.port = Path(state), Path(binary), port or free_port()
        self.listen = f"127.0.0.1:{self.port}"

    # -- command line ------------------------------------------------------------------------------
    def cli(self, *args, timeout=60, check=True, env=None, input=None):
        command = [str(self.binary), *map(str, args), "--state", str(self.state)]
        if "--" in command:  # what follows is not ours
            at = command.index("--")
            command = [*command[:at], "--state", str(self.state), *command[at:-2]]
        p = subprocess.run(command, env=dict(os.environ) | (env or {}), input=input, stdin=None if input is not None else subprocess.DEVNULL,
                           capture_output=True, timeout=timeout)
        p.stdout, p.stderr = p.stdout.decode(errors="replace"), p.stderr.decode(errors="replace")
        if check:
            assert p.returncode == 0, f"$ {' '.join(command)}\n[{p.returncode}]\n{p.stdout}{p.stderr}\n{self.log_tail()}"
        return p

    def up(self, timeout=60, options=()):
        # The tests' own images are built with whatever index and proxy this machine has.
        self.cli("up", "--background", "--lend-host-settings", "--listen", self.listen, *options, timeout=timeout)

    def login(self, config):
        self.cli("login", env={"MODAL_CONFIG_PATH": str(config)})

    def status(self):
        return json.loads(self.cli("status", "--json").stdout)

    def pid(self, role):
        found = [p["pid"] for p in self.status()["processes"] if p["role"] == role]
        assert len(found) == 1, f"{role}: {found}"
        return int(found[0])

    def tasks(self):
        return [{re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), k): v for k, v in t.items()} for t in self.status().get("tasks", [])]

    def kill(self, role):
        pid = self.pid(role)
        os.kill(pid, signal.SIGKILL)
        assert wait_gone(pid, 10)
        return pid

    def back(self, role, old, timeout=5):
        """Waits until a role is served by another process than before; returns its pid."""
        def other():
            p = self.cli("status", "--json", check=False)
            if p.returncode != 0:
                return None
            found = [x["pid"] for x in json.loads(p.stdout)["processes"] if x["role"] == role]
            return found and int(found[0]) != old and alive(int(found[0])) and int(found[0])
        return until(f"{role} is back", timeout, other)

    def stop(self, timeout=60):
        pid = self.pid("up")
        os.kill(pid, signal.SIGINT)
        assert wait_gone(pid, timeout), f"up did not end within {timeout} s\n{self.log_tail()}"

    # -- what it leaves on the machine ---------------------------------------------------------------
    @property
    def instance(self):
        return read(self.state / "instance").strip()

    def processes(self):
        """Everything that runs our binary for this state, or inside one of our cgroups."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            line = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            if not alive(pid):
                continue
            if (str(self.state) in line and "lydian" in line.split(" ")[0]) or (self.instance and self.instance in read(f"/proc/{pid}/cgroup")):
                found[int(pid)] = line
        return {p: c for p, c in found.items() if p != os.getpid()}

    def cgroups(self):
        name = self.instance
        return sorted({d for d, _, _ in os.walk("/sys/fs/cgroup") if name and name in d})

    def mounts(self):
        return [x.split()[4] for x in read("/proc/self/mountinfo").splitlines() if str(self.state) in x]

    def links(self):
        return [n for n in os.listdir("/sys/class/net") if self.instance and n.startswith(self.instance)]

    def loops(self):
        return [d for d in Path("/sys/block").glob("loop*/loop/backing_file") if str(self.state) in read(d)]

    def tables(self):
        p = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True)
        return [x for x in p.stdout.splitlines() if self.instance and self.instance in x]

    def leftovers(self):
        kinds = {"processes": self.processes(), "cgroups": self.cgroups(), "mounts": self.mounts(), "links": self.links(),
                 "loop devices": self.loops(), "tables": self.tables()}
        return {k: v for k, v in kinds.items() if v}

    def log_tail(self, lines=15):
        out = []
        for f in sorted((self.state / "log").glob("*.log")) if (self.state / "log").is_dir() else []:
            out.append(f"== {f.name}\n" + "\n".join(read(f).splitlines()[-lines:]))
        return "\n".join(out)

    def errors(self):
        """Lines that our daemons logged as errors: a test run should leave none that it didn't cause."""
        return [x for f in sorted((self.state / "log").glob("*.log")) for x in read(f).splitlines() if re.search(r"\berror\b", x[:60], re.I)]

    def remove(self):
        subprocess.run([str(REPO / "tools/remove_instance.sh"), str(self.state), self.instance], check=False)
