"""The doorbell: a semaphore that a peer cannot turn against the ringing process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import posix_ipc
import pytest
from pagefold_core import Doorbell

NAME = f"/pagefold-d-{os.getpid():032x}"


@pytest.fixture
def semaphore() -> Iterator[posix_ipc.Semaphore]:
    semaphore = posix_ipc.Semaphore(NAME, posix_ipc.O_CREX, mode=0o600)
    yield semaphore
    semaphore.unlink()
    semaphore.close()


def test_rings_coalesce_and_wake_a_posix_waiter(semaphore: posix_ipc.Semaphore) -> None:
    bell = Doorbell(NAME)
    assert bell.ring()
    assert bell.ring()
    assert semaphore.value == 1
    semaphore.acquire(0)
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: (semaphore.acquire(10), woken.set()))
    waiter.start()
    assert not woken.wait(0.1)
    assert bell.ring()
    assert woken.wait(5)
    waiter.join()


def test_waits_for_a_ring_and_for_no_longer_than_told(semaphore: posix_ipc.Semaphore) -> None:
    bell = Doorbell(NAME)
    assert not bell.wait(0.05)
    threading.Timer(0.05, Doorbell(NAME).ring).start()
    assert bell.wait(10)
    semaphore.release()
    assert bell.wait(10), "sem_post rings as well"


def test_ringing_a_truncated_semaphore_fails_and_kills_nobody(semaphore: posix_ipc.Semaphore) -> None:
    bell = Doorbell(NAME)
    os.truncate(f"/dev/shm/sem.{NAME[1:]}", 0)
    assert not bell.ring()
    assert not bell.ring()


@pytest.mark.parametrize("name", ["", "x", "/", "/a/b", "/../etc/passwd", "/a\0b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises((OSError, ValueError)):
        Doorbell(name)


def test_what_is_no_semaphore_is_refused(tmp_path: object) -> None:
    path = f"/dev/shm/sem.{NAME[1:]}"
    os.symlink("/dev/zero", path)
    try:
        with pytest.raises(OSError, match="symbolic"):
            Doorbell(NAME)
    finally:
        os.unlink(path)
    with open(path, "wb") as file:
        file.write(b"short")
    try:
        with pytest.raises(OSError, match="no semaphore"):
            Doorbell(NAME)
    finally:
        os.unlink(path)
    os.mkfifo(path)
    try:
        with pytest.raises(OSError, match="no semaphore"):
            Doorbell(NAME)
    finally:
        os.unlink(path)
