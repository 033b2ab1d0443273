"""Sends unary echoes of a warm call's sizes and headers, one after the other, from the HTTP/2 library that the official client uses.

    echo_client.py SOCKET COUNT

How a client writes decides what a server pays: this library sends a request's headers and its message apart, each of which wakes the server.
A line "go" on stdin starts the echoes; "done" on stdout ends them.
"""

import asyncio
import sys
import time
import uuid

from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase

# Bytes of the four requests of a warm call: FunctionMap, FunctionGetOutputs, FunctionGetInputs, FunctionPutOutputs.
SIZES = (110, 70, 40, 160)
HEADERS = {"x-modal-client-version": "1.6.4", "x-modal-client-type": "1", "x-modal-python-version": "3.11.2", "x-modal-node": "host",
           "x-modal-platform": "Linux-6.1.0-x86_64-with-glibc2.36", "x-modal-token-id": "ak-" + "x" * 22, "x-modal-token-secret": "as-" + "x" * 22}


class Raw(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


async def echo(channel, size):
    headers = HEADERS | {"x-modal-timestamp": str(time.time()), "x-idempotency-key": str(uuid.uuid4()), "x-retry-attempt": "0", "x-throttle-retry-attempt": "0"}
    async with channel.request("/echo/Unary", Cardinality.UNARY_UNARY, bytes, bytes, metadata=headers) as stream:
        await stream.send_message(b"x" * size, end=True)
        assert len(await stream.recv_message()) == size


async def main(path, count):
    async with Channel(path=path, codec=Raw()) as channel:
        for i in range(100):
            await echo(channel, SIZES[i % 4])
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(count):
            await echo(channel, SIZES[i % 4])
        print("done", flush=True)
        sys.stdin.readline()  # the end of the connection isn't measured


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
