"""Arguments and results of every size, from here and from inside a container."""

import hashlib
import resource

import modal

app = modal.App("payloads")
MB = 1 << 20


def pattern(size, seed):
    """Not compressible, not periodic at part boundaries."""
    return hashlib.shake_128(seed.to_bytes(4, "little")).digest(size) if size <= 8 * MB else \
        b"".join(hashlib.shake_128(bytes([seed, i % 256, i // 256])).digest(8 * MB) for i in range(-(-size // (8 * MB))))[:size]


def digest(data):
    return hashlib.sha256(data).hexdigest()


@app.function(memory=6000)
def bounce(data):
    return data[::-1]


@app.function(memory=6000)
def takes(data):
    return len(data), digest(data)


@app.function(memory=(6000, 8 << 10))
def gives(size, seed):
    return pattern(size, seed)


@app.function(memory=6000)
def inside(size):
    data = pattern(size, 3)
    assert bounce.remote(data) == data[::-1]
    return takes.remote(data) == (size, digest(data))


@app.local_entrypoint()
def sizes():
    for size in (0, 1, 100_000, 2 * MB - 100, 2 * MB + 1, 3 * MB):
        data = pattern(size, 1)
        assert bounce.remote(data) == data[::-1], size
    assert [len(x) for x in gives.starmap([(3 * MB + i, i) for i in range(6)])] == [3 * MB + i for i in range(6)]
    assert inside.remote(3 * MB)
    call = gives.spawn(20_000, 7)
    assert call.get() == pattern(20_000, 7)


@app.local_entrypoint()
def hundred():
    size = 100 * MB + 12345
    data = pattern(size, 2)
    assert takes.remote(data) == (size, digest(data))
    assert digest(gives.remote(size, 2)) == digest(data)


@app.local_entrypoint()
def gigabyte():
    size = 1 << 30
    data = pattern(size, 4)
    assert takes.remote(data) == (size, digest(data))
    del data
    assert len(gives.remote(size - 1, 4)) == size - 1
    # A few copies, in the client's and the runtime's nature; not one for each part of an upload.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    assert peak < 8 * size, peak


@app.local_entrypoint()
def large_inside():
    assert inside.remote(100 * MB)
