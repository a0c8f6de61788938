"""A tenant that floods a server: bare stubs, which cost it far less than a client's work costs the server.

It is another user (root starts it), has its own memory, and says nothing that would get it excluded: what it does is
allowed, and there is only far too much of it. It merges nothing: it says that it has.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import posix_ipc
import wire
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.v1 import memory_pb2_grpc

PAGE = os.sysconf("SC_PAGE_SIZE")
_TIMEOUT = 60.0
_THREADS = 4
_OBJECTS = 64  # of each thread, and pages of each
_PAGES = 64
_PAUSE = 0.001  # before it asks again for what the server has not decided yet
_LARGE = (1 << 18) - 4096  # bytes, and events: what a server just takes
_EVENTS = 1 << 13
_EVENT_PAGES = 1 << 20  # of all events together


class Session:
    """A session of bare stubs, on a connection of its own."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self.stub = memory_pb2_grpc.MemoryStub(self._channel)  # type: ignore[no-untyped-call]
        self._lease = shm_names.create_locked(shm_names.LEASE, 0o600, 0)
        proof = secrets.token_bytes(shm_names.PROOF_BYTES)
        os.pwrite(self._lease.fd, proof, 0)
        self._doorbell = shm_names.doorbell_for(self._lease.name)
        posix_ipc.Semaphore(self._doorbell, posix_ipc.O_CREX, mode=0o600).close()
        self._objects = [self._lease]
        self.greeting = pb.HelloRequest(
            protocol=1,
            page_size=PAGE,
            pid=os.getpid(),
            program="flood",
            lease=self._lease.name,
            doorbell=self._doorbell,
            tier=pb.TIER_UFFD,
            tracker=pb.TRACKER_CHECKSUM,
            proof=proof,
        )
        self.token = self.stub.Hello(self.greeting, timeout=_TIMEOUT).session
        self._sequence = self._segments = self._looked = 0
        self._settles = 1
        self._news: pb.Events | None = None

    def make(self, content: bytes) -> str:
        """An object with these bytes."""
        made = shm_names.create_locked(shm_names.SEGMENT, 0o600, len(content))
        self._objects.append(made)
        os.pwrite(made.fd, content, 0)
        return made.name

    def add(self, name: str, pages: int) -> int:
        """Makes it a segment, once more. Its number."""
        self._segments += 1
        request = pb.AddSegmentRequest(session=self.token, segment=self._segments, name=name, pages=pages)
        self.stub.AddSegment(request, timeout=_TIMEOUT)
        return self._segments

    def drop(self, number: int) -> None:
        """The opposite."""
        self.stub.DropSegment(pb.DropSegmentRequest(session=self.token, segment=number), timeout=_TIMEOUT)

    def exchange(self, events: pb.Events | None = None, settling: int = 0) -> pb.ExchangeReply:
        """Says so, and that it has looked, if it was asked to."""
        self._sequence += 1
        request = pb.ExchangeRequest(
            session=self.token, sequence=self._sequence, events=events, settling=settling, looked=self._looked
        )
        reply: pb.ExchangeReply = self.stub.Exchange(request, timeout=_TIMEOUT)
        self._looked = max(self._looked, reply.look)
        return reply

    def merge(self) -> int:
        """Merges what there is to merge, in words, and takes it back at once, so that there is more. How many pages."""
        reply = self.exchange(self._news, settling=self._settles)
        if reply.HasField("settle_report"):
            self._settles += 1
        self._news = _merged_and_back(reply.merges)
        if self._news is None and not reply.more:
            time.sleep(_PAUSE)  # the server has not decided yet, and its doorbell would slow the flood down
        return sum(reply.merges.count)

    def close(self) -> None:
        """Removes everything that has a name."""
        self._channel.close()
        posix_ipc.unlink_semaphore(self._doorbell)
        for made in self._objects:
            shm_names.remove(made.name)
            os.close(made.fd)


class Subject:
    """Floods from several threads at a time, and counts."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._counts: list[int] = []
        self._failed: list[BaseException] = []
        self._works: list[Callable[[], int]] = []

    def become(self, uid: int) -> None:
        """Is that user from now on."""
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    def prepare(self, address: str, kind: str) -> None:
        """Opens sessions and makes memory for a flood of that kind."""
        kinds: dict[str, list[Callable[[Session], Callable[[], int]]]] = {
            "segments": [_segments] * _THREADS,
            "messages": [_small] * _THREADS,
            "large messages": [_large] * 2,
            "messages of nobody": [_strange] * 2,
            "batches": [_batches] * 2,
            "spin": [],
        }
        jobs = kinds[kind]
        self._sessions = [Session(address) for _ in jobs]
        self._works = [job(session) for job, session in zip(jobs, self._sessions, strict=True)] or [_spin]

    def start(self) -> None:
        """Begins. It is at full speed within a moment."""
        self._ended.clear()
        self._counts, self._failed = [], []
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in self._works]
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """Ends. How much of it there was: calls, or pages that were merged in words."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._failed:
            raise self._failed[0]
        return sum(self._counts)

    def close(self) -> None:
        """Leaves nothing behind."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for session in self._sessions:
            session.close()

    def _run(self, work: Callable[[], int]) -> None:
        done = 0
        try:
            while not self._ended.is_set():
                done += work()
        except BaseException as error:  # for the caller of stop()
            self._failed.append(error)
        self._counts.append(done)


def _segments(session: Session) -> Callable[[], int]:
    """Adds and drops them, full of pages that have to be read."""
    names = [session.make(os.urandom(_PAGES * PAGE)) for _ in range(_OBJECTS)]

    def work() -> int:
        for number in [session.add(name, _PAGES) for name in names]:
            session.drop(number)
        return 2 * _OBJECTS

    return work


def _batches(session: Session) -> Callable[[], int]:
    pages = _OBJECTS * _PAGES
    content = b"".join(page.to_bytes(8, "little") * (PAGE // 8) for page in range(1, pages // 2 + 1))
    session.add(session.make(content * 2), pages)  # each page twice: it needs nobody else
    return session.merge


def _small(session: Session) -> Callable[[], int]:
    def work() -> int:
        for _ in range(64):
            session.exchange()
        return 64

    return work


def _large(session: Session) -> Callable[[], int]:
    """As many events as fit into a message, about pages that there are: each is booked."""
    pages = _EVENT_PAGES // _EVENTS
    number = session.add(session.make(bytes(pages * PAGE)), pages)
    length = _EVENTS
    columns = dict.fromkeys(("first", "pool", "frame", "detail"), [0] * length)
    events = pb.Events(
        kind=[pb.EVENT_KIND_INCLUDED] * length, segment=[number] * length, count=[pages] * length, **columns
    )

    def work() -> int:
        session.exchange(events)
        return 1

    return work


def _strange(session: Session) -> Callable[[], int]:
    """Large messages of nobody, and Hellos that prove nothing."""
    large = pb.ExchangeRequest(session=bytes(16), events=pb.Events(frame=[1 << 20] * (_LARGE // 3)))
    forged = pb.HelloRequest()
    forged.CopyFrom(session.greeting)
    forged.proof = bytes(shm_names.PROOF_BYTES)
    calls: tuple[Callable[..., Any], ...] = (session.stub.Exchange, session.stub.Hello)

    def work() -> int:
        for call, request in zip(calls, (large, forged), strict=True):
            try:
                call(request, timeout=_TIMEOUT)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
            else:
                raise AssertionError("a stranger was let in")
        return len(calls)

    return work


def _spin() -> int:
    """What costs the server nothing, and this machine a core."""
    until = time.monotonic() + 0.01
    while time.monotonic() < until:
        pass
    return 1


def _merged_and_back(merges: pb.MergeBatch) -> pb.Events | None:
    length = len(merges.count)
    if not length:
        return None
    events = pb.Events(kind=[pb.EVENT_KIND_MERGED] * length + [pb.EVENT_KIND_RELEASED] * length)
    for name in ("segment", "first", "count"):
        getattr(events, name).extend((list(getattr(merges, name)) or [0] * length) * 2)
    for name in ("pool", "frame"):
        getattr(events, name).extend([*(getattr(merges, name) or [0] * length), *[0] * length])
    events.detail.extend([0] * 2 * length)
    return events


if __name__ == "__main__":
    wire.serve(Subject())
