"""Source files travel with the function."""

import shutil

import pytest
from conftest import APPS

pytestmark = pytest.mark.rpc("MountGetOrCreate", "MountPutFile", "MountBatchedCheckExistence")


@pytest.mark.feature("add_local_python_source", "add_local_dir", "add_local_file", "copy=True")
def test_mounted_and_copied(client, tmp_path, lydian):
    shutil.copy(APPS / "mounts.py", tmp_path)
    shutil.copytree(APPS / "tree", tmp_path / "tree")
    (tmp_path / "tree/data/blob.bin").write_bytes(bytes(range(256)) * 20000)  # 5 MB: above the limit for inline files
    client.modal("run", tmp_path / "mounts.py", timeout=120).ok()


@pytest.mark.feature("edited source")
def test_an_edited_file_is_seen_at_once(client, program):
    text = """
import modal
app = modal.App("edited")

@app.function()
def f():
    return "version {0}"

@app.local_entrypoint()
def main():
    print("GOT", f.remote())
"""
    for version in (1, 2, 1):
        assert f"GOT version {version}" in client.modal("run", program(text.replace("{0}", str(version)))).ok().out
