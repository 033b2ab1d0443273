"""Measures Lydian against its floors and its peers, all in this run, since only ratios within one run count.

    bench.py [--only NAME,...] [--quick] [--keep-state DIR] [--runs 200]

Prints a table and writes bench-results/<time>.json with every figure, medians and spread. A part that can't be measured here says
why and is marked as not measured; it is never counted as reached.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness.client import BIN, Client  # noqa: E402
from harness.lydian import Lydian, free_port, until  # noqa: E402

BASE = "python:3.11-slim-bookworm"
TICK = os.sysconf("SC_CLK_TCK")
rows, figures = [], {}


class NotMeasured(Exception):
    pass


# -- small helpers ---------------------------------------------------------------------------------------
def p50(values):
    return statistics.median(values)


def p99(values):
    v = sorted(values)
    return v[min(len(v) - 1, max(0, round(len(v) * 0.99) - 1))]


def spread(values):
    v = sorted(values)
    return {"n": len(v), "p50": round(p50(v), 4), "p99": round(p99(v), 4), "min": round(v[0], 4), "max": round(v[-1], 4)}


def row(name, value, target="", reached=None, note=""):
    rows.append((name, value, target, {True: "yes", False: "NO", None: ""}[reached], note))
    print(f"   {name}: {value}  {target}  {rows[-1][3]}  {note}", flush=True)


def cpu_seconds(pid):
    f = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / TICK


def precise_cpu(pid):
    """Nanosecond CPU clock of another process, where /proc's ticks are too coarse."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def timed(command, **kw):
    t0 = time.perf_counter()
    p = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, **kw)
    seconds = time.perf_counter() - t0
    if p.returncode != 0:
        raise NotMeasured(f"{command[0]} {command[1]}: exit code {p.returncode}: {(p.stderr or p.stdout).strip()[-300:]}")
    return seconds * 1e3, p


class Server:
    """A server to compare with, of any make: `command` with {port} filled in serves the official client there, without checking tokens."""

    def __init__(self, command, work, name="other", ready=None):
        self.port = free_port()
        self.out = open(Path(work) / f"{name}-{self.port}.out", "w+")
        self.proc = subprocess.Popen([str(x).replace("{port}", str(self.port)) for x in command], stdout=self.out, stderr=subprocess.STDOUT,
                                     stdin=subprocess.DEVNULL, cwd=work)
        until(f"{name} is ready", 20, ready or self.accepts)
        self.config = Path(work) / f"{name}-{self.port}.toml"
        self.config.write_text(f'[floor]\nserver_url = "http://127.0.0.1:{self.port}"\ntoken_id = "ak-x"\ntoken_secret = "as-x"\nactive = true\n'
                               "disable_api_proxy = true\n")

    def accepts(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def text(self):
        return Path(self.out.name).read_text()

    def lines(self, key):
        return [json.loads(x) for x in self.text().splitlines() if x.startswith("{") and key in x]

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        self.proc.wait(30)


class FloorServer(Server):
    def __init__(self, level, work, *flags):
        super().__init__([sys.executable, HERE / "floor_server.py", "--port", "{port}", "--level", level, "--dir", f"{work}/floor-{level}-{{port}}", *flags], work,
                         f"floor-{level}", lambda: "ready" in self.text())


class Warm:
    """A client that stays: bench orders go in, JSON comes out."""

    def __init__(self, config, home, flags=()):
        self.proc = subprocess.Popen([str(BIN / "python"), str(HERE / "warm_client.py"), *flags], env=Client(config, home).env, stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.read()

    def read(self):
        line = self.proc.stdout.readline()
        if not line:
            raise NotMeasured("the bench's client ended early")
        return json.loads(line)

    def order(self, *words):
        self.proc.stdin.write(" ".join(map(str, words)) + "\n")
        self.proc.stdin.flush()
        return self.read()

    def stop(self):
        self.proc.stdin.close()
        self.proc.wait(60)


class Bench:
    def __init__(self, args):
        self.args, self.quick = args, args.quick
        self.work = Path(tempfile.mkdtemp(prefix="lydian-bench-", dir="/var/tmp"))
        self.state = Path(args.keep_state) if args.keep_state else self.work / "state"
        self.home = self.work / "home"
        self.home.mkdir()
        self.config = self.home / "modal.toml"
        self.it = Lydian(self.state)
        self._root = self.measured = None

    def start(self):
        print("starting Lydian and making images (minutes, the first time)", flush=True)
        self.it.up()
        self.it.cli("image", "base", BASE, timeout=1800)
        self.it.login(self.config)
        self.client = Client(self.config, self.home)
        self.client.modal("run", REPO / "examples/hello.py", timeout=1800).ok()

    def stop(self):
        with contextlib.suppress(Exception):
            self.it.stop()
        if not self.args.keep_state:
            self.it.remove()
        shutil.rmtree(self.work, ignore_errors=True)

    def root(self):
        """The base image as a plain folder, with the files of the client's runtime: what the peers get."""
        if self._root is None:
            self._root = self.work / "root"
            self._root.mkdir()
            pack = ["debug", "run", "--image", BASE, "--", "tar", "-C", "/", "--one-file-system", "-cf", "-", "."]
            with open(self.work / "root.tar", "wb") as f:
                at = pack.index("--")
                subprocess.run([str(self.it.binary), *pack[:at], "--state", str(self.state), *pack[at:]], stdout=f, check=True, timeout=300)
            subprocess.run(["tar", "-C", str(self._root), "--numeric-owner", "-xf", str(self.work / "root.tar")], check=True)
            self.client.modal("run", f"{HERE}/import_app.py::pack", "--out", self.work / "runtime.tar", timeout=120).ok()
            subprocess.run(["tar", "-C", str(self._root), "-xf", str(self.work / "runtime.tar")], check=True)
            for name in ("proc", "sys", "dev", "run", "tmp", "root"):
                (self._root / name).mkdir(exist_ok=True)
        return self._root

    def server_cpu(self):
        if self.measured is None:  # asked once: to ask costs them, too
            self.measured = [self.it.pid(r) for r in ("control", "worker")]
        return sum(map(precise_cpu, self.measured))

    # -- container starts ----------------------------------------------------------------------------------
    def debug_run(self, *flags, command=("python", "-c", "pass")):
        ms, p = timed([str(self.it.binary), "debug", "run", "--rootfs", str(self.root()), "--timing", *flags, "--state", str(self.state), "--", *command])
        return ms, {k.strip(): float(v) for k, v in re.findall(r"^(\S.*?)\s+([\d.]+) ms$", p.stderr, re.M)}

    def starts(self):
        n = 10 if self.quick else 30
        root = self.root()
        ours, phases, empty = [], [], []
        crun, podman, why = [], [], {}
        config = self.crun_bundle(root)
        for i in range(n + 2):  # interleaved; the first two warm up
            ours.append(self.debug_run())
            empty.append(self.debug_run("--empty-pools")) if i % 3 == 0 else None
            for name, into, run in (("crun", crun, lambda: self.crun(config)), ("podman", podman, lambda: self.podman(root))):
                if name not in why and (name == "crun" or i < 2 + n // 2):
                    try:
                        into.append(run())
                    except (NotMeasured, FileNotFoundError, subprocess.TimeoutExpired) as e:
                        why[name] = str(e)
        ours, empty, crun, podman = ours[2:], empty[1:], crun[2:], podman[2:]
        phases = {k: round(p50([t[k] for _, t in ours if k in t]), 3) for k in ours[0][1]}
        ready, reported = [t["ready to exec"] for _, t in ours], [t["exit reported"] for _, t in ours]
        whole = [ms for ms, _ in ours]
        figures["container start"] = {"ready_ms": spread(ready), "exit_reported_ms": spread(reported), "debug_run_whole_ms": spread(whole),
                                      "phases_ms": phases, "pools_empty_ready_ms": spread([t["ready to exec"] for _, t in empty]),
                                      "crun_ms": spread(crun) if crun else why.get("crun"), "podman_ms": spread(podman) if podman else why.get("podman")}
        row("container ready to exec, p50", f"{p50(ready):.1f} ms", "<= 10 ms", p50(ready) <= 10, "phases in the JSON")
        row("- with pools empty, p50", f"{p50([t['ready to exec'] for _, t in empty]):.1f} ms", "report")
        row("python -c pass, request to reported exit", f"{p50(reported):.1f} ms", "", None, f"lydian debug run as a whole {p50(whole):.1f} ms")
        for name, values, limit in (("crun", crun, 0.9), ("podman", podman, 0.15)):
            if values:
                ratio = p50(reported) / p50(values)
                row(f"- against {name} ({p50(values):.1f} ms)", f"{ratio:.2f}x", f"<= {limit}x", ratio <= limit)
            else:
                row(f"- against {name}", "not measured", f"<= {limit}x", None, why.get(name, ""))

    def crun_bundle(self, root):
        bundle = self.work / "bundle"
        bundle.mkdir(exist_ok=True)
        subprocess.run(["crun", "spec"], cwd=bundle, check=True) if not (bundle / "config.json").exists() else None
        spec = json.loads((bundle / "config.json").read_text())
        spec["process"] |= {"terminal": False, "args": ["python", "-c", "pass"], "cwd": "/",
                            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8"]}
        spec["root"] = {"path": str(root), "readonly": True}
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    @staticmethod
    def peer(command):
        """crun, also under podman, refuses a hybrid cgroup tree: there it gets a mount namespace without the v2 part, made before the clock starts."""
        if not Path("/sys/fs/cgroup/unified").is_dir():
            return timed(command)[0]
        script = 'umount -l /sys/fs/cgroup/unified; t0=$(date +%s%N); "$@" || exit; echo $(( $(date +%s%N) - t0 ))'
        _, p = timed(["unshare", "-m", "sh", "-c", script, "sh", *command])
        return int(p.stdout.split()[-1]) / 1e6

    def crun(self, bundle):
        return self.peer(["crun", "run", "--bundle", str(bundle), f"lydian-bench-{time.monotonic_ns()}"])

    def podman(self, root):
        """podman raises limits by default, which root may be denied, and lowers its own to 32,768 processes: as they are, and no more than that."""
        import resource
        files, processes = resource.getrlimit(resource.RLIMIT_NOFILE)[1], min(resource.getrlimit(resource.RLIMIT_NPROC)[1], 1 << 15)
        return self.peer(["podman", "run", "--rm", "--ulimit", f"nofile={files}:{files}", "--ulimit", f"nproc={processes}:{processes}", "--rootfs", str(root),
                          "python", "-c", "pass"])

    def level_b(self):
        return Server(shlex.split(self.args.level_b), self.work, "level-b") if self.args.level_b else FloorServer("b", self.work)

    # -- warm calls ------------------------------------------------------------------------------------------
    def warm(self):
        rounds, per = 5, 100 if self.quick else 400
        n = 500 if self.quick else 2000
        work = self.work
        a, b = FloorServer("a", work), self.level_b()
        clients = {}
        try:
            clients = {"a": Warm(a.config, self.home), "b": Warm(b.config, self.home), "lydian": Warm(self.config, self.home)}
            got, bare = {k: [] for k in clients}, []
            cpu_calls = []
            for _ in range(rounds):
                bare.append(self.echo())
                for k, c in clients.items():
                    before = self.server_cpu()
                    got[k].append(c.order("calls", per))
                    if k == "lydian":
                        cpu_calls.append((self.server_cpu() - before) / per * 1e6)
            maps, cpu_maps, alone = {k: [] for k in clients}, [], []
            for _ in range(rounds):
                alone.append(self.runtime_alone(n))
                for k, c in clients.items():
                    before = self.server_cpu()
                    maps[k].append(c.order("map", n))
                    if k == "lydian":
                        cpu_maps.append((self.server_cpu() - before) / n * 1e6)
        finally:
            for c in clients.values():
                c.stop()
            a.stop()
            b.stop()
        echo = {k: p50([e[k] for e in bare]) for k in bare[0]}
        calls = {k: {"p50_ms": p50([t for r in v for t in r["times_ms"]]), "p99_ms": p50([p99(r["times_ms"]) for r in v]),
                     "client_cpu_us": p50([r["client_cpu_us"] for r in v]), "rounds_p50": [round(p50(r["times_ms"]), 3) for r in v],
                     "rounds_p99": [round(p99(r["times_ms"]), 3) for r in v]} for k, v in got.items()}
        speed = {k: {"per_s": p50([m["per_s"] for m in v]), "all": [round(m["per_s"], 1) for m in v],
                     "client_cpu_us": p50([m["client_cpu_us"] for m in v])} for k, v in maps.items()}
        cores = len(os.sched_getaffinity(0))
        # Round by round, since the machine's speed wanders more from one to the next than the share does.
        possible = [cores / ((m["client_cpu_us"] + r["cpu_us"]) / 1e6) for m, r in zip(maps["a"], alone)]
        shares = [m["per_s"] / best for m, best in zip(maps["lydian"], possible)]
        floor_call = 4 * echo["echo_sequential_us"] + echo["bidi_round_trip_us"]
        floor_input = 2 * echo["echo_concurrent_us"]
        figures["warm"] = {"calls": calls, "maps": speed, "echo": echo, "echo_rounds": bare, "server_cpu_us_call": [round(x, 1) for x in cpu_calls],
                           "server_cpu_us_input": [round(x, 1) for x in cpu_maps], "runtime_alone": alone, "possible_per_s": [round(x, 1) for x in possible],
                           "shares": [round(x, 3) for x in shares],
                           "cores": cores, "calls_per_round": per, "map_inputs": n}
        c, i = p50(cpu_calls), p50(cpu_maps)
        tight_call, tight_input = 4 * echo["tight_sequential_us"] + echo["bidi_round_trip_us"], 2 * echo["tight_concurrent_us"]
        row("server CPU of a warm call", f"{c:.0f} us = {c / floor_call:.2f}x of bare gRPC ({floor_call:.0f} us)", "<= 2x", c <= 2 * floor_call,
            f"{c / tight_call:.2f}x of a C++ client's without a pause ({tight_call:.0f} us)")
        row("server CPU of a map's input", f"{i:.0f} us = {i / floor_input:.2f}x of two echoes ({floor_input:.0f} us)", "<= 2x", i <= 2 * floor_input,
            f"{i / tight_input:.2f}x of a C++ client's without a pause ({tight_input:.0f} us)")
        for q in ("p50_ms", "p99_ms"):
            ours, theirs = calls["lydian"][q], calls["b"][q]
            row(f"warm call, {q[:3]}", f"{ours:.2f} ms = {ours / theirs:.2f}x of level b ({theirs:.2f} ms)", "<= 0.8x", ours <= 0.8 * theirs,
                f"level a {calls['a'][q]:.2f} ms")
        ours, theirs = speed["lydian"]["per_s"], speed["b"]["per_s"]
        row(f"map of {n}, two containers", f"{ours:.0f}/s = {ours / theirs:.2f}x of level b ({theirs:.0f}/s)", ">= 1.3x", ours >= 1.3 * theirs)
        row("- share of the possible", f"{p50(shares):.2f} of {p50(possible):.0f}/s", ">= 0.85", p50(shares) >= 0.85,
            f"rounds {min(shares):.2f} to {max(shares):.2f}; client {speed['a']['client_cpu_us']:.0f} us, "
            f"runtime {p50([r['cpu_us'] for r in alone]):.0f} us an input")

    def echo(self):
        """Bare gRPC: the same messages from the HTTP/2 library of the official client, as one caller and as two containers send them."""
        binary, n = REPO / "build/tests/perf/echo_baseline", 500 if self.quick else 1000
        path = self.work / "bare.sock"
        server = subprocess.Popen([str(binary), "serve", str(path)], stdout=subprocess.PIPE)
        clients = []
        try:
            server.stdout.read(1)
            got = {}
            for name, count in (("echo_sequential_us", 1), ("echo_concurrent_us", 2)):
                clients = [subprocess.Popen([str(BIN / "python"), str(HERE / "echo_client.py"), str(path), str(n)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, text=True) for _ in range(count)]
                for word in ("ready", "done"):
                    for c in clients:
                        if c.stdout.readline().strip() != word:
                            raise NotMeasured("the client of the bare echoes ended early")
                    if word == "ready":
                        before = precise_cpu(server.pid)
                        for c in clients:
                            c.stdin.write("go\n")
                            c.stdin.flush()
                got[name] = (precise_cpu(server.pid) - before) / (n * count) * 1e6
                for c in clients:
                    c.communicate("\n", timeout=30)
        finally:
            for c in clients:
                c.kill()
                c.wait()
            server.kill()
            server.wait()
            path.unlink(missing_ok=True)
        p = subprocess.run([str(binary), str(self.work), "2000" if self.quick else "4000"], capture_output=True, text=True, timeout=120)
        if p.returncode != 0:
            raise NotMeasured(p.stderr.strip() or f"{binary} failed")
        return got | {k: v for k, v in json.loads(p.stdout).items() if k.endswith("_us")}

    def runtime_alone(self, n):
        """One container fed by the floor server with copies of one input, while the client waits."""
        server = FloorServer("b", self.work, "--feed", n)
        path = self.work / "fed.py"
        path.write_text("import modal, sys\napp = modal.App('fed')\n\n@app.function(max_containers=1)\ndef noop(x=None):\n    return 1\n\n"
                        "if __name__ == '__main__':\n    with app.run():\n        noop.remote()\n        sys.stdin.readline()\n")
        try:
            p = subprocess.Popen([str(BIN / "python"), str(path)], env=Client(server.config, self.home).env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
            until("the container has had its inputs", 120, lambda: server.lines('"fed"'))
            p.communicate(b"\n", timeout=60)
            x = server.lines('"fed"')[-1]
        finally:
            server.stop()
        return {"inputs": n, "cpu_us": x["cpu"] / n * 1e6, "per_s": n / x["wall"]}

    # -- a clean run -----------------------------------------------------------------------------------------
    def hello(self):
        n = 5 if self.quick else 12
        a, b = FloorServer("a", self.work), FloorServer("b", self.work)  # which says how long the runtime takes
        got = {"a": [], "b": [], "lydian": []}
        try:
            for _ in range(n + 1):
                for k, config in (("a", a.config), ("b", b.config), ("lydian", self.config)):
                    got[k].append(Client(config, self.home).modal("run", REPO / "examples/hello.py").ok().seconds * 1e3)
            starts = [x["exec_to_first_output"] * 1e3 for x in b.lines("exec_to_first_output")]
        finally:
            a.stop()
            b.stop()
        got = {k: v[1:] for k, v in got.items()}
        limit = p50(got["a"]) + p50(starts) + 60
        figures["hello"] = {k: spread(v) for k, v in got.items()} | {"exec_to_first_output_ms": spread(starts), "limit_ms": limit}
        ours = p50(got["lydian"])
        row("modal run examples/hello.py", f"{ours:.0f} ms", f"<= {limit:.0f} ms", ours <= limit,
            f"client alone {p50(got['a']):.0f} + runtime's start {p50(starts):.0f} + 60; level b {p50(got['b']):.0f}")

    # -- imports ---------------------------------------------------------------------------------------------
    def imports(self):
        from import_app import CODE
        root, n = self.root(), 5 if self.quick else 15
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "/root:/pkg", "HOME": "/root", "LANG": "C.UTF-8"}
        done = self.client.modal("run", f"{HERE}/import_app.py::times", "--count", n + 1).ok()
        inside = [float(x) for x in re.search(r"TIMES (.*)", done.out)[1].split()]
        outside = [float(timed(["/usr/sbin/chroot", str(root), "/usr/local/bin/python", "-R", "-c", CODE], env=env)[1].stdout) for _ in range(n + 1)]
        inside, outside = inside[1:], outside[1:]
        ratio = p50(inside) / p50(outside)
        figures["imports"] = {"inside_ms": spread(inside), "outside_ms": spread(outside)}
        row("the runtime's imports in a container", f"{p50(inside):.0f} ms = {ratio:.2f}x of outside ({p50(outside):.0f} ms)", "<= 1.1x", ratio <= 1.1)

    # -- what stays ------------------------------------------------------------------------------------------
    def counts(self):
        pids = {r: self.it.pid(r) for r in ("up", "control", "worker", "spawner")}
        fds = {f"fds of {r}": len(os.listdir(f"/proc/{p}/fd")) for r, p in pids.items()}
        mounts = sum(1 for x in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.state) in x or self.it.instance in x)
        return fds | {"mounts": mounts, "cgroups": len(self.it.cgroups()), "processes": len(self.it.processes()),
                      "network namespaces": len({os.stat(f"/proc/{p}/ns/net").st_ino for p in self.it.processes()}), "links": len(self.it.links())}

    def settled(self):
        until("no task is left", 60, lambda: not self.it.tasks(), every=0.2)
        time.sleep(2)  # pools refill in the background; nothing announces that they are full

    def leaks(self):
        runs = 20 if self.quick else self.args.runs
        self.settled()
        rss = {r: int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.it.pid(r)}/status").read_text())[1]) / 1024 for r in ("control", "worker", "spawner", "up")}
        for _ in range(3):
            self.client.modal("run", REPO / "examples/hello.py").ok()
        self.settled()
        before = self.counts()
        t0 = time.perf_counter()
        for _ in range(runs):
            self.client.modal("run", "-q", REPO / "examples/hello.py").ok()
        took = time.perf_counter() - t0
        self.settled()
        after = self.counts()
        grown = {k: after[k] - before[k] for k in after if after[k] > before[k]}
        figures["resident"] = {"rss_mb": {k: round(v, 1) for k, v in rss.items()}, "before": before, "after": after, "runs": runs, "seconds": round(took, 1)}
        row("control resident, idle", f"{rss['control']:.1f} MB", "<= 60 MB", rss["control"] <= 60, ", ".join(f"{k} {v:.0f}" for k, v in rss.items() if k != "control"))
        row(f"left after {runs} runs", ", ".join(f"{k} +{v}" for k, v in grown.items()) or "nothing", "nothing", not grown, ", ".join(f"{k} {v}" for k, v in after.items()))


PARTS = ("starts", "imports", "warm", "hello", "leaks")


def table():
    widths = [max(len(str(r[i])) for r in [*rows, ("", "", "target", "reached", "")]) for i in range(4)]
    print()
    for r in [("", "measured", "target", "reached", ""), *rows]:
        print("  ".join(str(r[i]).ljust(widths[i]) for i in range(4)) + ("  " + r[4] if r[4] else ""))


def machine():
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) // 1024
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {"kernel": platform.release(), "cores": len(os.sched_getaffinity(0)), "memory_mb": memory, "cpu": model[1] if model else "", "load": os.getloadavg()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default=",".join(PARTS))
    p.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it works")
    p.add_argument("--keep-state", help="a state directory that stays: images are made once")
    p.add_argument("--runs", type=int, default=200)
    p.add_argument("--level-b", metavar="COMMAND", help="compare warm calls and maps with this server instead of floor_server.py at level b; {port} in it is filled in")
    a = p.parse_args()
    figures["machine"] = machine()
    print(f"load {os.getloadavg()[0]:.1f}: figures of a busy machine are worth little" if os.getloadavg()[0] > 1 else "", flush=True)
    bench = Bench(a)
    failed = []
    try:
        bench.start()
        for name in a.only.split(","):
            print(f"== {name}", flush=True)
            try:
                getattr(bench, name)()
            except (NotMeasured, AssertionError, subprocess.SubprocessError, KeyError, ValueError, OSError) as e:
                failed.append(name)
                row(name, "not measured", "", None, f"{type(e).__name__}: {str(e)[:400]}")
    finally:
        bench.stop()
    table()
    out = REPO / "bench-results"
    out.mkdir(exist_ok=True)
    path = out / time.strftime("%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({"figures": figures, "rows": rows, "quick": a.quick}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(REPO)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
