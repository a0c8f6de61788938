"""Hostile peers: a client that lies or never answers hurts nobody but itself; a server that lies changes no byte."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

import grpc
import pagefold
import pytest
from google.protobuf.message import Message
from pagefold import _names
from pagefold_proto.v1 import memory_pb2 as pb
from support.raw import Raw
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.variants]

PAGES = 256
Work = Callable[..., Worker]
CONTENT = b"".join(map(page_of, range(1, PAGES + 1)))


def honest(work: Work, count: int = 2) -> list[Worker]:
    workers = [work() for _ in range(count)]
    for w in workers:
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    return workers


def all_is_well(server: Server, workers: list[Worker]) -> None:
    assert workers[0].call("settle").settled
    for w in workers:
        assert w.call("read", "a", 0, PAGES * PAGE) == CONTENT
        assert w.call("stats").merged_bytes == PAGES * PAGE
        assert w.call("stats").connected
    assert server.status().clients >= len(workers)


def test_a_client_that_claims_merges_it_never_made(server: Server, work: Work) -> None:
    workers = honest(work)
    with Raw(server.address) as liar:
        liar.hello()
        liar.give(CONTENT)
        for _ in range(5):  # says yes to everything, maps nothing, and writes to its pages meanwhile
            reply = liar.exchange(liar.news)
            liar.news = None
            if reply.merges.count:
                m = reply.merges
                liar.news = pb.Events(
                    kind=[pb.EVENT_KIND_MERGED] * len(m.count),
                    segment=m.segment,
                    first=m.first,
                    count=m.count,
                    pool=m.pool,
                    frame=m.frame,
                )
            os.pwrite(liar.objects[-1].fd, os.urandom(PAGE), 0)
            workers[0].call("settle", 1)
        all_is_well(server, workers)
    all_is_well(server, workers)


def test_a_client_that_claims_to_have_let_go_of_frames(server: Server, work: Work) -> None:
    workers = honest(work)
    all_is_well(server, workers)
    with Raw(server.address) as liar:
        liar.hello()
        liar.give(CONTENT)
        merges = liar.instructions().merges
        told = {name: list(getattr(merges, name)) for name in ("segment", "first", "count", "pool", "frame")}
        liar.exchange(pb.Events(kind=[pb.EVENT_KIND_MERGED] * len(told["count"]), **told))
        place = {name: told[name] for name in ("segment", "first", "count")}
        liar.exchange(pb.Events(kind=[pb.EVENT_KIND_RELEASED] * len(told["count"]), **place))
        with pytest.raises(grpc.RpcError, match="no state"):  # twice: the books do not have them any more
            liar.exchange(pb.Events(kind=[pb.EVENT_KIND_RELEASED] * len(told["count"]), **place))
        all_is_well(server, workers)


def test_clients_that_never_answer_are_not_waited_for(server: Server, work: Work) -> None:
    workers = honest(work)
    silent = [Raw(server.address) for _ in range(3)]
    try:
        for raw in silent:
            raw.hello()
            raw.give(CONTENT)
        report = workers[0].call("settle", 30)
        assert report.settled
        assert all(w.call("stats").merged_bytes == PAGES * PAGE for w in workers)
    finally:
        for raw in silent:
            raw.close()
    until(lambda: server.status().clients == 2, what="the silent ones' leases going")
    all_is_well(server, workers)


def test_a_flood_of_nonsense(server: Server, work: Work) -> None:
    workers = honest(work)
    rng = random.Random(4)
    numbers = [0, 1, 2, PAGES - 1, PAGES, 2**31, 2**32 - 1]
    for _ in range(30):
        with Raw(server.address) as raw:
            raw.hello()
            raw.give(page_of(1) * 4)
            events = pb.Events()
            for _ in range(rng.randrange(1, 20)):
                events.kind.append(rng.randrange(8))
                for column in ("segment", "first", "count", "pool", "frame", "detail"):
                    getattr(events, column).append(rng.choice(numbers))
            with contextlib.suppress(grpc.RpcError):  # by chance it may make sense
                raw.exchange(events)
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT|UNAUTHENTICATED|FAILED_PRECONDITION"):  # noqa: RUF043
                raw.exchange(events, sequence=7)
    until(lambda: server.status().clients == 2, what="the nonsense going away")
    all_is_well(server, workers)


class HostileServer:
    """Answers the five calls; its exchanges propose what no honest server would."""

    def __init__(self) -> None:
        self.rng = random.Random(11)
        self.pool = _names.create_locked(_names.POOL, 0o600, PAGES * PAGE)
        os.pwrite(self.pool.fd, os.urandom(PAGES * PAGE), 0)  # none of it is what the client has
        self.calls = 0
        self.outcomes: list[int] = []

    def close(self) -> None:
        _names.remove(self.pool.name)
        os.close(self.pool.fd)

    def __call__(self, method: str, request: Any) -> Message:
        if method == "Hello":
            return pb.HelloReply(session=b"s" * 16, instance=b"i" * 16, max_message_bytes=1 << 20, poll_millisecs=20)
        if method != "Exchange":
            return {"AddSegment": pb.AddSegmentReply, "DropSegment": pb.DropSegmentReply, "Bye": pb.ByeReply}[method]()
        self.calls += 1
        self.outcomes += request.events.kind
        reply = pb.ExchangeReply(more=self.calls < 40)
        names = [self.pool.name, "/pagefold-p-" + "0" * 32, "/etc/passwd", "../../etc/passwd", ""]
        reply.pools.append(pb.PoolInfo(pool=self.calls, name=names[(self.calls - 1) % len(names)]))
        odd = [0, 1, 2, 100, PAGES - 1, PAGES, 1 << 14, 1 << 31, (1 << 32) - 1]
        for _ in range(20):
            reply.merges.segment.append(self.rng.choice([1, 1, 1, 2, 99]))
            reply.merges.first.append(self.rng.choice(odd))
            reply.merges.count.append(self.rng.choice(odd))
            reply.merges.pool.append(self.rng.choice([0, 1, 1, 1, 3, 99]))
            reply.merges.frame.append(self.rng.choice(odd))
            reply.adopts.segment.append(self.rng.choice([1, 7]))
            reply.adopts.first.append(self.rng.choice(odd))
            reply.adopts.count.append(self.rng.choice(odd))
        return reply


def test_a_hostile_servers_proposals_change_nothing_that_a_client_reads() -> None:
    server = HostileServer()
    try:
        with pagefold.connect(transport=pagefold.LocalTransport(server)) as client:
            buffer = client.allocate(PAGES * PAGE)
            buffer[:] = CONTENT
            until(lambda: server.calls >= 40, what="the proposals")
            assert buffer[:] == CONTENT
            buffer[:] = CONTENT[::-1]
            assert buffer[:] == CONTENT[::-1]
            assert pb.EVENT_KIND_DECLINED in server.outcomes
            assert client.stats().merged_bytes == 0
            del buffer
    finally:
        server.close()
