"""Clients of a server inside the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pagefold
import pytest
from pagefold.testing import FakeServer
from support.fake_pool import FakePool


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
def connect(fake: FakeServer, no_names: None) -> Iterator[Callable[..., pagefold.Client]]:
    clients: list[pagefold.Client] = []

    def one(**options: Any) -> pagefold.Client:
        clients.append(pagefold.connect(transport=pagefold.LocalTransport(fake), **options))
        return clients[-1]

    yield one
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., pagefold.Client]) -> pagefold.Client:
    return connect()


@pytest.fixture
def pool(fake: FakeServer, connect: Callable[..., pagefold.Client]) -> Iterator[FakePool]:
    pool = FakePool(fake)
    yield pool
    pool.close()
