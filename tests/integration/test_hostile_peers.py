"""Hostile peers: a client that lies or never answers hurts nobody but itself; a server that lies changes no byte."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pagefold
import pytest
from google.protobuf.message import Message
from pagefold._session.transport import ADD_SEGMENT, BYE, DROP_SEGMENT, EXCHANGE, HELLO, Method
from pagefold_core import Doorbell
from pagefold_proto import shm_names
from pagefold_proto.limits import REASON_KEY
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
        assert f"{3 * PAGES:,} pages (3 MiB) are not known to be merged: their client does not answer" in report.reason
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
    """Answers the five calls; its exchanges propose what no honest server would.

    With `greedy`, more of it than a client looks at.
    """

    def __init__(self, greedy: bool) -> None:
        self.greedy = greedy
        self.rng = random.Random(11)
        self.pool = shm_names.create_locked(shm_names.POOL, 0o600, PAGES * PAGE)
        os.pwrite(self.pool.fd, os.urandom(PAGES * PAGE), 0)  # none of it is what the client has
        self.calls = 0
        self.outcomes: list[int] = []

    def close(self) -> None:
        shm_names.remove(self.pool.name)
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
        counts = odd if self.greedy else odd[:6]
        for _ in range(20):
            reply.merges.segment.append(self.rng.choice([1, 1, 1, 2, 99]))
            reply.merges.first.append(self.rng.choice(odd))
            reply.merges.count.append(self.rng.choice(counts))
            reply.merges.pool.append(self.rng.choice([0, 1, 1, 1, 3, 99]))
            reply.merges.frame.append(self.rng.choice(odd))
            reply.adopts.segment.append(self.rng.choice([1, 7]))
            reply.adopts.first.append(self.rng.choice(odd))
            reply.adopts.count.append(self.rng.choice(counts))
        return reply


@pytest.mark.parametrize("greedy", [False, True])
def test_a_hostile_servers_proposals_change_nothing_that_a_client_reads(greedy: bool) -> None:
    server = HostileServer(greedy)
    try:
        with pagefold.connect(transport=pagefold.LocalTransport(server)) as client:
            buffer = client.allocate(PAGES * PAGE)
            buffer[:] = CONTENT
            until(lambda: not client.stats().connected if greedy else server.calls >= 40, what="the proposals")
            assert buffer[:] == CONTENT
            buffer[:] = CONTENT[::-1]
            assert buffer[:] == CONTENT[::-1]
            assert ("same version" in client.stats().trouble) == greedy
            assert (pb.EVENT_KIND_DECLINED in server.outcomes) != greedy
            assert client.stats().merged_bytes == 0
            del buffer
    finally:
        server.close()


class Endless:
    """Has its client go round for ever, over gRPC, and gives it nothing."""

    def __init__(self, kind: str, address: str) -> None:
        self.kind = kind
        self.calls = 0
        self.pools = [
            shm_names.create_locked(shm_names.POOL, 0o400, PAGE) for _ in range(200 if kind == "pools" else 0)
        ]
        self.over = threading.Event()
        self.ringing: threading.Thread | None = None
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        methods = [HELLO, ADD_SEGMENT, EXCHANGE, DROP_SEGMENT, BYE]
        handlers = {method.name: self.handler(method) for method in methods}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pagefold.v1.Memory", handlers),))
        self.server.add_insecure_port(address)
        self.server.start()

    def handler(self, method: Method[Any, Any]) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if method is HELLO:
                if self.kind == "ring":
                    self.ringing = threading.Thread(target=self.ring, args=(request.doorbell,))
                    self.ringing.start()
                return pb.HelloReply(session=b"s" * 16, max_message_bytes=1 << 18, poll_millisecs=250)
            return self.exchange(context) if method is EXCHANGE else method.reply()

        return grpc.unary_unary_rpc_method_handler(answer, method.request.FromString, method.reply.SerializeToString)

    def ring(self, name: str) -> None:
        bell = Doorbell(name)
        while not self.over.wait(0.0002):
            bell.ring()

    def exchange(self, context: grpc.ServicerContext) -> pb.ExchangeReply:
        self.calls += 1
        everywhere = {"segment": range(90, 290), "first": range(200), "count": [1] * 200}
        if self.kind == "stranger" and self.calls % 2:
            context.set_trailing_metadata(((REASON_KEY, "REASON_UNKNOWN_SESSION"),))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")
        reply = pb.ExchangeReply(
            more=self.kind == "more",
            look=self.calls if self.kind == "look" else 0,
            merges=pb.MergeBatch(**everywhere) if self.kind == "nowhere" else None,
        )
        if self.pools:
            reply.more = True
            for n in range(1, 6):
                number = (5 * self.calls + n) % len(self.pools)
                reply.pools.add(pool=number + 1, name=self.pools[number].name)
        return reply

    def close(self) -> None:
        self.over.set()
        self.server.stop(0).wait()
        if self.ringing is not None:
            self.ringing.join()
        for pool in self.pools:
            shm_names.remove(pool.name)
            pool.fd.close()


VICTIM = """
import os, sys, time
import pagefold
with pagefold.connect(sys.argv[1], autostart=False) as client:
    buffer = client.allocate(64 * 4096)
    buffer[:] = content = os.urandom(64 * 4096)
    before = len(os.listdir("/proc/self/fd"))
    time.sleep(1.5)  # the grace that every server has
    began, spent = time.monotonic(), time.process_time()
    time.sleep(1.5)
    share = (time.process_time() - spent) / (time.monotonic() - began)
    assert buffer[:] == content
    print(share, len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.parametrize("kind", ["more", "look", "nowhere", "stranger", "pools", "ring"])
def test_what_a_server_can_cost_a_client_is_bounded(tmp_path: Path, kind: str) -> None:
    """It burned a core and opened 5,000 descriptors in four seconds."""
    address = f"unix:{tmp_path}/s.sock"
    server = Endless(kind, address)
    try:
        done = subprocess.run([sys.executable, "-c", VICTIM, address], capture_output=True, text=True, timeout=60)
    finally:
        server.close()
    assert done.returncode == 0, done.stderr
    share, descriptors = done.stdout.split()
    assert float(share) < 0.2  # of a core; 0.05 without the machine's other work
    assert int(descriptors) < 20
    assert len(done.stderr.splitlines()) < 20
    assert server.calls > 10
