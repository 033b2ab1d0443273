"""What a container must not be able to do."""

import ctypes
import os
import socket
import time
from pathlib import Path

import modal

app = modal.App("isolation")


def connects(host, port, timeout=2):
    try:
        with socket.create_connection((host, port), timeout):
            return "connected"
    except OSError as e:
        return type(e).__name__


@app.function()
def reach(targets):
    return {f"{host}:{port}": connects(host, port) for host, port in targets}


@app.function()
def gateway():
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        f = line.split()
        if f[1] == "00000000":
            return socket.inet_ntoa(int(f[2], 16).to_bytes(4, "little"))


@app.function(max_containers=1)
def serve(seconds, port=8123):
    """Listens on eth0, and says where."""
    with socket.create_server(("0.0.0.0", port)) as s, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        print(f"LISTENING {probe.getsockname()[0]} {port}", flush=True)
        s.settimeout(seconds)
        try:
            s.accept()
            return "somebody came"
        except TimeoutError:
            return "nobody came"


def sets_time():
    try:
        time.clock_settime(time.CLOCK_REALTIME, time.time())
        return "allowed"
    except OSError as e:
        return e.strerror


@app.function()
def rights():
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result):
        return "allowed" if result == 0 else os.strerror(ctypes.get_errno())

    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno())
    unshare = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    writable = {}
    for path, data in (("/proc/sys/kernel/hostname", "x"), ("/proc/sysrq-trigger", "h"), ("/sys/kernel/mm/ksm/run", "0"), ("/proc/sys/vm/swappiness", "60")):
        try:
            Path(path).write_text(data)
            writable[path] = "written"
        except OSError as e:
            writable[path] = e.strerror
    def read(path):
        try:
            with open(path, "rb") as f:
                return len(f.read(16))
        except OSError as e:
            return e.strerror
    status = dict(x.split(":\t", 1) for x in Path("/proc/self/status").read_text().splitlines() if ":\t" in x)
    return {"unshare user": os.strerror(unshare) if unshare else "allowed", "mount": call(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
            "mknod": call(libc.mknod(b"/tmp/disk", 0o60600, os.makedev(8, 0))), "writable": writable, "kcore": read("/proc/kcore"),
            "no new privileges": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
            "uid map": Path("/proc/self/uid_map").read_text().split(), "disks": [d for d in os.listdir("/dev") if d.startswith(("sd", "vd", "nvme", "loop", "mem", "kmsg"))],
            "root": sorted(os.listdir("/")), "bpf": call(libc.syscall(321, 0, None, 0)), "time": sets_time()}


@app.local_entrypoint()
def right_checks():
    r = rights.remote()
    assert r["unshare user"] != "allowed", r
    assert r["no new privileges"] == "1" and r["seccomp"] == "2", r
    assert "written" not in r["writable"].values(), r
    assert r["kcore"] == 0 or isinstance(r["kcore"], str), r
    assert r["uid map"][0] == "0" and int(r["uid map"][1]) >= 65536 and int(r["uid map"][2]) < 1 << 20, r
    assert not r["disks"], r
    assert r["bpf"] != "allowed" and r["time"] != "allowed", r


@app.local_entrypoint()
def reaching(targets: str):
    """host:port,host:port; GATEWAY stands for the container's own."""
    at = gateway.remote()
    pairs = [t.replace("GATEWAY", at).rsplit(":", 1) for t in targets.split(",")]
    got = reach.remote([(h, int(p)) for h, p in pairs])
    for k, v in got.items():
        print("REACH", k, v)


@app.local_entrypoint()
def neighbour():
    call = serve.spawn(20)
    time.sleep(0.1)
    print("RESULT", call.get())
