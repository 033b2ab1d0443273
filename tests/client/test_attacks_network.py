"""Who has no token, or one and bad manners, against a neighbour whose calls must keep their pace."""

import base64
import hashlib
import http.client
import re
import resource
import select
import socket
import struct
import time

import pytest
from harness.lydian import read, until
from harness.raw import SERVICE
from harness.stranger import Neighbour
from modal_proto import api_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ATTACKER = "127.0.0.66"
LOGS = """
import modal
app = modal.App("talkative")

@app.local_entrypoint()
def main():
    f.remote()

@app.function()
def f():
    for i in range(4000):
        print("x" * 1000)
"""


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(value):
    """A string of HPACK's, up to 16,000 bytes, without Huffman coding."""
    data = value.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    length, out = len(data) - 127, [127]
    while length >= 128:
        out.append(128 | length & 127)
        length >>= 7
    return bytes(out + [length]) + data


def literal(name, value):
    return b"\0" + text(name) + text(value)


def request(path, headers):
    """The block of a gRPC request; nothing of it goes into the table."""
    return b"\x83\x86\x41" + text("x") + b"\x04" + text(path) + literal("te", "trailers") + literal("content-type", "application/grpc") + b"".join(
        literal(k, v) for k, v in headers.items())


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", read(f"/proc/{pid}/status"))[1]) << 10


def connect(lydian, address=ATTACKER, timeout=10):
    return socket.create_connection(("127.0.0.1", lydian.port), timeout, source_address=(address, 0))


def closed_by_server(s, within):
    """Reads what is sent until the other side closes; False when it doesn't."""
    end = time.monotonic() + within
    try:
        while True:
            s.settimeout(max(0.01, end - time.monotonic()))
            if not s.recv(65536):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True


def still_open(connections):
    """Those on which the server has not hung up (they may have been sent something)."""
    poll = select.poll()
    for s in connections:
        poll.register(s, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return len(connections) - len(poll.poll(0))


@pytest.fixture
def neighbour(lydian, home):
    return Neighbour(home / "modal.toml")


@pytest.fixture
def many_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.feature("limits: headers of a call")
def test_headers_that_grow_when_decoded(lydian, neighbour):
    """A block of 16 kB that stands for 62 MB, again and again, without a token."""
    control = lydian.pid("control")
    before = resident(control)
    with neighbour:
        for _ in range(300):
            with connect(lydian) as s:
                entry = b"\x40" + text("x-a") + text("a" * 3900)
                try:
                    s.sendall(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, request("/a.B/C", {}) + entry + b"\xbe" * 12_000))
                    for i in range(1, 40):
                        s.sendall(frame(1, 4, 1 + 2 * i, request("/a.B/C", {}) + b"\xbe" * 16_000))
                except OSError:
                    pass
                assert closed_by_server(s, 10)
    assert resident(control) - before < 100 << 20
    assert lydian.pid("control") == control


@pytest.mark.feature("limits: connections without a token")
def test_silent_connections_of_one_address(lydian, neighbour, many_descriptors):
    if many_descriptors < 2500:
        pytest.skip(f"SKIPPED: a process may have {many_descriptors} descriptors here: too few for 1,500 connections")
    with neighbour:
        silent = [connect(lydian) for _ in range(1500)]
        for s in silent:
            s.sendall(PREFACE + frame(4, 0, 0))
        until("what is too much of one address is closed", 20, lambda: still_open(silent) <= 600)
    for s in silent:
        s.close()


@pytest.mark.feature("limits: connections without a token")
def test_silent_connections_of_many_addresses(lydian, neighbour, many_descriptors):
    """More than the port takes in all, from addresses that each keep to their part."""
    addresses, each = [f"127.0.1.{i}" for i in range(1, 26)], 430
    if many_descriptors < len(addresses) * each + 1000:
        pytest.skip(f"SKIPPED: a process may have {many_descriptors} descriptors here: too few for more connections than the port takes")
    silent = []
    try:
        with neighbour:
            for address in addresses:
                for _ in range(each):
                    silent.append(connect(lydian, address))
                    silent[-1].sendall(PREFACE + frame(4, 0, 0))
    finally:
        for s in silent:
            s.close()


@pytest.mark.feature("limits: connections without a token")
@pytest.mark.slow
def test_who_says_nothing_is_shown_out(lydian):
    """Nothing at all, half a head of HTTP/1.1, a head that trickles, HTTP/2 without a call: each is closed in its time."""
    halves = {b"": 15, b"GET /metrics HTTP/1.1\r\nHost: x\r\n": 15, PREFACE[:10]: 15, PREFACE + frame(4, 0, 0): 45}
    waiting = []
    for data, within in halves.items():
        waiting.append((connect(lydian), data, within))
        waiting[-1][0].sendall(data)
    began = time.monotonic()
    for s, data, within in waiting:
        assert closed_by_server(s, began + within - time.monotonic()), data
        s.close()


@pytest.mark.feature("limits: bodies of uploads")
def test_slow_uploads_without_a_signature(lydian, neighbour):
    """Each is refused before its body comes."""
    with neighbour:
        slow = []
        for _ in range(200):
            slow.append(connect(lydian))
            slow[-1].sendall(b"PUT /blob/bl-0000000000000000000000 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
        began = time.monotonic()
        web = http.client.HTTPConnection("127.0.0.1", lydian.port, timeout=5)
        web.request("GET", "/metrics")
        assert web.getresponse().status == 200
        web.close()
        for s in slow:
            s.settimeout(10)
            assert s.recv(65536).startswith(b"HTTP/1.1 40")
            s.close()
        assert time.monotonic() - began < 20


@pytest.mark.feature("limits: bodies of uploads")
@pytest.mark.slow
def test_slow_uploads_with_a_signature(lydian, raw, neighbour):
    """Signed ones may send, but not at a byte a second, and others have threads meanwhile."""
    urls = []
    for i in range(100):
        body = str(i).encode()
        made = raw.call("BlobCreate", pb.BlobCreateRequest(content_md5=base64.b64encode(hashlib.md5(body).digest()).decode(), content_length=50_000,
                                                           content_sha256_base64=base64.b64encode(hashlib.sha256(body).digest()).decode()))
        urls.append(made.upload_urls.items[0].removeprefix(f"http://127.0.0.1:{lydian.port}"))
    slow = [connect(lydian) for _ in urls]
    with neighbour:
        for s, url in zip(slow, urls, strict=True):
            s.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n".encode())
        end, longest = time.monotonic() + 100, 0
        while (left := still_open(slow)) > 0 and time.monotonic() < end:
            for s in slow:
                try:
                    s.send(b"x")
                except OSError:
                    pass
            began = time.monotonic()
            web = http.client.HTTPConnection("127.0.0.1", lydian.port, timeout=10)
            web.request("GET", "/metrics")
            assert web.getresponse().status == 200
            web.close()
            longest = max(longest, time.monotonic() - began)
            select.select([], [], [], 1)  # the rate of a slow client
        assert left == 0, f"{left} uploads at a byte a second are still under way"
        assert longest < 2
    for s in slow:
        s.close()


@pytest.mark.feature("limits: answers that nobody reads")
@pytest.mark.parametrize("method", ["AppFetchLogs", "AppGetLogs"])
def test_answers_that_nobody_reads(lydian, client, raw, program, neighbour, method):
    """20 connections with a token that ask for megabytes and read nothing."""
    client.modal("run", program(LOGS, "talkative.py"), timeout=120).ok()
    app = max((a for a in raw.call("AppList", pb.AppListRequest()).apps if a.description == "talkative"), key=lambda a: a.created_at).app_id
    ask = pb.AppFetchLogsRequest(app_id=app, limit=20_000)
    assert len(raw.call("AppFetchLogs", ask).SerializeToString()) > 3_000_000
    if method == "AppGetLogs":
        ask = pb.AppGetLogsRequest(app_id=app, timeout=60)
    message = ask.SerializeToString()
    control = lydian.pid("control")
    before = resident(control)
    greedy = []
    with neighbour:
        for _ in range(20):
            s = connect(lydian)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            # Windows of 2 GiB, so that HTTP/2 itself holds nothing back.
            s.sendall(PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 0x7FFFFFFF)) + frame(8, 0, 0, struct.pack(">I", 0x7FFF0000)))
            block = request(SERVICE + method, raw.headers())
            data = frame(0, 1, 0, b"\0" + struct.pack(">I", len(message)) + message)
            s.settimeout(2)
            try:
                for i in range(300):
                    stream = struct.pack(">I", 1 + 2 * i)
                    s.sendall(frame(1, 4, 1 + 2 * i, block) + data[:5] + stream + data[9:])
            except TimeoutError:
                pass  # it is held back
            greedy.append(s)
        select.select([], [], [], 3)  # what was asked is answered, were it not held back
        grown = resident(lydian.pid("control")) - before
        for s in greedy:
            s.close()
    assert lydian.pid("control") == control, "it ran out of memory"
    assert grown < 1 << 30, f"{grown >> 20} MiB"
    until("memory is given back", 30, lambda: resident(control) - before < 200 << 20)
