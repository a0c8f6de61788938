"""Fixtures of tests with several users on one server, and of tests with a user that means harm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pagefold_proto import shm_names
from support.hostile import HANGS
from support.raw import PAGE
from support.tenancy import tenants_server
from support.tenant_cases import PAGES, SEEDS, Crew, House
from support.worker import Worker


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with tenants_server(tmp_path / "server") as house:
        yield house


@pytest.fixture
def crew(house: House) -> Iterator[Crew]:
    """Starts workers of users that are not root, each with the same pages as all others."""
    started: list[Worker] = []

    def start(uid: int, **connect: str) -> Worker:
        worker = Worker(house[1], uid=uid, **connect)
        started.append(worker)
        worker.call("allocate", "a", PAGES * PAGE)
        worker.call("fill_pages", "a", SEEDS)
        return worker

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def quick() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < HANGS, "the server waited for a client"


@pytest.fixture
def planted(no_names: None) -> Iterator[Callable[..., shm_names.LockedObject]]:
    """Makes pools up, as a client can that knows the tag."""
    made: list[shm_names.LockedObject] = []

    def plant(tag: str, size: int = 4 * PAGE, data: bytes = b"x" * PAGE, at: int = 0) -> shm_names.LockedObject:
        made.append(shm_names.create_locked(shm_names.POOL, 0o600, size, tag))
        os.pwrite(made[-1].fd, data, at)
        return made[-1]

    yield plant
    for pool in made:
        shm_names.remove(pool.name)
        os.close(pool.fd)
