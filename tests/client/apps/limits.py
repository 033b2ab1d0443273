"""Limits hold, and say what they are."""

import errno
import os
import time

import modal

app = modal.App("limits")


@app.function(max_containers=1)
def forks(n):
    made, error = [], None
    try:
        for _ in range(n):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            made.append(pid)
    except OSError as e:
        error = e.errno
    for pid in made:
        os.kill(pid, 9)
    for pid in made:
        os.waitpid(pid, 0)
    return len(made), error


def fill(path, mib):
    chunk, written = os.urandom(1 << 20), 0
    try:
        with open(path, "wb") as f:
            for _ in range(mib):
                f.write(chunk)
                written += 1
            f.flush()
            os.fsync(f.fileno())
        return written, None
    except OSError as e:
        return written, errno.errorcode[e.errno]
    finally:
        os.unlink(path)


@app.function(ephemeral_disk=1024, max_containers=1)
def small_disk(mib):
    return fill("/tmp/big", mib)


@app.function(cpu=(0.25, 0.5), max_containers=1)
def burns(seconds):
    t0, c0 = time.monotonic(), time.process_time()
    while time.monotonic() - t0 < seconds:
        pass
    return (time.process_time() - c0) / (time.monotonic() - t0)


@app.function(memory=(128, 200), max_containers=1)
def knows_memory():
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if os.path.exists(path):
            return int(open(path).read())


@app.local_entrypoint()
def processes():
    made, error = forks.remote(5000)
    assert 3900 <= made <= 4096 and error == errno.EAGAIN, (made, error)
    assert forks.remote(3)[0] == 3


@app.local_entrypoint()
def disk():
    written, error = small_disk.remote(1500)
    assert error in ("ENOSPC", "EDQUOT"), (written, error)
    assert 800 <= written <= 1100, written
    assert small_disk.remote(300) == (300, None)


@app.local_entrypoint()
def processor():
    share = burns.remote(2)
    assert share < 0.65, share  # a busy machine may give less
