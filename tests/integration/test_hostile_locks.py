"""A tenant that locks what the server opens: file leases, and thousands of locks on a pool."""

from __future__ import annotations

import ast
import fcntl
import os
import signal
from collections.abc import Callable, Iterator

import grpc
import posix_ipc
import pytest
from pagefold._session.pools import Pools
from pagefold_core import Doorbell
from pagefold_proto import pool_slots, shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.engine import pool_file
from pagefold_server.sessions import doorbell
from pagefold_server.sessions.doorbell import PosixBell
from support.hostile import found, memfd, refusal, sources
from support.raw import PAGE, Raw, reason
from support.server import Server


@pytest.fixture
def deaf() -> Iterator[None]:
    """The holder of a file lease that is broken is sent a SIGIO, which ends the process."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.mark.usefixtures("deaf", "quick")
def test_a_file_lease_on_a_memfd_is_refused_and_not_waited_for(server: Server) -> None:
    name = shm_names.new_name(shm_names.SEGMENT)
    fd = memfd(name)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    with Raw(server.address) as raw:
        raw.hello()
        why, text = refusal(raw, 1, name, os.getpid(), fd)
        assert why == "REASON_NOT_A_SEGMENT"
        assert "file lease" in text
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        raw.stub.AddSegment(
            pb.AddSegmentRequest(
                session=raw.token,
                segment=1,
                name=name,
                pages=1,
                backing=pb.BACKING_MEMFD,
                pid=os.getpid(),
                descriptor=fd,
            )
        )
    os.close(fd)


@pytest.mark.usefixtures("deaf", "quick")
def test_a_file_lease_on_a_named_object_is_refused_and_not_waited_for(server: Server) -> None:
    with Raw(server.address) as raw:
        raw.hello()
        made = raw.segment(bytes(PAGE))
        fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(grpc.RpcError) as caught:
            raw.add(made.name, 1)
        assert reason(caught.value) == "REASON_NOT_A_SEGMENT"
        assert "file lease" in str(caught.value.details())
        fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@pytest.mark.usefixtures("deaf", "quick")
def test_a_file_lease_on_a_pool_that_was_made_up_is_not_waited_for(
    planted: Callable[..., shm_names.LockedObject],
) -> None:
    tag = shm_names.tag_of("here", os.geteuid(), "lease")
    pool = planted(tag)
    pool_slots.hold(pool.fd, 7)
    fcntl.fcntl(pool.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    assert found(os.geteuid(), tag) is None
    fcntl.fcntl(pool.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@pytest.mark.usefixtures("deaf", "quick")
def test_a_file_lease_on_a_doorbell_is_refused_and_not_waited_for(server: Server) -> None:
    with Raw(server.address) as raw:
        raw.bell.close()
        fd = os.open(doorbell.path_of(raw.doorbell), os.O_RDWR | os.O_CLOEXEC)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(grpc.RpcError) as caught:
            raw.hello()
        assert reason(caught.value) == "REASON_NOT_A_SEGMENT"
        assert "file lease" in str(caught.value.details())
        for make in (Doorbell, PosixBell):
            with pytest.raises(BlockingIOError):
                make(raw.doorbell)
        os.close(fd)
        raw.hello()
        raw.bell = posix_ipc.Semaphore(raw.doorbell)


class NoSpace:
    def add_pool(self, pool: int, fd: int, /) -> None:
        raise AssertionError("it was opened")

    def drop_pool(self, pool: int, /) -> bool:
        return True


@pytest.mark.usefixtures("deaf", "quick")
def test_a_client_does_not_wait_for_a_file_lease_on_a_pool(
    planted: Callable[..., shm_names.LockedObject], caplog: pytest.LogCaptureFixture
) -> None:
    made = planted(shm_names.tag_of("here", os.geteuid(), "leased"))
    fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    assert not Pools(NoSpace()).add_pool(1, made.name), "it may work later"
    assert "file lease" in caplog.text
    fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_nothing_is_opened_in_a_way_that_its_owner_can_delay() -> None:
    """shm_open and sem_open know no O_NONBLOCK: they are for what is made. All else says O_NONBLOCK."""
    told = []
    for path in sources():
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            words = ast.unparse(call)
            if words.startswith(("posix_ipc.SharedMemory(", "posix_ipc.Semaphore(")) and "O_CREX" not in words:
                told.append(f"{path.name}: {words}")
            if words.startswith("os.open(") and not any(fine in words for fine in ("NONBLOCK", "O_PATH", "/proc/")):
                told.append(f"{path.name}: {words}")
    assert told == []


@pytest.mark.usefixtures("quick")
def test_thousands_of_locks_on_a_pool_are_not_all_looked_at(planted: Callable[..., shm_names.LockedObject]) -> None:
    tag = shm_names.tag_of("here", os.geteuid(), "locks")
    pool = planted(tag)
    for slot in range(1, 20_000, 2):
        pool_slots.hold(pool.fd, slot)
    orphan = found(os.geteuid(), tag)
    assert orphan is not None
    taken = pool_file.PoolFile(os.geteuid(), tag, orphan)
    assert taken.is_held()
    assert not taken.is_held_only_by(set())
    assert not taken.is_held_only_by({1, 3, 5})
    taken.close(unlink=False)


def test_the_slots_that_are_held_are_told_exactly(planted: Callable[..., shm_names.LockedObject]) -> None:
    pool = planted(shm_names.tag_of("here", 0, "slots"))
    look = os.open(f"/dev/shm{pool.name}", os.O_RDONLY)
    assert not pool_slots.is_any_held(look)
    assert pool_slots.held(look, 9) == set()
    for slot in (5, 9, 1 << 40):
        pool_slots.hold(pool.fd, slot)
    assert pool_slots.held(look, 9) == {5, 9, 1 << 40}
    assert len(pool_slots.held(look, 2)) == 2
    os.close(look)
