"""Files that travel with the function: the entrypoint, packages, files and folders, mounted and copied."""

import os
import sys
from pathlib import Path

import modal

HERE = Path(__file__).parent
app = modal.App("mounts")
if modal.is_local():
    sys.path.insert(0, str(HERE / "tree"))
base = modal.Image.debian_slim()
mounted = (base.add_local_python_source("helpers").add_local_dir(HERE / "tree/data", "/data").add_local_file(HERE / "tree/run.sh", "/opt/run.sh"))
copied = (base.add_local_python_source("helpers", copy=True).add_local_dir(HERE / "tree/data", "/data", copy=True)
          .add_local_file(HERE / "tree/run.sh", "/opt/run.sh", copy=True).run_commands("cat /data/sub/deep.txt > /opt/seen-by-a-step"))


def look():
    import helpers
    from helpers import words
    found = sorted(str(p) for p in Path("/data").rglob("*"))
    return {"module": helpers.__file__, "word": words.WORD, "found": found, "text": Path("/data/sub/deep.txt").read_text(),
            "mode": oct(os.stat("/opt/run.sh").st_mode & 0o777), "ran": os.popen("/opt/run.sh").read(),
            "root": sorted(os.listdir("/root")), "binary": Path("/data/blob.bin").read_bytes() == bytes(range(256)) * 20000}


@app.function(image=mounted)
def from_mounts():
    return look()


@app.function(image=copied)
def from_layers():
    return look() | {"step": Path("/opt/seen-by-a-step").read_text()}


@app.function(image=mounted)
def writes():
    Path("/data/new.txt").write_text("new")
    Path("/data/sub/deep.txt").write_text("changed")
    Path("/root/mine.txt").write_text("mine")
    return sorted(os.listdir("/data")), Path("/data/sub/deep.txt").read_text()


def check(seen):
    assert seen["module"] == "/root/helpers/__init__.py", seen["module"]
    assert seen["word"] == "word of helpers" and seen["text"] == "deep\n" and seen["binary"]
    assert seen["found"] == ["/data/blob.bin", "/data/sub", "/data/sub/deep.txt", "/data/top.txt"], seen["found"]
    assert seen["mode"] == "0o755" and seen["ran"] == "ran\n", seen
    assert "mounts.py" in seen["root"] and "helpers" in seen["root"], seen["root"]


@app.local_entrypoint()
def main():
    check(from_mounts.remote())
    seen = from_layers.remote()
    check(seen)
    assert seen["step"] == "deep\n"
    assert writes.remote() == (["blob.bin", "new.txt", "sub", "top.txt"], "changed")
    assert (HERE / "tree/data/sub/deep.txt").read_text() == "deep\n", "the source stays as it was"
