"""fsck finds what is different, exactly that, and nothing where nothing is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.test_hammer import HAMMER
from pagefold_proto import shm_names
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_server.audit import survey
from pagefold_server.domains.domain import Domain
from pagefold_server.engine.states import MERGED
from pagefold_server.procfs import mappings, processes
from support.audit import Audit, assert_clean, audit
from support.engine_world import RELEASED, columns
from support.inside import Inside
from support.raw import Raw, noise
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.usefixtures("no_names")]

SHM = "/dev/shm"
SEEDS = [0, 0, *range(2, 16), *range(2, 16)]  # zeros, and pairs; behind them is a page that is like no other
PAGE_2 = SEEDS.index(2)

# Does to the worker's own address space what a bug would do.
REMAP = """
import ctypes, mmap, os
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
PRIVATE, FIXED, ANONYMOUS, READ, READ_WRITE = 2, 16, 32, 1, 3
def run(remote, name, page, how, path="", offset=0):
    address = ctypes.addressof((ctypes.c_char * 1).from_buffer(remote.buffers[name])) + page * PAGE
    if how == "unmap":
        assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE)) == 0
    elif how == "anonymous":
        assert libc.mmap(address, PAGE, READ_WRITE, PRIVATE | FIXED | ANONYMOUS, -1, 0) == address
    elif how == "forget":
        assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 4) == 0
    else:
        write = how == "shared"
        fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        if how == "frame":
            assert libc.mmap(address, PAGE, READ_WRITE, PRIVATE | FIXED, fd, offset * PAGE) == address
        else:
            remote.kept = mmap.mmap(fd, PAGE, mmap.MAP_SHARED if write else mmap.MAP_PRIVATE, READ_WRITE,
                                    offset=offset * PAGE)
        os.close(fd)
"""
FORK = """
import os
def run(remote):
    remote.pipe = os.pipe()
    ready, tell = os.pipe()
    remote.child = os.fork()
    if remote.child == 0:
        os.close(remote.pipe[1])
        os.write(tell, b"1")
        os.read(remote.pipe[0], 1)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready), os.close(tell), os.close(remote.pipe[0])
    return remote.child
"""
ORPHAN = """
import os, signal
def run(remote):
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child
"""
# A client that never finds out what was written.
BLIND = """
import threading, time
class Blind:
    def __init__(self, space): self._space, self.entered = space, threading.Event()
    def __getattr__(self, name): return getattr(self._space, name)
    def harvest(self, *args, **kwargs): return 0
    def wait(self, *args):
        self.entered.set()
        time.sleep(0.02)
        return "rung"
def run(remote):
    session = remote.client._session
    blind = Blind(session.space)
    session.conversation._instructions._space = session.space = blind
    session.kick()
    assert blind.entered.wait(20)
"""
JOIN = """
import os
def run(remote):
    os.close(remote.pipe[1])
    return os.waitpid(remote.child, 0)[1]
"""


class Pair:
    """Two workers whose memory is merged, and a server that has stopped looking for more."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.workers = [Worker(server.address) for _ in range(2)]
        for n, worker in enumerate(self.workers):
            worker.call("allocate", "a", (len(SEEDS) + 1) * PAGE)
            worker.call("fill_pages", "a", [*SEEDS, 100 + n])
        assert self.workers[0].call("settle").settled
        self.admin.SetConfig(pb.SetConfigRequest(values={"run": "0"}), timeout=10)

    @property
    def admin(self) -> Any:
        return self.server.admin

    @property
    def pool(self) -> str:
        (domain,) = self.admin.ListDomains(pb.ListDomainsRequest(), timeout=10).domains
        return f"{SHM}{domain.pool}"

    def clients(self) -> list[pb.ClientInfo]:
        return list(self.admin.ListClients(pb.ListClientsRequest(), timeout=10).clients)

    def segments(self) -> list[pb.SegmentInfo]:
        return list(self.admin.ListSegments(pb.ListSegmentsRequest(), timeout=10).segments)

    def client_of(self, worker: Worker) -> int:
        return next(info.client for info in self.clients() if info.pid == worker.pid)

    def audit(self, **options: Any) -> Audit:
        return audit(self.server, **options)

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()  # what was done to its memory is no state to go on from
        until(lambda: not self.clients(), what="the server noticing their deaths")


@pytest.fixture
def pair(serve: Callable[..., Server]) -> Iterator[Pair]:
    made = Pair(serve(poll_millisecs=50))
    yield made
    made.close()


def only(found: Audit, kind: str, count: int = 1) -> pb.FsckFinding:
    """The one finding, which is of that kind."""
    assert found.kinds == {kind: count}, str(found)
    (finding,) = found.findings
    return finding


def overwrite(path: str, frame: int, data: bytes) -> None:
    """Writes into a pool behind the server's back."""
    os.chmod(path, 0o600)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, data, frame * PAGE)
    os.close(fd)
    os.chmod(path, 0o400)


def frame_of(pool: str, seed: int) -> int:
    """Where the pool has a content."""
    data = Path(pool).read_bytes()
    return next(n for n in range(len(data) // PAGE) if data[n * PAGE : (n + 1) * PAGE] == page_of(seed))


def test_nothing_is_different_in_memory_that_is_merged_written_freed_and_forked(serve: Callable[..., Server]) -> None:
    server = serve(poll_millisecs=20)
    with Worker(server.address) as one, Worker(server.address) as two:
        for worker in (one, two):
            worker.call("allocate", "a", 300 * PAGE)
            worker.call("fill_pages", "a", [*range(100), *range(100), *[0] * 100])
            worker.call("allocate", "b", 50 * PAGE)
            worker.call("fill_pages", "b", list(range(50)))
        one.call("settle")
        first = assert_clean(server)
        assert first.references >= 600
        assert first.frames >= 99
        assert first.clients == first.processes == 2
        assert first.pages > first.references
        one.call("pin", "b")
        two.call("write", "a", 5 * PAGE, b"x" * 3 * PAGE)
        one.call("write", "b", 7 * PAGE, b"copied, and not to be adopted")
        assert_clean(server)
        two.call("free", "b")
        one.call("execute", FORK)
        with_child = assert_clean(server)
        assert with_child.processes == 3
        one.call("write", "a", 30 * PAGE, b"copied, and nobody looks while there is a child")
        assert_clean(server)
        assert one.call("execute", JOIN) == 0
        assert_clean(server)
        one.call("unpin", "b")
        server.configure(run=2)
        assert_clean(server)
        server.configure(run=1)
        one.call("settle")
        assert_clean(server)


def test_buffers_that_outlive_their_client_are_looked_at(pair: Pair) -> None:
    pair.workers[0].call("execute", "def run(remote): remote.client.close()")
    assert [info.state for info in pair.clients()] == ["departed", "active"]
    assert pair.audit().kinds == {}
    pair.workers[0].call("execute", REMAP, "a", PAGE_2, "frame", pair.pool, frame_of(pair.pool, 7))
    finding = only(pair.audit(), "UNHELD_MAPPING")
    assert finding.pid == pair.workers[0].pid
    assert finding.frame == frame_of(pair.pool, 2), "the frame that the page is to map"
    assert f"maps frame {frame_of(pair.pool, 7)}" in finding.text


def test_a_frame_that_is_overwritten(pair: Pair) -> None:
    frame = frame_of(pair.pool, 5)
    overwrite(pair.pool, frame, b"never")
    finding = only(pair.audit(), "FRAME_CHANGED")
    assert (finding.frame, finding.pool) == (frame, pair.pool.removeprefix(SHM))
    overwrite(pair.pool, frame, page_of(5))
    assert pair.audit().kinds == {}


def test_frames_and_holes_in_the_wrong_places(pair: Pair) -> None:
    free = os.stat(pair.pool).st_size // PAGE - 1
    overwrite(pair.pool, free, b"what is this?")
    finding = only(pair.audit(thorough=False), "FRAME_LEFT")
    assert finding.frame == free


@pytest.mark.parametrize(("how", "mapped"), [("unmap", "nothing"), ("anonymous", "anonymous memory")])
def test_a_merged_page_whose_mapping_was_replaced(pair: Pair, how: str, mapped: str) -> None:
    worker = pair.workers[1]
    worker.call("execute", REMAP, "a", PAGE_2, how)
    finding = only(pair.audit(), "UNMAPPED_REFERENCE")
    assert (finding.client, finding.pid) == (pair.client_of(worker), worker.pid)
    assert finding.frame == frame_of(pair.pool, 2)
    assert f"merged onto frame {finding.frame}" in finding.text
    assert f"process {worker.pid} maps {mapped}" in finding.text


def test_an_owned_page_whose_mapping_was_replaced(pair: Pair) -> None:
    pair.workers[0].call("execute", REMAP, "a", len(SEEDS), "anonymous")
    finding = only(pair.audit(), "STRANGE_MAPPING")
    assert "owned, with no frame" in finding.text
    assert "anonymous memory" in finding.text


def test_frames_mapped_where_no_view_is(pair: Pair) -> None:
    worker, frame = pair.workers[0], frame_of(pair.pool, 9)
    worker.call("execute", REMAP, "a", 0, "elsewhere", pair.pool, frame)
    finding = only(pair.audit(), "UNHELD_MAPPING")
    assert (finding.client, finding.pid, finding.frame) == (0, worker.pid, frame)
    assert "outside of all views" in finding.text


@pytest.mark.needs("root")
def test_a_pool_that_is_mapped_writable(pair: Pair) -> None:
    pair.workers[0].call("execute", REMAP, "a", 0, "shared", pair.pool, 0)
    assert only(pair.audit(), "WRITABLE_FRAME").pid == pair.workers[0].pid


def test_a_copy_that_the_process_has_lost(pair: Pair) -> None:
    worker = pair.workers[0]
    worker.call("pin", "a")  # or the copy would be adopted
    worker.call("write", "a", PAGE_2 * PAGE, b"mine")
    assert pair.audit().kinds == {}
    worker.call("execute", REMAP, "a", PAGE_2, "forget")
    assert worker.call("read", "a", PAGE_2 * PAGE, PAGE) == page_of(2), "the kernel has dropped the copy"
    assert "a copy of frame" in only(pair.audit(), "LOST_COPY").text


def test_a_copy_that_the_client_does_not_report(pair: Pair) -> None:
    worker = pair.workers[0]
    worker.call("execute", BLIND)
    assert pair.audit().kinds == {}
    worker.call("write", "a", PAGE_2 * PAGE, b"mine")
    assert "maps a private copy of frame" in only(pair.audit(), "UNREPORTED_COPY").text
    worker.call("execute", FORK)  # while a child may share the view, nobody is to look
    try:
        assert pair.audit().kinds == {}
    finally:
        worker.call("execute", JOIN)


def test_a_reference_that_the_engine_has_dropped(tmp_path: Path) -> None:
    with Inside(tmp_path / "server", poll_millisecs=50) as server:
        pair = Pair(server)
        try:
            client = pair.client_of(pair.workers[0])
            assert pair.audit().kinds == {}

            def drop(domain: Domain) -> tuple[int, int, int]:
                segment = next(iter(domain.participants[client].segments))  # type: ignore[attr-defined]
                held = domain.engine.held(client, segment, 0, 1 << 20)
                run = next(run for run in held if run.state == MERGED)
                domain.engine.apply(client, columns((RELEASED, segment, run.first, 1, 0, 0, 0)))
                return segment, run.first, run.frame

            segment, page, frame = server.in_domain(drop)
            finding = only(pair.audit(), "UNHELD_MAPPING")
            assert (finding.client, finding.segment, finding.page, finding.frame) == (client, segment, page, frame)
            assert "owned, with no frame" in finding.text
            assert f"maps frame {frame}" in finding.text
        finally:
            pair.close()


def test_a_view_that_is_gone_before_its_segment_is_dropped_is_no_difference(pair: Pair) -> None:
    """A client unmaps a view, reports, and then drops the segment: later, if a proposal is on its way.

    No event is about pages that held no frame, and other memory may be at their addresses by then.
    """
    worker = pair.workers[0]
    worker.call(
        "execute", "def run(remote): remote.client._session.conversation.segments.drop = lambda session, timeout: None"
    )
    worker.call("allocate", "large", 40_000 * PAGE)  # has a segment of its own
    worker.call("fill_pages", "large", [0, 1, 2])
    (large,) = [s for s in pair.segments() if s.pages >= 40_000]
    worker.call("free", "large")
    worker.call("stats")  # sweeps
    maps = Path(f"/proc/{worker.pid}/maps")
    until(lambda: large.name not in maps.read_text(), what="the end of the view")
    assert pair.audit().kinds == {}
    assert large.name in [segment.name for segment in pair.segments()]


def test_a_process_that_may_not_be_read_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Inside(tmp_path / "server", poll_millisecs=50) as server:
        pair = Pair(server)
        try:
            hidden, found = pair.workers[0], mappings.read

            def read(pid: int) -> bytes:
                if pid == hidden.pid:
                    raise PermissionError(13, "Permission denied")
                return found(pid)

            monkeypatch.setattr(processes, "read", read)
            finding = only(pair.audit(), "UNREADABLE")
            assert (finding.client, finding.pid) == (pair.client_of(hidden), hidden.pid)
            assert "may not read its /proc entry" in finding.text
            monkeypatch.undo()
            monkeypatch.setattr(survey, "read", read)  # it has given up its rights since it was found
            assert "cannot be read" in only(pair.audit(), "UNREADABLE").text
        finally:
            pair.close()


def test_an_engine_that_has_failed_is_told(tmp_path: Path) -> None:
    with Inside(tmp_path / "server") as server:
        pair = Pair(server)
        try:

            def fail(*_: object) -> None:
                raise RuntimeError("the engine has failed: of a test")

            server.in_domain(lambda domain: setattr(domain.engine, "held", fail))
            finding = only(pair.audit(), "BOOKS", 2)  # for each process
            assert "of a test" in finding.text
            server.in_domain(lambda domain: delattr(domain.engine, "held"))
            server.in_domain(lambda domain: setattr(domain.engine, "check", lambda: fail()))
            only(pair.audit(), "BOOKS")
            assert pair.audit(thorough=False).kinds == {}
        finally:
            pair.close()


def test_a_name_that_nobody_holds(pair: Pair) -> None:
    made = shm_names.create_locked(shm_names.SEGMENT, 0o600, PAGE)
    try:
        found = pair.audit(names=True)
        assert found.kinds == {}
        assert found.summary.names_elsewhere == 1
        assert f"process {os.getpid()}" in found.names[made.name]
        os.close(made.fd)
        found = pair.audit(names=True)
        assert only(found, "GARBAGE").name == made.name
        assert found.names[made.name] == "nobody"
    finally:
        shm_names.remove(made.name)
    assert pair.audit().kinds == {}


def test_a_name_that_is_lost_or_open_to_others(pair: Pair) -> None:
    segments = pair.segments()
    os.chmod(SHM + segments[0].name, 0o644)
    assert only(pair.audit(), "NAME_OPEN").name == segments[0].name
    os.unlink(SHM + segments[0].name)
    assert only(pair.audit(), "NAME_LOST").name == segments[0].name


def test_children_of_a_client_that_is_gone_are_looked_at(pair: Pair) -> None:
    worker = pair.workers[0]
    child = worker.call("execute", ORPHAN)
    try:
        assert pair.audit().summary.processes == 3
        worker.kill()
        found = pair.audit()
        assert (found.kinds, found.summary.processes) == ({}, 2)
        assert len(pair.clients()) == 2, "its memory lives on in the child"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_client_that_does_not_answer_is_not_accused(pair: Pair) -> None:
    worker = pair.workers[0]
    worker.call("execute", REMAP, "a", PAGE_2, "unmap")
    worker.process.send_signal(signal.SIGSTOP)
    try:
        finding = only(pair.audit(patience=0.3), "UNANSWERED")
        assert "has not reported within 0.3 s" in finding.text
    finally:
        worker.process.send_signal(signal.SIGCONT)
    only(pair.audit(), "UNMAPPED_REFERENCE")


def test_a_client_that_is_no_process_here_is_said_to_be_unseen(server: Server) -> None:
    with Raw(server.address) as raw:
        raw.hello()
        raw.give(noise(3))
        finding = only(audit(server), "UNREADABLE")
        assert "cannot be read" in finding.text


def test_audits_come_one_after_the_other_and_end_with_their_caller_or_server(server: Server) -> None:
    calls = [server.admin.Fsck(pb.FsckRequest(), timeout=20) for _ in range(3)]
    next(calls[0])
    calls[0].cancel()
    assert [list(call)[-1].WhichOneof("news") for call in calls[1:]] == ["summary", "summary"]
    with Raw(server.address) as raw:
        raw.hello(pid=os.getpid())
        last = server.admin.Fsck(pb.FsckRequest(), timeout=20)
        next(last)
    server.stop()
    with pytest.raises(grpc.RpcError):
        list(last)


def audit_under_load(server: Server, seconds: float) -> str:
    """Writers that never rest, memory that comes and goes, forks: what is on its way is no difference."""
    audits = looks = unsettled = 0
    with Worker(server.address) as one, Worker(server.address) as two, Worker(server.address) as three:
        for number, worker in enumerate((one, two)):
            worker.send("execute", HAMMER, seconds, number, 0.05)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            three.call("allocate", "c", 600 * PAGE)
            three.call("fill_pages", "c", [audits % 3 + n % 5 for n in range(600)])
            if forks := audits % 4 == 1:
                three.call("execute", FORK)
            for _ in range(1 + forks):
                found = audit(server, patience=60)
                assert found.kinds.keys() <= {"UNSETTLED"}, str(found)
                audits, looks = audits + 1, looks + found.summary.looks
                unsettled += found.kinds.get("UNSETTLED", 0)
                three.call("fill_pages", "c", [3] * 99, audits % 500)
            if forks:
                assert three.call("execute", JOIN) == 0
            three.call("free", "c")
        results = [worker.receive() for worker in (one, two)]
        assert [lost for _, lost, _ in results] == [[], []]
        assert_clean(server)
        counters = server.status().counters
    assert audits >= 3
    assert counters.pages_merged > 300
    assert counters.pages_broken > 100
    return (
        f"{audits} audits with {looks} looks during {counters.pages_merged} merges and {counters.pages_broken} breaks; "
        f"{unsettled} pages kept changing"
    )


def test_no_difference_is_made_up_while_clients_write_and_merge(
    serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    said = audit_under_load(serve(poll_millisecs=10, smart_scan=False), seconds=12)
    with capsys.disabled():
        print(f"\n  {said}", end="")
