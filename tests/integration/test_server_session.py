"""Sessions as clients see them: Hello, segments, Exchange and its replays, settle, silence, Bye and death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import grpc
import posix_ipc
import pytest
from pagefold_proto import shm_names
from pagefold_proto.v1 import admin_pb2
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.domains.domain import Domain
from support import kernel
from support.inside import Inside
from support.raw import PAGE, Raw, event, noise, obey, reason
from support.server import Server
from support.waiting import until

pytestmark = pytest.mark.variants


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), silent_seconds=1) as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[Raw]:
    with Raw(shared.address) as raw:
        raw.label = os.urandom(8).hex()
        raw.hello(label=raw.label)
        yield raw


@pytest.fixture
def clients(shared: Server) -> Iterator[tuple[Raw, Raw]]:
    """Two of one domain, which no other test has."""
    with ExitStack() as stack:
        pair = (stack.enter_context(Raw(shared.address)), stack.enter_context(Raw(shared.address)))
        label = os.urandom(8).hex()
        for raw in pair:
            raw.hello(label=label)
        yield pair


def test_hello_gives_a_token_an_instance_and_the_limits(shared: Server) -> None:
    with Raw(shared.address) as one, Raw(shared.address) as two:
        a, b = one.hello(), two.hello()
        assert len(a.session) == len(b.session) == 16
        assert a.session != b.session
        assert a.instance == b.instance
        assert len(a.instance) == 16
        assert (a.max_batch_pages, a.max_message_bytes, a.poll_millisecs) == (16384, 1 << 18, 250)


def test_a_repeated_sequence_gets_the_same_reply_and_is_booked_once(clients: tuple[Raw, Raw]) -> None:
    one, two = clients
    content = noise(4)
    one.give(content)
    two.give(content)
    reply = one.instructions(settling=1)
    assert list(reply.merges.count) == [4]
    again = one.stub.Exchange(pb.ExchangeRequest(session=one.token, sequence=one.sequence, settling=1), timeout=10)
    assert again == reply
    events = obey(reply)
    first = one.exchange(events, settling=1)
    second = one.stub.Exchange(
        pb.ExchangeRequest(session=one.token, sequence=one.sequence, events=events, settling=1), timeout=10
    )
    assert first == second


@pytest.mark.parametrize("step", [-1, 2, 1 << 40])
def test_any_other_sequence_is_a_violation(client: Raw, step: int) -> None:
    client.exchange()
    client.exchange()
    with pytest.raises(grpc.RpcError) as refused:
        client.exchange(sequence=2 + step)
    assert reason(refused.value) == "REASON_PROTOCOL_VIOLATION"
    with pytest.raises(grpc.RpcError) as refused:
        client.exchange(sequence=3)
    assert reason(refused.value) == "REASON_PROTOCOL_VIOLATION"


def test_equal_pages_are_proposed_and_settle_says_when_that_is_all(clients: tuple[Raw, Raw]) -> None:
    one, two = clients
    content = noise(64)
    one.give(content + noise(3))
    two.give(content)
    reply = one.exchange(settling=1)
    (pool,) = reply.pools
    assert pool.pool == shm_names.pool_number(pool.name)
    assert shm_names.is_name("p", pool.name)
    one.news = obey(reply)
    two.wait()  # it is rung, because the other one waits
    report = one.settle_with(two)
    assert (report.settling, report.settled) == (1, True)
    assert report.merged_pages == 128
    assert (report.pages_shared, report.pages_sharing, report.pages_unshared) == (64, 64, 3)
    assert report.passes >= 1
    totals = two.exchange().totals
    assert (totals.pages_shared, totals.pages_sharing) == (64, 64)
    assert kernel.allocated(pool.name) == 64 * PAGE


def test_zero_pages_name_no_pool(client: Raw) -> None:
    client.give(bytes(PAGE) * 4)
    report = client.settle()
    assert (report.zero_pages, report.settled) == (4, True)


def test_settling_an_empty_domain_is_answered(client: Raw) -> None:
    assert client.settle().settled


def test_several_wait_in_one_domain_and_each_gets_a_report(clients: tuple[Raw, Raw]) -> None:
    reports: dict[int, int] = {}

    def all_have_theirs() -> bool:
        for number, raw in enumerate(clients, 5):
            reply = raw.exchange(settling=number)
            if reply.HasField("settle_report"):
                reports[number] = reply.settle_report.settling
        return len(reports) == len(clients)

    until(all_have_theirs, what="the reports")
    assert reports == {5: 5, 6: 6}


@pytest.mark.parametrize("talkative", [False, True])
def test_a_client_that_calls_and_never_looks_is_not_waited_for(clients: tuple[Raw, Raw], talkative: bool) -> None:
    """A settle() waits for every client's look. One that goes on calling without it would hold up everybody."""
    one, deaf = clients
    one.give(bytes(PAGE))
    deaf.give(bytes(PAGE))
    reply = one.exchange(settling=1)
    deadline = time.monotonic() + 30
    while not reply.HasField("settle_report"):
        assert time.monotonic() < deadline, "it waits for ever"
        deaf.exchange(event(pb.EVENT_KIND_EXCLUDED, 1, 0, 1) if talkative else None, looked=0)
        reply = one.exchange(obey(reply), settling=1)
    assert reply.settle_report.settling == 1


def test_a_new_settle_takes_the_place_of_the_old_one(client: Raw) -> None:
    client.exchange(settling=1)
    assert client.settle(2).settling == 2


def test_a_silent_client_is_not_waited_for(clients: tuple[Raw, Raw]) -> None:
    one, two = clients
    content = noise(8)
    one.give(content)
    two.give(content)
    report = one.settle()
    assert not report.settled, "half of it is not merged"
    assert report.merged_pages == 8
    assert report.pages_refused == 8
    assert [(each.kind, each.pages) for each in report.obstacles] == [(pb.OBSTACLE_KIND_SILENT, 8)]
    assert two.exchange().merges.count  # its proposal is still there


def test_a_client_that_calls_and_never_answers_is_not_waited_for(clients: tuple[Raw, Raw]) -> None:
    one, two = clients
    content = noise(8)
    one.give(content)
    two.give(content)
    two.instructions()
    one.exchange(settling=1)
    until(lambda: [two.exchange(), one.exchange(settling=1)][1].HasField("settle_report"), what="the report")


def test_a_client_that_works_is_waited_for(clients: tuple[Raw, Raw]) -> None:
    one, two = clients
    content = noise(8)
    one.give(content)
    two.give(content)
    events = obey(one.instructions(settling=1))
    reply = two.instructions()
    assert not one.exchange(events, settling=1).HasField("settle_report")
    two.exchange(obey(reply))
    report = one.settle_with(two)
    assert (report.settled, report.merged_pages, report.pages_refused) == (True, 16, 0)


def test_a_client_with_work_is_rung_again(client: Raw) -> None:
    client.give(bytes(PAGE))
    client.exchange(settling=1)
    client.wait()
    client.wait()  # nobody listened the first time


def test_adding_a_segment_twice_changes_nothing(client: Raw, shared: Server) -> None:
    made = client.segment(noise(2))
    for _ in range(2):
        client.add(made.name, 2, 7)
    request = pb.DropSegmentRequest(session=client.token, segment=7)
    client.stub.DropSegment(request, timeout=10)
    client.stub.DropSegment(request, timeout=10)


def test_another_segment_under_the_same_number_is_a_violation(client: Raw) -> None:
    client.add(client.segment(noise(2)).name, 2, 7)
    with pytest.raises(grpc.RpcError) as refused:
        client.add(client.segment(noise(2)).name, 2, 7)
    assert reason(refused.value) == "REASON_PROTOCOL_VIOLATION"


def test_a_segment_with_merged_pages_is_not_dropped(client: Raw) -> None:
    number = client.give(bytes(PAGE))
    client.settle()
    with pytest.raises(grpc.RpcError) as refused:
        client.stub.DropSegment(pb.DropSegmentRequest(session=client.token, segment=number), timeout=10)
    assert reason(refused.value) == "REASON_SEGMENT_IN_USE"
    client.exchange(event(pb.EVENT_KIND_RELEASED, number, 0, 1))
    client.stub.DropSegment(pb.DropSegmentRequest(session=client.token, segment=number), timeout=10)


def test_bye_without_references_ends_the_session_at_once(client: Raw, shared: Server) -> None:
    client.give(noise(2))
    client.bye()
    assert _domain(shared, client.label) == []
    with pytest.raises(grpc.RpcError) as refused:
        client.exchange()
    assert reason(refused.value) == "REASON_UNKNOWN_SESSION"


def test_bye_with_references_departs_until_the_lease_is_free(shared: Server) -> None:
    with Raw(shared.address) as raw:
        raw.hello(label="bye")
        raw.give(bytes(PAGE))
        raw.settle()
        raw.bye()
        assert [info.state for info in _domain(shared, "bye")] == ["departed"]
    until(lambda: not _domain(shared, "bye"), what="its lease being found free")


def test_a_client_whose_engine_has_failed_is_not_excluded(tmp_path: Path) -> None:
    """It was, at its next call: so it did not come to the server that was started in place of this one."""

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("the engine has failed: of a test")

    def break_engine(domain: Domain) -> None:
        for name in ("apply", "depart_client"):
            setattr(domain.engine, name, fail)

    with Inside(tmp_path / "server") as server, Raw(server.address) as raw:
        raw.hello()
        server.in_domain(break_engine)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                raw.exchange()
            assert reason(caught.value) == "REASON_INTERNAL"
            raw.sequence -= 1  # the same call once more


def test_a_domain_whose_engine_has_failed_goes_with_its_sessions(tmp_path: Path) -> None:
    """It stayed for ever: status had no answer, a Hello took a place in the quota, and no session ended."""

    def break_engine(domain: Domain) -> None:
        engine = domain.engine
        for name in (name for name in dir(engine) if name[0] != "_" and callable(getattr(engine, name))):
            if name != "close":
                setattr(engine, name, fail)
        domain.fail(RuntimeError("of a test"))

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("the engine has failed: of a test")

    def sessions() -> int:
        return server.do(lambda server: sum(tenant.holdings.sessions for tenant in server._tenants))

    with Inside(tmp_path / "server") as server, Raw(server.address) as other:
        with Raw(server.address) as raw, Raw(server.address) as late:
            raw.hello()
            raw.give(noise(1))
            server.in_domain(break_engine)
            with pytest.raises(grpc.RpcError):
                late.hello()
            assert sessions() == 1
            other.hello(label="other")
            assert server.admin.GetStatus(admin_pb2.GetStatusRequest()).clients == 2
            assert len(server.admin.ListClients(admin_pb2.ListClientsRequest()).clients) == 2
            assert len(server.admin.ListSegments(admin_pb2.ListSegmentsRequest()).segments) == 1
            assert len(server.admin.ListDomains(admin_pb2.ListDomainsRequest()).domains) == 2
        until(lambda: sessions() == 1, 10, "the session's end")
        with Raw(server.address) as again:
            again.hello()
            again.exchange()


def test_a_hello_that_is_repeated_leaves_one_session(shared: Server) -> None:
    with Raw(shared.address) as raw:
        raw.hello(label="twice")
        raw.hello(label="twice")
        assert len(_domain(shared, "twice")) == 1
        raw.give(noise(1))
        raw.hello(label="twice")  # now the older one has been used, and stays
        assert len(_domain(shared, "twice")) == 2


CHILD = """
import sys
from support.raw import Raw, noise, PAGE
raw = Raw(sys.argv[1])
raw.hello(label="child")
raw.give(bytes(PAGE) * 4)
raw.settle()
print(raw.lease.name, flush=True)
sys.stdin.read()
"""


def test_a_killed_client_is_gone_within_seconds_and_its_names_with_it(shared: Server, no_names: None) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, shared.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        text=True,
    ) as child:
        assert child.stdout is not None
        lease = child.stdout.readline().strip()
        assert lease[1:] in kernel.names()
        assert [info.pages_merged for info in _domain(shared, "child")] == [4]
        child.send_signal(signal.SIGKILL)
    until(lambda: not _domain(shared, "child"), what="the session's end")
    assert lease[1:] not in kernel.names()
    assert f"sem.{shm_names.doorbell_for(lease)[1:]}" not in kernel.names()


def test_a_lease_that_a_forked_child_holds_keeps_the_session(shared: Server) -> None:
    with Raw(shared.address) as raw:
        raw.hello(label="fork")
        raw.give(bytes(PAGE))
        raw.settle()
        held = os.dup(raw.lease.fd)  # the same open file description, as a forked child has it
        raw.bye()
    statuses = {tuple(info.state for info in _domain(shared, "fork")) for _ in range(3)}
    before = shared.status().uptime_seconds
    until(lambda: shared.status().uptime_seconds > before + 1.2)  # two looks at the leases at least
    statuses.add(tuple(info.state for info in _domain(shared, "fork")))
    assert statuses == {("departed",)}
    os.close(held)
    until(lambda: not _domain(shared, "fork"), what="the last holder's death being noticed")


def test_the_label_separates_domains(shared: Server) -> None:
    with Raw(shared.address) as one, Raw(shared.address) as two:
        one.hello(label="left")
        two.hello(label="right")
        content = noise(4)
        one.give(content)
        two.give(content)
        assert one.settle().merged_pages == two.settle().merged_pages == 0


def test_the_doorbell_is_a_plain_semaphore(client: Raw) -> None:
    client.give(bytes(PAGE))
    client.exchange(settling=1)
    client.wait()
    semaphore = posix_ipc.Semaphore(client.doorbell)
    assert semaphore.value in (0, 1)
    semaphore.close()


def _domain(server: Server, label: str) -> list:  # type: ignore[type-arg]
    return [info for info in server.clients() if info.label == label]
