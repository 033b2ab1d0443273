"""The runtime's imports as a function's container sees them; and its files, for the same outside."""

import subprocess
import sys
from pathlib import Path

import modal

app = modal.App("bench-imports")
CODE = "import time; t = time.perf_counter(); import modal._container_entrypoint; print((time.perf_counter() - t) * 1e3)"


@app.function(max_containers=1)
def measure():
    return float(subprocess.run([sys.executable, "-R", "-c", CODE], capture_output=True, text=True, check=True).stdout)


@app.function(max_containers=1)
def files():
    return subprocess.run(["tar", "-C", "/", "-cf", "-", "pkg", "__modal/deps"], capture_output=True, check=True).stdout


@app.local_entrypoint()
def pack(out: str):
    Path(out).write_bytes(files.remote())


@app.local_entrypoint()
def times(count: int):
    print("TIMES", *(measure.remote() for _ in range(count)))
