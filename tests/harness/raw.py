"""Speaks to a server below the client's library: single RPCs with chosen headers, bytes that are no message, streams."""

import asyncio
import tomllib
from pathlib import Path
from urllib.parse import urlparse

from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from modal_proto import api_grpc, api_pb2

SERVICE = "/modal.client.ModalClient/"


class Bytes:
    """Stands in for a message class: what goes in and out is bytes as they are."""

    def __init__(self, data=b""):
        self.data = data

    def SerializeToString(self):
        return self.data

    @classmethod
    def FromString(cls, data):
        return cls(data)


def profile(config):
    """(url, token id, token secret) of the only profile in a configuration file."""
    (p,) = tomllib.loads(Path(config).read_text()).values()
    return p["server_url"], p["token_id"], p["token_secret"]


class Raw:
    def __init__(self, config, token=None, secret=None):
        self.url, self.token, self.secret = profile(config)
        self.token, self.secret = token or self.token, secret or self.secret

    def headers(self):
        return {"x-modal-client-version": "1.6.4", "x-modal-client-type": "1", "x-modal-python-version": "3.11.2",
                "x-modal-token-id": self.token, "x-modal-token-secret": self.secret}

    def _run(self, work, timeout):
        async def main():
            at = urlparse(self.url)
            channel = Channel(at.hostname, at.port)
            try:
                return await asyncio.wait_for(work(channel), timeout)
            finally:
                channel.close()
        return asyncio.run(main())

    def call(self, name, request=None, headers=None, timeout=20):
        """One unary call of the client's service; raises GRPCError."""
        stub_headers = self.headers() | (headers or {})

        async def work(channel):
            method = getattr(api_grpc.ModalClientStub(channel), name)
            return await method(request if request is not None else method.request_type(), metadata=stub_headers)
        return self._run(work, timeout)

    def bytes(self, path, data, headers=None, timeout=20):
        """Sends bytes as the one message of a call; returns (code name or "OK", status text, answer)."""
        metadata = self.headers() if headers is None else headers

        async def work(channel):
            try:
                async with channel.request(path, Cardinality.UNARY_UNARY, Bytes, Bytes, metadata=metadata) as stream:
                    await stream.send_message(Bytes(data), end=True)
                    answer = await stream.recv_message()
                    return "OK", "", answer.data if answer else b""
            except GRPCError as e:
                return e.status.name, e.message or "", b""
        return self._run(work, timeout)

    def logs(self, app_id, timeout=20):
        """All log items of an app that is done: [(file descriptor, text)]."""
        async def work(channel):
            found, last = [], ""
            while True:
                request = api_pb2.AppGetLogsRequest(app_id=app_id, last_entry_id=last, timeout=5)
                async for batch in _items(channel, request, self.headers()):
                    last = batch.entry_id or last
                    found += [(i.file_descriptor, i.data) for i in batch.items if i.data]
                    if batch.app_done:
                        return found
        return self._run(work, timeout)


async def _items(channel, request, headers):
    async with api_grpc.ModalClientStub(channel).AppGetLogs.open(metadata=headers) as stream:
        await stream.send_message(request, end=True)
        async for item in stream:
            yield item
