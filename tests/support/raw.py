"""A client made of bare stubs: it says what a test wants it to say, and maps nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from types import TracebackType

import grpc
import posix_ipc
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.v1 import memory_pb2_grpc

PAGE = os.sysconf("SC_PAGE_SIZE")
TIMEOUT = 10.0


class Raw:
    """A lease, a doorbell and segments, all real; and a channel. Removes all names at the end."""

    def __init__(self, address: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = memory_pb2_grpc.MemoryStub(self.channel)
        self.metadata = metadata
        self.lease = shm_names.create_locked(shm_names.LEASE, 0o600, 0)
        self.proof = secrets.token_bytes(shm_names.PROOF_BYTES)
        os.pwrite(self.lease.fd, self.proof, 0)
        self.doorbell = shm_names.doorbell_for(self.lease.name)
        self.bell = posix_ipc.Semaphore(self.doorbell, posix_ipc.O_CREX, mode=0o600)
        self.objects = [self.lease]
        self.token = b""
        self.label = ""
        self.news: pb.Events | None = None  # what settle_with did, and has not reported yet
        self.sequence = 0
        self.looked = 0
        self.segments = 0

    def hello(self, **changes: object) -> pb.HelloReply:
        said = {
            "protocol": 1,
            "page_size": PAGE,
            "pid": os.getpid(),
            "program": "test",
            "lease": self.lease.name,
            "doorbell": self.doorbell,
            "tier": pb.TIER_UFFD,
            "proof": self.proof,
        }
        reply = self.stub.Hello(pb.HelloRequest(**(said | changes)), timeout=TIMEOUT, metadata=self.metadata)
        self.token = reply.session
        return reply

    def segment(self, content: bytes) -> shm_names.LockedObject:
        """An object that holds these bytes; not yet known to the server."""
        made = shm_names.create_locked(shm_names.SEGMENT, 0o600, len(content))
        self.objects.append(made)
        os.pwrite(made.fd, content, 0)
        return made

    def add(self, name: str, pages: int, number: int | None = None) -> int:
        if number is None:
            self.segments += 1
            number = self.segments
        request = pb.AddSegmentRequest(session=self.token, segment=number, name=name, pages=pages)
        self.stub.AddSegment(request, timeout=TIMEOUT)
        return number

    def give(self, content: bytes) -> int:
        """Makes a segment with these bytes, and makes it known."""
        return self.add(self.segment(content).name, len(content) // PAGE)

    def exchange(self, events: pb.Events | None = None, settling: int = 0, **changes: object) -> pb.ExchangeReply:
        self.sequence += 1
        said = {"session": self.token, "sequence": self.sequence, "events": events, "settling": settling}
        said["looked"] = self.looked
        reply = self.stub.Exchange(pb.ExchangeRequest(**(said | changes)), timeout=TIMEOUT)
        self.looked = max(self.looked, reply.look)  # nothing that it merges is ever written: there is nothing to find
        return reply

    def wait(self, seconds: float = TIMEOUT) -> None:
        """Until the doorbell rings."""
        self.bell.acquire(seconds)

    def instructions(self, settling: int = 0) -> pb.ExchangeReply:
        """The first reply that tells it to do something."""
        while obey(reply := self.exchange(settling=settling)) is None:
            if not reply.look:
                self.wait()
        return reply

    def settle(self, number: int = 1, timeout: float = TIMEOUT) -> pb.SettleReport:
        """Carries out every proposal, in words, until the report is there."""
        events = None
        while True:
            reply = self.exchange(events, settling=number)
            if reply.HasField("settle_report"):
                return reply.settle_report
            events = obey(reply)
            if events is None and not reply.more and not reply.look:
                self.wait(timeout)

    def settle_with(self, *others: Raw, timeout: float = TIMEOUT) -> pb.SettleReport:
        """Settles while others work too."""
        deadline = time.monotonic() + timeout
        while True:
            for raw in (self, *others):
                reply = raw.exchange(raw.news, settling=int(raw is self))
                raw.news = obey(reply)
                if raw is self and reply.HasField("settle_report"):
                    return reply.settle_report
            assert time.monotonic() < deadline, "it does not settle"
            with contextlib.suppress(posix_ipc.BusyError):
                self.bell.acquire(0.02)

    def bye(self) -> None:
        self.stub.Bye(pb.ByeRequest(session=self.token), timeout=TIMEOUT)

    def close(self) -> None:
        if not self.objects:
            return
        self.channel.close()
        self.bell.close()
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_semaphore(self.doorbell)
        for made in self.objects:
            shm_names.remove(made.name)
            os.close(made.fd)
        self.objects = []

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def obey(reply: pb.ExchangeReply) -> pb.Events | None:
    """The events of a client that did everything it was told to; None if that was nothing."""
    events = pb.Events()
    merges, adopts = reply.merges, reply.adopts
    for n in range(len(merges.count)):
        events.kind.append(pb.EVENT_KIND_MERGED)
        for column in ("segment", "first", "count", "pool", "frame"):
            getattr(events, column).append(getattr(merges, column)[n])
        events.detail.append(0)
    for n in range(len(adopts.count)):
        events.kind.append(pb.EVENT_KIND_RELEASED)
        for column in ("segment", "first", "count"):
            getattr(events, column).append(getattr(adopts, column)[n])
        for column in ("pool", "frame", "detail"):
            getattr(events, column).append(0)
    return events if events.kind else None


def event(kind: int, segment: int, first: int, count: int, pool: int = 0, frame: int = 0, detail: int = 0) -> pb.Events:
    return pb.Events(
        kind=[kind], segment=[segment], first=[first], count=[count], pool=[pool], frame=[frame], detail=[detail]
    )


def reason(error: grpc.RpcError) -> str:
    """Why a call was refused, by the stable name."""
    return dict(error.trailing_metadata() or ()).get("pagefold-reason", "")


def noise(pages: int) -> bytes:
    """Pages that are like no others."""
    return secrets.token_bytes(pages * PAGE)
