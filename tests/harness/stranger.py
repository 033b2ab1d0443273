"""Users beside the one who is tested: of another workspace, and one who watches how long his calls take."""

import asyncio
import json
import statistics
import threading
import time

from grpclib.client import Channel
from modal_proto import api_grpc, api_pb2

from .client import Client
from .raw import Raw, profile


class Stranger:
    """A client and a raw connection of another workspace."""

    def __init__(self, lydian, folder):
        token = json.loads(lydian.cli("token", "create", "--workspace", "strangers", "--json").stdout)
        config = folder / "modal.toml"
        config.write_text(f'[p]\nserver_url = "http://127.0.0.1:{lydian.port}"\ntoken_id = "{token["token_id"]}"\n'
                          f'token_secret = "{token["token_secret"]}"\nactive = true\n')
        self.client, self.raw, self.token = Client(config, folder), Raw(config), token["token_id"]


class Neighbour:
    """While it is entered, and until ten calls are done, one call after the other is made, every other one over a connection of its
    own; a call that fails or gets no answer within `patience` seconds fails the test."""

    def __init__(self, config, patience=5):
        self.raw, self.url, self.patience = Raw(config), profile(config)[0], patience
        self.took, self.failures = [], []

    def __enter__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        if error[0] is None:
            assert not self.failures, self.failures[:5]

    async def _ask(self):
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        kept = Channel(host, int(port))
        try:
            while not self._stop.is_set() or len(self.took) < 10:
                fresh = Channel(host, int(port)) if len(self.took) % 2 else None
                began = time.monotonic()
                try:
                    await asyncio.wait_for(api_grpc.ModalClientStub(fresh or kept).AppList(api_pb2.AppListRequest(), metadata=self.raw.headers()),
                                           self.patience)
                except Exception as e:  # the test says which
                    self.failures.append((round(time.monotonic() - began, 2), repr(e)))
                self.took.append(time.monotonic() - began)
                if fresh:
                    fresh.close()
                await asyncio.sleep(0.02)
        finally:
            kept.close()

    def median(self):
        return statistics.median(self.took)
