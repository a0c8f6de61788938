"""An engine, its store and its clients, for tests that drive engines directly."""

from __future__ import annotations

import os
from dataclasses import replace

from pagefold_server.engine.interface import EngineOptions, PassReport
from pagefold_server.engine.reference.engine import ReferenceEngine

from support import engine_pools
from support.engine_pools import ReferenceStore
from support.engine_world import (
    FakeClient,
)

ENGINES = ("reference", "native")


class World:
    """An engine, its store and its clients."""

    def __init__(self, name: str) -> None:
        self.store, self.engine = engine_pools.make(name, seed=1)
        self.clients: list[FakeClient] = []

    def client(self, *numbers: int, tracked: bool = False) -> FakeClient:
        """A client; with numbers, it has a segment 1 with these contents."""
        made = FakeClient(self.engine, self.store, len(self.clients) + 1, tracked)
        self.clients.append(made)
        if numbers:
            made.add_segment(len(numbers))
            made.fill(1, numbers)
        return made

    def run_pass(self, slice_pages: int = 1000) -> PassReport:
        """Scans to the end of a pass; nobody answers."""
        while True:
            step = self.engine.scan(slice_pages)
            self.engine.check()
            if step.finished:
                return step.finished

    def settle(self, passes: int = 4) -> PassReport:
        """Passes, after each of which all clients do what they are told."""
        for _ in range(passes):
            report = self.run_pass()
            for client in self.clients:
                if client.segments:
                    client.exchange()
                    client.check()
            self.engine.check()
        return report

    def configure(self, **changes: int) -> None:
        self.engine.configure(replace(EngineOptions(), **changes))

    def close(self) -> None:
        for client in self.clients:
            for segment in client.segments.values():
                os.close(segment.fd)
        self.store.close(unlink=True)


class ReferenceWorld(World):
    """With types that let tests reach in."""

    def __init__(self) -> None:
        super().__init__("reference")
        assert isinstance(self.engine, ReferenceEngine)
        assert isinstance(self.store, ReferenceStore)
        self.reference, self.frames = self.engine, self.store
