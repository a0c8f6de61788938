"""A server in this process, on a thread of its own: for tests that reach into its books."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
from pagefold_proto.v1 import admin_pb2_grpc
from pagefold_server.domains.domain import Domain
from pagefold_server.service import Server
from pagefold_server.settings import load

from support import variant

T = TypeVar("T")


class Inside:
    """See the head of this file. Everything that touches the server goes through `do`."""

    def __init__(self, directory: Path, **settings: object) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        quick = {"cpu_ceiling_percent": 100, "sleep_millisecs": 0, "engine": variant.ENGINE}
        self._settings = load(quick | settings | {"address": f"unix:{directory}/server.sock"})
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"
        self.address = self.server.address
        self._channel = grpc.insecure_channel(self.address)
        self.admin = admin_pb2_grpc.AdminStub(self._channel)

    async def _serve(self) -> None:
        self.server = Server(self._settings)
        self._loop = asyncio.get_running_loop()
        try:
            await self.server.start()
            self._ready.set()
            await self.server.serve()
        finally:
            self.server.let_go()

    def do(self, act: Callable[[Server], T]) -> T:
        """Calls a function on the server's thread, between two of its steps."""

        async def call() -> T:
            return act(self.server)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)

    def in_domain(self, act: Callable[[Domain], Any]) -> Any:
        """Calls a function with the only domain there is."""

        def call(server: Server) -> Any:
            (domain,) = server._domains
            return act(domain)

        return self.do(call)

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()
        self._loop.call_soon_threadsafe(self.server.end)
        self._thread.join(20)
