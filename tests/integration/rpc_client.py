#!/usr/bin/env python3
"""Drives rpc_probe with the client's own libraries: grpclib over TCP and a unix socket, blobs through the client's functions.

usage: rpc_client.py PROBE PYTHON   (PYTHON: one that has the pinned client; 77 = skipped, without it)
"""

import os
import subprocess
import sys
import tempfile


def outer(probe, python):
    if not os.path.exists(python):
        print(f"skipped: no {python} with the client in it")
        return 77
    with tempfile.TemporaryDirectory(prefix="lydian-rpc-client-") as directory:
        server = subprocess.Popen([probe, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            port = server.stdout.readline().strip()
            code = subprocess.run([python, __file__, "--inner", port, directory]).returncode
        finally:
            server.stdin.close()
            ended = server.wait(timeout=10)
        return code or ended


def inner(port, directory):
    import asyncio
    import hashlib
    import random
    import urllib.parse
    import urllib.request

    from grpclib.client import Channel, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
    from grpclib.const import Status
    from grpclib.encoding.base import CodecBase
    from grpclib.exceptions import GRPCError
    from modal._utils import blob_utils
    from modal_proto import api_pb2

    class Raw(CodecBase):
        __content_subtype__ = "proto"

        def encode(self, message, message_type):
            return message

        def decode(self, data, message_type):
            return data

    base = f"http://127.0.0.1:{port}"

    def connect(unix):
        channel = Channel(path=directory + "/socket", codec=Raw()) if unix else Channel("127.0.0.1", int(port), codec=Raw())
        return channel

    def unary(channel, name):
        return UnaryUnaryMethod(channel, "/t.S/" + name, bytes, bytes)

    async def fails(call):
        try:
            await call
        except GRPCError as error:
            return error.status, error.message
        raise AssertionError("no error")

    async def basics(channel):
        echo = unary(channel, "Echo")
        for message in (b"", b"hi", os.urandom(20 << 20)):
            assert await echo(message) == message
        answers = await asyncio.gather(*[echo(str(i).encode()) for i in range(500)])
        assert answers == [str(i).encode() for i in range(500)]
        status, text = await fails(unary(channel, "Nothing")(b""))
        assert status is Status.UNIMPLEMENTED and "Nothing" in text, text
        async with unary(channel, "Fail").open() as stream:
            await stream.send_message("gone \u00e9".encode(), end=True)
            status, text = await fails(stream.recv_message())
            assert (status, text) == (Status.NOT_FOUND, "gone \u00e9")
            assert stream.trailing_metadata["x-modal-warning"] == "old%20client"
        assert len(await UnaryStreamMethod(channel, "/t.S/Count", bytes, bytes)(b"500")) == 500

    # Calls that are cancelled or run into their deadlines must not cost the connection, on which other streams live.
    async def cancels(channel):
        async with StreamStreamMethod(channel, "/t.S/Chat", bytes, bytes).open() as chat:
            await chat.send_message(b"a")
            assert await chat.recv_message() == b"re a"

            async def one(i):
                method = unary(channel, random.choice(["Hold", "Echo"]))
                try:
                    await asyncio.wait_for(method(b"x", timeout=random.choice([None, 0.0001, 0.01, 0.05])), random.random() / 10)
                except (asyncio.TimeoutError, GRPCError):
                    pass

            for _ in range(5):
                await asyncio.gather(*[one(i) for i in range(200)])
            status, text = await fails(unary(channel, "Echo")(bytes((128 << 20) + 1)))
            assert status is Status.RESOURCE_EXHAUSTED, text
            await chat.send_message(b"b")
            assert await chat.recv_message() == b"re b"
            await chat.end()

    class Stub:
        count = 0

        def ask(self, path, **query):
            query["base"] = base
            with urllib.request.urlopen(f"{base}{path}?{urllib.parse.urlencode(query)}") as response:
                return response.read().decode()

        async def BlobCreate(self, request, **_):
            Stub.count += 1
            blob_id = f"bl-test{Stub.count}"
            url, length, completion, *parts = self.ask(
                "/plan", id=blob_id, size=request.content_length, md5=request.content_md5
            ).splitlines()
            if url:
                return api_pb2.BlobCreateResponse(blob_ids=[blob_id], upload_urls={"items": [url]})
            part = api_pb2.MultiPartUpload(part_length=int(length), completion_url=completion, upload_urls=parts)
            return api_pb2.BlobCreateResponse(blob_ids=[blob_id], multiparts={"items": [part]})

        async def BlobGet(self, request, **_):
            return api_pb2.BlobGetResponse(download_url=self.ask("/get", id=request.blob_id))

    async def blobs():
        stub = Stub()
        for size in (0, 5, 3 << 20, (64 << 20) + 1):
            data = os.urandom(size)
            assert await blob_utils.blob_download(await blob_utils.blob_upload(data, stub), stub) == data
        path = directory + "/large"
        with open(path, "wb") as file:
            for i in range(150):
                file.write(bytes([i]) * (1 << 20))
        with open(path, "rb") as file:
            blob_id = await blob_utils.blob_upload_file(file, stub, md5_hex="baadbaad" * 4, sha256_hex="00" * 32)
        digest = hashlib.md5()
        async for chunk in blob_utils.blob_iter(blob_id, stub):
            digest.update(chunk)
        with open(path, "rb") as file:
            assert hashlib.file_digest(file, "md5").digest() == digest.digest()

    async def run():
        for unix in (False, True):
            channel = connect(unix)
            await basics(channel)
            await cancels(channel)
            channel.close()
        await blobs()

    asyncio.run(run())
    print("ok")


if __name__ == "__main__":
    if sys.argv[1] == "--inner":
        inner(sys.argv[2], sys.argv[3])
    else:
        sys.exit(outer(sys.argv[1], sys.argv[2]))
