"""Every size of arguments and results."""

import pytest

pytestmark = pytest.mark.rpc("BlobCreate", "BlobGet")


@pytest.mark.feature("payloads: inline and blobs")
def test_sizes(entry):
    entry("payloads", "sizes")


@pytest.mark.feature("payloads of 100 MiB")
def test_hundred_megabytes(entry):
    entry("payloads", "hundred", timeout=120)


@pytest.mark.feature("payloads of 100 MiB from inside a container")
def test_large_from_inside(entry):
    entry("payloads", "large_inside", timeout=120)


@pytest.mark.slow
@pytest.mark.feature("payloads of 1 GiB")
def test_gigabyte(entry):
    entry("payloads", "gigabyte", timeout=400)


@pytest.mark.slow
@pytest.mark.feature("files of more than 1 GiB, in parts")
def test_a_file_in_parts(client, program, tmp_path):
    large = tmp_path / "large.bin"
    with open(large, "wb") as f:  # mostly a hole: 17 parts to send, little to keep
        f.truncate((1 << 30) + 5)
        for at in (0, (64 << 20) - 3, 1 << 30):
            f.seek(at)
            f.write(b"hello")
    client.modal("run", program(f"""
import hashlib
import modal

app = modal.App("large-file")

@app.function(image=modal.Image.debian_slim().add_local_file({str(large)!r}, "/data/large.bin"))
def digest():
    with open("/data/large.bin", "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

@app.local_entrypoint()
def main():
    with open({str(large)!r}, "rb") as f:
        assert digest.remote() == hashlib.file_digest(f, "sha256").hexdigest()
"""), timeout=300).ok()
