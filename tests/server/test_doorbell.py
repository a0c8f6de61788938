"""Both ways to ring, and the choice between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import posix_ipc
import pytest
from pagefold_core import Doorbell
from pagefold_proto import shm_names
from pagefold_server.sessions import doorbell
from pagefold_server.sessions.doorbell import Bell, Bells, PosixBell

pytestmark = pytest.mark.usefixtures("no_names")


@pytest.fixture
def semaphore() -> Iterator[posix_ipc.Semaphore]:
    made = posix_ipc.Semaphore(shm_names.new_name("d"), posix_ipc.O_CREX, mode=0o600)
    yield made
    made.unlink()
    made.close()


@pytest.mark.parametrize("make", [Doorbell, PosixBell])
def test_rings_coalesce(make: Callable[[str], Bell], semaphore: posix_ipc.Semaphore) -> None:
    bell = make(semaphore.name)
    for _ in range(3):
        assert bell.ring()
    assert semaphore.value == 1
    semaphore.acquire(0)


def test_the_native_way_works_here() -> None:
    assert doorbell._native_works()


def test_where_it_does_not_posix_ipc_rings(monkeypatch: pytest.MonkeyPatch, semaphore: posix_ipc.Semaphore) -> None:
    class Mute:
        def __init__(self, name: str) -> None:
            pass

        def ring(self) -> bool:
            return True  # and yet nothing happens

    monkeypatch.setattr(doorbell, "Doorbell", Mute)
    bell = Bells().open(semaphore.name, os.geteuid())
    assert isinstance(bell, PosixBell)
    assert bell.ring()
    assert semaphore.value == 1
