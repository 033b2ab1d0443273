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
