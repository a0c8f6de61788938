"""One tenant and everybody's server: what each of these did to it, and that it does so no longer.

Times are no measurements here: a call that waited for a stranger took 45 s, and one that is answered takes none.
"""

from __future__ import annotations

import ast
import ctypes
import fcntl
import json
import os
import re
import secrets
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import posix_ipc
import pytest
import structlog
from google.protobuf.unknown_fields import UnknownFieldSet
from pagefold._session.pools import Pools
from pagefold_core import Doorbell
from pagefold_proto import pool_slots, shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server import settings
from pagefold_server.api.memory import MAX_EVENT_PAGES
from pagefold_server.domains.registry import Domains
from pagefold_server.engine import factory, pool_file
from pagefold_server.engine.interface import EngineOptions
from pagefold_server.engine.native import NativeEngine
from pagefold_server.errors import ProtocolViolation
from pagefold_server.log import Limit
from pagefold_server.sessions import doorbell, registry
from pagefold_server.sessions.doorbell import PosixBell
from pagefold_server.tenants.tenants import Tenant
from support.engine_pools import NativeStore
from support.engine_world import columns
from support.raw import PAGE, Raw, reason
from support.server import Server
from support.tenancy import ALICE, BOB, tenants_server
from support.waiting import until

FOR_ALL = (pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED)
"""Events of which each costs the same, however many pages it is about."""

ROOT = Path(__file__).parents[2]
HANGS = 15.0
"""Seconds after which an answer counts as one that waits for somebody else."""


@pytest.fixture
def quick() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < HANGS, "the server waited for a client"


@pytest.fixture
def deaf() -> Iterator[None]:
    """Whoever holds a file lease that is broken is sent a SIGIO, which ends the process."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


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


def found(uid: int, tag: str) -> pool_file.Orphan | None:
    """What a server that begins now takes over."""
    orphans = pool_file.Orphans()
    orphans.list_names()
    return orphans.find(uid, tag)


def memfd(name: str, pages: int = 1) -> int:
    fd = os.memfd_create(name[1:], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)  # the kernel gives no lease on the first one
    os.close(fd)
    return again


def sparse(pages: int) -> int:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, pages * PAGE)
    return fd


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def refusal(raw: Raw, number: int, name: str, pid: int, descriptor: int) -> tuple[str, str]:
    request = pb.AddSegmentRequest(
        session=raw.token, segment=number, name=name, pages=1, backing=pb.BACKING_MEMFD, pid=pid, descriptor=descriptor
    )
    with pytest.raises(grpc.RpcError) as caught:
        raw.stub.AddSegment(request, timeout=60)
    return reason(caught.value), str(caught.value.details())


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
    assert not Pools(NoSpace()).add(1, made.name), "it may work later"
    assert "file lease" in caplog.text
    fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def sources() -> list[Path]:
    return [path for root in ("client", "protos", "server") for path in (ROOT / root).rglob("*.py")]


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


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(("frames", "taken"), [(1 << 26, False), (1 << 12, True)])
def test_a_pool_that_is_nearly_all_hole_is_not_believed(
    planted: Callable[..., shm_names.LockedObject], frames: int, taken: bool, engine: str
) -> None:
    tag = shm_names.tag_of("here", os.geteuid(), "sparse")
    pool = planted(tag, frames * PAGE, at=(frames - 1) * PAGE)
    pool_slots.hold(pool.fd, 7)
    made, _, inherited = factory.make(engine, os.geteuid(), EngineOptions(), tag, found(os.geteuid(), tag))
    assert inherited is taken
    made.close(unlink=not taken)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_bytes_behind_the_last_whole_page_of_a_pool_are_passed_over(
    planted: Callable[..., shm_names.LockedObject], engine: str
) -> None:
    """The native engine looked for ever at data that lies behind the frames which the size makes."""
    tag = shm_names.tag_of("here", os.geteuid(), "tail")
    pool = planted(tag, 4 * PAGE + 100, data=b"tail", at=4 * PAGE + 50)
    os.pwrite(pool.fd, b"x" * PAGE, PAGE)
    pool_slots.hold(pool.fd, 7)
    code = (
        "import os, sys; from pagefold_server.engine import factory;"
        "from pagefold_server.engine.interface import EngineOptions;"
        "from pagefold_server.engine.pool_file import Orphans; orphans = Orphans(); orphans.list_names();"
        "orphan = orphans.find(os.geteuid(), sys.argv[2]);"
        "made, engine, taken = factory.make(sys.argv[1], os.geteuid(), EngineOptions(), sys.argv[2], orphan);"
        "assert taken; made.close(unlink=False)"
    )
    subprocess.run([sys.executable, "-c", code, engine, tag], check=True, timeout=30)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be two users")
def test_pools_of_another_user_hide_nobodys(planted: Callable[..., shm_names.LockedObject]) -> None:
    """Names were counted before their owners were looked at, and a tag is no secret."""
    tag = shm_names.tag_of("here", 65534, "hidden")
    for _ in range(200):
        planted(tag)
    real = planted(tag)
    os.fchown(real.fd, 65534, -1)
    for _ in range(200):
        planted(tag)
    pool_slots.hold(real.fd, 7)
    orphan = found(65534, tag)
    assert orphan is not None
    assert orphan.name == real.name
    os.close(orphan.fd)


def test_of_many_pools_with_one_tag_few_are_opened(
    planted: Callable[..., shm_names.LockedObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = shm_names.tag_of("here", os.geteuid(), "many")
    for _ in range(100):
        planted(tag)
    looked: list[str] = []
    monkeypatch.setattr(pool_file, "_claim", lambda name, uid: looked.append(name))
    assert found(os.geteuid(), tag) is None
    assert len(looked) == 64


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something is listed, or looked at by its path."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(os, name)

        def counting(*args: Any, **more: Any) -> Any:
            counted[name] += 1
            return real(*args, **more)

        monkeypatch.setattr(os, name, counting)

    for name in ("listdir", "scandir", "lstat", "stat", "open"):
        count(name)
    return counted


def test_names_that_are_planted_while_a_server_runs_are_not_looked_at_by_any_hello(
    planted: Callable[..., shm_names.LockedObject], looks: Counter[str]
) -> None:
    """200,000 of them, with a victim's tag, made its Hello take 2 s, and everybody wait for that long."""
    domains = Domains()
    uid, label = os.geteuid(), "victim"
    for _ in range(300):
        planted(shm_names.tag_of(domains.address, uid, label))
    looks.clear()
    domain = domains.get(Tenant(uid), label, settings.load({}))
    assert looks["listdir"] == looks["scandir"] == 0
    assert looks["lstat"] + looks["stat"] + looks["open"] < 20
    domains.drop(domain)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be two users")
def test_names_that_were_planted_before_a_server_began_are_looked_at_once(
    planted: Callable[..., shm_names.LockedObject], looks: Counter[str]
) -> None:
    domains, uid, label = Domains(), BOB, "victim"
    tag = shm_names.tag_of(domains.address, uid, label)
    for n in range(300):
        os.fchown(planted(tag if n % 2 else secrets.token_hex(8)).fd, ALICE, -1)
    real = planted(tag)
    os.fchown(real.fd, BOB, -1)
    pool_slots.hold(real.fd, 7)
    looks.clear()
    domains.orphans.list_names()
    assert looks["scandir"] + looks["listdir"] == 1
    looks.clear()
    for again in (label, "another", "a third"):
        domain = domains.get(Tenant(uid), again, settings.load({}))
        assert domain.awaiting_resume is (again == label)
        domains.drop(domain)
    assert looks["listdir"] == looks["scandir"] == 0
    assert looks["lstat"] + looks["stat"] + looks["open"] < 60


def test_a_user_with_very_many_pools_takes_little_of_the_servers_memory(
    planted: Callable[..., shm_names.LockedObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_file, "_LISTED", 10)
    for _ in range(50):
        planted(secrets.token_hex(8))
    orphans = pool_file.Orphans()
    orphans.list_names()
    assert sum(map(len, orphans._names.values())) == 10


def test_a_pool_that_is_left_while_clients_map_it_is_found_again_by_the_same_server(
    planted: Callable[..., shm_names.LockedObject],
) -> None:
    domains, uid = Domains(), os.geteuid()
    pool = planted(shm_names.tag_of(domains.address, uid, "again"))
    pool_slots.hold(pool.fd, 7)
    domains.orphans.list_names()
    for _ in range(3):
        domain = domains.get(Tenant(uid), "again", settings.load({}))
        assert domain.awaiting_resume
        assert domain.pool.name == pool.name
        domains.drop(domain)


def test_nobody_lists_shared_memory_where_others_wait_for_it() -> None:
    """Anybody may have as many names there as he likes. Who lists them says here why nobody waits for that."""
    known = {
        ("pool_file.py", "list_names"): "once, in a thread, before the first call is answered",
        ("inventory.py", "entries"): "in a thread",
        ("sweep.py", "_steps"): "a millisecond at a time; and at the end, when nobody is served any more",
        ("addresses.py", "default_address"): "by the program that connects, where somebody has taken its directory",
        ("processes.py", "pids"): "/proc, in a thread",
        ("checks.py", "_removes"): "/etc, by doctor",
    }
    told = set()
    for path in sources():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.unparse(function)
                if any(listing in words for listing in ("listdir(", "scandir(", "os.walk(", "iterdir(", "glob(")):
                    told.add((path.name, function.name))
    assert told == known.keys()
    calls = re.compile(r"(?<!def )\b(entries|lock_takers|pids|orphans\.list_names)\(\)")
    assert not [path.name for path in (ROOT / "server").rglob("*.py") if calls.search(path.read_text())]


def test_fields_that_are_not_in_the_proto_are_not_kept() -> None:
    strange = struct.pack("<B", 0xFA) + b"\x7f" + b"\x80\x40" + bytes(8192)  # field 2047, 8192 bytes
    for message in (pb.HelloRequest(pid=7, label="x"), pb.Gauges(merged_pages=7)):
        said = type(message).FromString(message.SerializeToString() + strange)
        assert said.ByteSize() > 8192
        assert len(UnknownFieldSet(said)) == 1
        kept = registry.kept(said)
        assert kept == message
        assert kept.ByteSize() == message.ByteSize()


@pytest.mark.usefixtures("quick")
def test_room_for_mappings_is_not_looked_for_page_by_page() -> None:
    """300 pairs took 25 s: every Released went through the whole of every table for pages declined before."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    engine.add_client(1)
    fd, pairs = sparse(1 << 24), 4096
    for page in range(2 * pairs):
        os.pwrite(fd, b"x" * PAGE, page * PAGE)
    engine.add_segment(1, 1, fd, 1 << 24)
    for _ in range(3):
        while engine.scan(1 << 20).finished is None:
            pass
    told = [
        (page, frame + page - first)
        for _, first, count, frame in engine.take(1, 2 * pairs).merges
        for page in range(first, first + count)
    ]
    merged, declined = told[:pairs], told[pairs:]
    engine.apply(1, columns(*((pb.EVENT_KIND_MERGED, 1, page, 1, 1, frame, 0) for page, frame in merged)))
    events = []
    for (ours, _), (page, frame) in zip(merged, declined, strict=True):
        events.append((pb.EVENT_KIND_DECLINED, 1, page, 1, 1, frame, pb.DECLINE_REASON_BUDGET))
        events.append((pb.EVENT_KIND_RELEASED, 1, ours, 1, 0, 0, 0))
    engine.apply(1, columns(*events))
    assert engine.counters().pages_declined == pairs
    assert engine.counters().pages_over_budget == 0, "there is room again, and one still waits for it"
    engine.check()
    os.close(fd)
    store.close(unlink=True)


@pytest.mark.usefixtures("quick")
def test_what_is_said_of_holes_takes_neither_memory_nor_time() -> None:
    """Four registry took 1 GB of the server's memory and none of their own, and 1.7 s when they ended."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd, pages, before = sparse(1 << 28), 1 << 28, resident()
    clients = range(1, 5)
    for client in clients:
        engine.add_client(client)
        engine.add_segment(client, 1, fd, pages, tracked=True)
    claims = [
        (pb.EVENT_KIND_WRITTEN, 0, 0),
        (pb.EVENT_KIND_EXCLUDED, 0, 0),
        (pb.EVENT_KIND_INCLUDED, 0, 0),
        (pb.EVENT_KIND_WRITTEN, 0, 1),
        (pb.EVENT_KIND_RESUMED, 0, 0),
        (pb.EVENT_KIND_COPIED, 0, 0),
        (pb.EVENT_KIND_RELEASED, 0, 0),
    ]
    for kind, pool, detail in claims:
        for client in clients if kind in FOR_ALL else clients[:1]:
            for first in range(0, pages, MAX_EVENT_PAGES):
                engine.apply(client, columns((kind, 1, first, MAX_EVENT_PAGES, pool, 0, detail)))
        while engine.scan(1 << 12).finished is None:
            pass
        engine.remaining()
        engine.counters()
        assert resident() - before < 64 << 20
    for client in clients:
        engine.remove_client(client)
    os.close(fd)
    store.close(unlink=True)


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("quick")
def test_who_writes_to_a_segment_for_ever_is_not_waited_for() -> None:
    """A write holds its object's lock while it waits for the page that it writes from, and SEEK_DATA waits for that."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd = sparse(64)
    os.pwrite(fd, b"x" * PAGE, 5 * PAGE)
    if not _tells_presence(fd):
        pytest.skip("this kernel cannot say what is present without that lock (cachestat, Linux 6.5)")
    engine.add_client(1)
    engine.add_segment(1, 1, fd, 64)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    missing = libc.mmap(None, ctypes.c_size_t(PAGE), 3, 0x22, -1, ctypes.c_long(0))
    held = libc.syscall(323, os.O_CLOEXEC)  # userfaultfd
    fcntl.ioctl(held, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))  # UFFDIO_API
    fcntl.ioctl(held, 0xC020AA00, bytearray(struct.pack("QQQQ", missing, PAGE, 1, 0)))  # UFFDIO_REGISTER
    arguments = (fd, ctypes.c_void_p(missing), ctypes.c_size_t(PAGE), ctypes.c_long(0))
    writer = threading.Thread(target=libc.pwrite, args=arguments)
    writer.start()
    try:
        time.sleep(0.1)
        scanner = threading.Thread(target=lambda: [engine.scan(1000) for _ in range(3)], daemon=True)
        scanner.start()
        scanner.join(HANGS / 3)
        assert not scanner.is_alive(), "the scan waits for the writer"
        assert writer.is_alive()
    finally:
        os.close(held)
        writer.join()
        libc.munmap(ctypes.c_void_p(missing), ctypes.c_size_t(PAGE))
        os.close(fd)
    assert engine.counters().pages_unshared == 1
    store.close(unlink=True)


def _tells_presence(fd: int) -> bool:
    told = (ctypes.c_uint64 * 5)()
    asked = (ctypes.c_uint64 * 2)(0, PAGE)
    return ctypes.CDLL(None).syscall(451, fd, asked, told, 0) == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_RESUMED])
def test_what_is_said_of_single_pages_takes_no_more_memory_than_they_do(kind: int) -> None:
    """One page in each block of holes: two registry took 1.1 GiB, and status calls 3 s."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd, pages, before = sparse(1 << 28), 1 << 28, resident()
    engine.add_client(1)
    engine.add_segment(1, 1, fd, pages, tracked=True)

    def say() -> None:
        for first in range(5, pages, 1024 * 4096):
            engine.apply(1, columns(*((kind, 1, first + 1024 * n, 1, 0, 0, 0) for n in range(4096))))

    with pytest.raises(ProtocolViolation, match="as much as the memory that it is about"):
        say()
    assert resident() - before < 32 << 20
    engine.remove_client(1)
    os.close(fd)
    store.close(unlink=True)


def test_what_an_honest_client_says_of_single_pages_is_taken() -> None:
    """Pages that stand alone are as large as what is kept of them."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd, pages = sparse(1 << 24), 1 << 24
    engine.add_client(1)
    engine.add_segment(1, 1, fd, pages, tracked=True)
    alone = range(5, pages, 1024)
    for page in alone:
        os.pwrite(fd, page.to_bytes(8, "little") * (PAGE // 8), page * PAGE)
    for detail in (0, 1, 0):
        for n in range(0, len(alone), 8192):
            engine.apply(
                1, columns(*((pb.EVENT_KIND_WRITTEN, 1, page, 1, 0, 0, detail) for page in alone[n : n + 8192]))
            )
        for _ in range(3):
            while engine.scan(1 << 16).finished is None:
                pass
    assert engine.counters().pages_unshared == len(alone)
    os.close(fd)
    store.close(unlink=True)


def test_a_call_is_about_no_more_pages_than_can_be_booked_at_once(server: Server) -> None:
    with Raw(server.address) as raw:
        raw.hello()
        made = raw.segment(bytes(PAGE))
        raw.add(made.name, 1)
        with pytest.raises(grpc.RpcError) as caught:
            raw.exchange(pb.Events(kind=[pb.EVENT_KIND_INCLUDED], segment=[1], first=[0], count=[MAX_EVENT_PAGES + 1]))
        assert "more than 1048576 pages" in str(caught.value.details())


@pytest.mark.usefixtures("quick")
def test_tokens_that_were_made_up_fill_no_log(server: Server) -> None:
    with Raw(server.address) as raw:
        for _ in range(300):
            with pytest.raises(grpc.RpcError) as caught:
                raw.stub.Bye(pb.ByeRequest(session=secrets.token_bytes(16)), timeout=10)
            assert reason(caught.value) == "REASON_UNKNOWN_SESSION"
    told = server.log.read_text().count("call refused")
    assert 0 < told <= 10 * (HANGS + 1)


def test_what_is_left_out_of_the_log_is_counted_and_hides_nobody_else() -> None:
    now = [100.0]
    limit = Limit(2, 3, lambda: now[0])

    def passes(**event: object) -> bool:
        try:
            return limit(None, "info", event) is event
        except structlog.DropEvent:
            return False

    assert [passes(uid=1) for _ in range(5)] == [True, True, False, False, False]
    assert passes(uid=2), "another user"
    assert all(passes() for _ in range(99)), "nobody's"
    assert limit.left_out() == {}, "the second is not over"
    now[0] += 1
    assert limit.left_out() == {1: 3}
    assert limit.left_out() == {}
    assert [passes(uid=uid) for uid in (1, 1, 1, 2, 3)] == [True, True, False, True, True]
    assert [passes(uid=uid) for uid in (4, 5, 6)] == [True, True, False], "there is no room to tell them apart"
    now[0] += 1
    assert limit.left_out() == {1: 1, -1: 1}
    assert len(limit._told) <= 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be two users")
def test_a_flood_of_sessions_of_one_user_fills_no_log_and_hides_no_other_user(tmp_path: Path) -> None:
    """Hello and Bye in a loop: 400 kB of log a second, in which nothing else could be found."""
    with tenants_server(tmp_path / "server") as (server, address), Raw(address) as alice, Raw(address) as bob:
        for raw, uid in ((alice, ALICE), (bob, BOB)):
            os.chown(f"/dev/shm{raw.lease.name}", uid, uid)
            os.chown(doorbell.path_of(raw.doorbell), uid, uid)
        began = time.monotonic()
        for _ in range(100):
            alice.hello()
            alice.bye()
        seconds = int(time.monotonic() - began) + 2
        bob.hello()
        bob.bye()

        def lines() -> list[dict[str, object]]:
            return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]

        def told(uid: int) -> list[str]:
            return [str(line["event"]) for line in lines() if line.get("uid") == uid]

        assert {"session opened", "domain opened", "session over", "domain closed"} <= set(told(BOB))
        until(lambda: "lines left out" in told(ALICE), what="the number of lines left out")
        assert len(told(ALICE)) <= 10 * (seconds + 2)
        left_out = sum(int(str(line["lines"])) for line in lines() if line["event"] == "lines left out")
        assert left_out + len(told(ALICE)) >= 400


def test_no_error_tells_what_another_process_has_open(server: Server) -> None:
    """Root's server was asked which descriptors of root's processes are open, and of what kind, one by one."""
    own = memfd(shm_names.new_name(shm_names.SEGMENT))
    read, write = os.pipe()
    sleeper = subprocess.Popen(["sleep", "60"])
    name = shm_names.new_name(shm_names.SEGMENT)
    try:
        with Raw(server.address) as raw:
            raw.hello()
            texts = set()
            for pid, descriptor in (
                (os.getpid(), own),  # a memfd, of another name
                (os.getpid(), read),  # a pipe
                (os.getpid(), write),
                (os.getpid(), 987_654),  # nothing
                (sleeper.pid, 0),
                (sleeper.pid, 44),
                ((1 << 22) - 1, 0),  # no process, as a rule
                (1, 0),
            ):
                why, text = refusal(raw, 1, name, pid, descriptor)
                texts.add(
                    (
                        why,
                        text.replace(f"/proc/{pid}/fd/{descriptor} ", "/proc/ ").replace(
                            f"/proc/{pid}/fd/{descriptor}:", "/proc/:"
                        ),
                    )
                )
            assert len(texts) == 1, texts
    finally:
        sleeper.kill()
        sleeper.wait()
        for fd in (own, read, write):
            os.close(fd)
