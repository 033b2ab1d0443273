"""Requests of every kind: none ends a process, none gets INTERNAL from a handler of ours."""

import os
import random
import re
import socket

import pytest
from conftest import APPS
from modal_proto import api_grpc, api_pb2

UNARY = sorted(m for m in dir(api_grpc.ModalClientBase) if not m.startswith("_"))
MAP = api_pb2.FUNCTION_CALL_TYPE_MAP
SERVICE = "/modal.client.ModalClient/"
OF_CONTAINERS = ("FunctionGetInputs", "FunctionPutOutputs", "TaskResult", "ContainerHello")  # answered by their worker alone


@pytest.fixture
def steady(lydian):
    """The same processes before and after, and they still answer."""
    before = {p["role"]: p["pid"] for p in lydian.status()["processes"]}
    yield lydian
    assert {p["role"]: p["pid"] for p in lydian.status()["processes"]} == before


@pytest.mark.feature("bytes that are no message")
def test_garbage(raw, steady):
    assert len(UNARY) == 285
    chance = random.Random(7)
    bad = {}
    for name in UNARY:
        for data in (b"\xff" * 20, chance.randbytes(60)):
            code, text, _ = raw.bytes(SERVICE + name, data)
            if code not in ("INVALID_ARGUMENT", "UNIMPLEMENTED"):
                bad[name] = (code, text)
            assert len(text) < 4096
    assert not bad


@pytest.mark.feature("empty and strange messages")
def test_empty_messages(raw, steady):
    """Nothing filled in: any answer but INTERNAL, UNKNOWN or silence. Streams and long polls may wait."""
    waits = {"AppGetLogs", "ImageJoinStreaming", "FunctionGetOutputs", "FunctionGetInputs", "ContainerHeartbeat"}
    bad = {}
    for name in sorted(set(UNARY) - waits):
        try:
            code, text, _ = raw.bytes(SERVICE + name, b"", timeout=10)
        except TimeoutError:
            code, text = "silence", ""
        if code in ("INTERNAL", "UNKNOWN", "silence", "UNAVAILABLE"):
            bad[name] = (code, text)
        if code == "UNIMPLEMENTED":  # a sentence about what the user wanted, not about an RPC; but for what a container asks its worker
            sentence = text.endswith(".") and name not in text
            if not sentence and (name not in OF_CONTAINERS or text != f"this server has no method {SERVICE}{name}"):
                bad[name] = (code, text)
    assert not bad


@pytest.mark.feature("unknown methods")
def test_unknown_methods(raw, steady):
    for path in (SERVICE + "NoSuchMethod", "/no.such.Service/Method", SERVICE, "/x"):
        code, text, _ = raw.bytes(path, b"")
        assert code == "UNIMPLEMENTED", (path, code, text)
    assert "NoSuchMethod" in raw.bytes(SERVICE + "NoSuchMethod", b"")[1]


@pytest.mark.feature("ids of another kind")
def test_ids_of_another_kind(raw, steady):
    cases = [("FunctionMap", api_pb2.FunctionMapRequest(function_id="ap-" + "A" * 22, function_call_type=MAP)),
             ("FunctionMap", api_pb2.FunctionMapRequest(function_id="../../etc/passwd", function_call_type=MAP)),
             ("AppStop", api_pb2.AppStopRequest(app_id="fu-" + "A" * 22)),
             ("AppHeartbeat", api_pb2.AppHeartbeatRequest(app_id="ap-" + "Z" * 22)),
             ("FunctionGetOutputs", api_pb2.FunctionGetOutputsRequest(function_call_id="fu-" + "A" * 22)),
             ("BlobGet", api_pb2.BlobGetRequest(blob_id="../../../etc/shadow")),
             ("BlobGet", api_pb2.BlobGetRequest(blob_id="bl-" + "x" * 5000)),
             ("ContainerStop", api_pb2.ContainerStopRequest(task_id="im-" + "A" * 22)),
             ("AppClientDisconnect", api_pb2.AppClientDisconnectRequest(app_id="'; DROP TABLE apps; --")),
             ("SecretDelete", api_pb2.SecretDeleteRequest(secret_id="ap-" + "A" * 22))]
    for name, request in cases:
        code, text, _ = raw.bytes(SERVICE + name, request.SerializeToString())
        assert code == "NOT_FOUND", (name, request, code, text)
        assert len(text) < 4096


@pytest.mark.feature("tokens are checked")
def test_no_token_no_answer(raw, steady):
    open_to_all = {"ClientHello", "TokenFlowCreate", "TokenFlowWait", "CliCommandSuggest"}
    bad = {}
    for name in sorted(set(UNARY) - open_to_all):
        code, text, _ = raw.bytes(SERVICE + name, b"", headers={"x-modal-client-type": "1"}, timeout=10)
        if code not in ("UNAUTHENTICATED", "UNIMPLEMENTED"):
            bad[name] = (code, text)
    assert not bad


@pytest.mark.feature("containers' methods are not for users")
def test_a_client_cannot_pose_as_a_task(raw, steady):
    for name in OF_CONTAINERS:
        code, text, _ = raw.bytes(SERVICE + name, b"", headers=raw.headers() | {"x-lydian-task": "ta-" + "0" * 26}, timeout=10)
        assert code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION"), (name, code, text)


@pytest.mark.feature("anything on the port")
def test_noise_on_the_port(steady, client):
    port = steady.port
    noises = [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, os.urandom(2000),
              b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"POST /blob/x HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b""]
    silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(50)]
    for noise in noises:
        with socket.create_connection(("127.0.0.1", port), 5) as s:
            s.settimeout(5)
            try:
                s.sendall(noise)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:  # closed or reset, perhaps before all was sent
                pass
    client.modal("app", "list").ok()
    for s in silent:
        s.close()


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.mark.feature("HTTP/2 that breaks the protocol")
def test_wrong_http2(steady, client, raw):
    rng = random.Random(7)
    # ":method: POST", ":scheme: http", ":path: /", ":authority: x" in HPACK
    request = bytes([0x83, 0x86, 0x84, 0x41, 0x01]) + b"x"
    streams = [frame(0, 0, 0, b"data on the connection itself"), frame(1, 4, 1, b"\xff" * 40), frame(1, 4, 2, request), frame(9, 4, 1, b"x"),
               frame(8, 0, 0, b"\0\0\0\0"), frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"), frame(5, 4, 1, b"\0\0\0\2" + request), frame(77, 0, 1, b"unknown"),
               b"".join(frame(6, 0, 0, bytes(8)) for _ in range(20_000)), b"".join(frame(4, 0, 0) for _ in range(20_000)),
               b"".join(frame(1, 4, 2 * i + 1, request) + frame(3, 0, 2 * i + 1, b"\0\0\0\x08") for i in range(30_000)),
               frame(1, 0, 1, request) + b"".join(frame(9, 0, 1, b"\x00\x01a" + bytes([120]) + b"b" * 120) for _ in range(5_000)),
               frame(1, 4, 1, request) + frame(0, 0, 1, b"\0\xff\xff\xff\xff" + bytes(1000)), frame(1, 4, 1, request) + frame(0, 1, 1, b"\7" * 9),
               *(b"".join(frame(rng.randrange(11), rng.randrange(256), rng.randrange(4), rng.randbytes(rng.randrange(40))) for _ in range(50))
                 for _ in range(200))]
    for stream in streams:
        with socket.create_connection(("127.0.0.1", steady.port), 5) as s:
            s.settimeout(5)
            try:
                s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + stream)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:
                pass
    code, text, _ = raw.bytes(SERVICE + "AppList", b"", headers=raw.headers() | {"x-large": "x" * 40_000, "x-larger": "x" * 40_000}, timeout=10)
    assert code == "RESOURCE_EXHAUSTED" and "64 KiB" in text, (code, text)
    client.modal("app", "list").ok()


@pytest.mark.feature("blob URLs are signed")
def test_blob_urls(raw, steady):
    import base64
    import hashlib
    import urllib.error
    import urllib.request

    def http(method, url, data=None):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=10) as r:
                return r.status, r.read()
        except urllib.error.HTTPError as e:
            return e.code, b""
        except ConnectionError:
            return 0, b""

    body = os.urandom(1000)
    request = api_pb2.BlobCreateRequest(content_md5=base64.b64encode(hashlib.md5(body).digest()).decode(), content_length=len(body),
                                        content_sha256_base64=base64.b64encode(hashlib.sha256(body).digest()).decode())
    made = raw.call("BlobCreate", request)
    (blob,), (put,) = made.blob_ids, made.upload_urls.items
    assert http("PUT", put, body[:-1])[0] >= 400, "shorter than announced"
    assert http("PUT", put, os.urandom(1000))[0] >= 400, "other bytes than announced"
    assert http("GET", put)[0] >= 400, "signed for PUT"
    assert http("PUT", re.sub(r"[0-9a-f]{6}$", "000000", put), body)[0] >= 400 or not re.search(r"[0-9a-f]{6}$", put)
    assert http("PUT", put, body)[0] == 200
    get = raw.call("BlobGet", api_pb2.BlobGetRequest(blob_id=blob)).download_url
    assert http("GET", get) == (200, body)
    assert http("GET", get.split("?")[0])[0] >= 400, "unsigned"
    other = raw.call("BlobCreate", request)
    assert http("PUT", put.replace(blob, other.blob_ids[0]), body)[0] >= 400 or blob not in put


@pytest.mark.feature("idempotency")
def test_a_repeated_create_is_one(raw, steady):
    request = api_pb2.AppCreateRequest(description="twice", app_state=api_pb2.APP_STATE_EPHEMERAL)
    headers = {"x-idempotency-key": "5d3c0f2e-9d0b-4b58-9d1f-0d6a3f1a7c11", "x-retry-attempt": "0"}
    ids = {raw.call("AppCreate", request, headers).app_id for _ in range(3)}
    assert len(ids) == 1
    assert raw.call("AppCreate", request, {"x-idempotency-key": "5d3c0f2e-9d0b-4b58-9d1f-0d6a3f1a7c12"}).app_id not in ids


@pytest.mark.feature("still works")
def test_a_run_after_all_that(entry, steady):
    assert "DELIVERED 5" in entry("faults", "mapping", "--count", "5").out
    assert APPS.exists()
