"""The Admin service: what operators see, change and start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import pytest
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_proto.v1 import memory_pb2
from support import kernel, variant
from support.raw import PAGE, Raw, noise, obey, reason
from support.server import Server
from support.waiting import until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), silent_seconds=1) as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[Raw]:
    with Raw(shared.address) as raw:
        raw.label = os.urandom(8).hex()
        raw.hello(label=raw.label, version="1.2.3", tracker=memory_pb2.TRACKER_CHECKSUM)
        yield raw


def test_everything_is_counted(shared: Server, client: Raw) -> None:
    content = noise(8)
    first = client.give(content + bytes(2 * PAGE) + noise(1))
    client.give(content)
    client.news = obey(client.exchange(gauges=memory_pb2.Gauges(mappings=5, mapping_budget=100)))
    report = client.settle_with()
    assert (report.settled, report.pages_sharing, report.zero_pages) == (True, 8, 2)

    domains = shared.admin.ListDomains(pb.ListDomainsRequest(), timeout=10).domains
    (domain,) = [d for d in domains if d.label == client.label]
    assert (domain.uid, domain.clients, domain.segments) == (os.geteuid(), 1, 2)
    assert domain.pool_bytes == kernel.allocated(domain.pool) == 8 * PAGE
    counters = domain.counters
    assert (counters.pages_shared, counters.pages_sharing, counters.zero_pages) == (8, 8, 2)
    assert (counters.pages_unshared, counters.pages_merged) == (1, 18)
    assert counters.general_profit == 10 * PAGE - counters.bookkeeping_bytes

    (info,) = [c for c in shared.clients() if c.label == client.label]
    assert (info.pid, info.program, info.version, info.uid) == (os.getpid(), "test", "1.2.3", os.geteuid())
    assert (info.tier, info.tracker) == (memory_pb2.TIER_UFFD, memory_pb2.TRACKER_CHECKSUM)
    assert (info.state, info.segments, info.bytes) == ("active", 2, 19 * PAGE)
    assert (info.gauges.mappings, info.pages_merged, info.pages_proposed) == (5, 18, 0)

    reply = shared.admin.ListSegments(pb.ListSegmentsRequest(client=info.client), timeout=10)
    assert [(s.segment, s.pages, s.merged_pages, s.zero_pages) for s in reply.segments] == [
        (first, 11, 8, 2),
        (first + 1, 8, 8, 0),
    ]
    assert [s.allocated_bytes for s in reply.segments] == [11 * PAGE, 8 * PAGE]
    everything = shared.admin.ListSegments(pb.ListSegmentsRequest(), timeout=10).segments
    assert {s.name for s in reply.segments} <= {s.name for s in everything}

    status = shared.status()
    assert (status.pid, status.address, status.engine) == (shared.pid, shared.address, variant.ENGINE)
    assert (status.run, status.protocol, status.page_size) == (1, 1, PAGE)
    assert status.saved_bytes >= 10 * PAGE
    assert status.pool_bytes >= 8 * PAGE
    assert status.cpu_seconds > 0
    assert status.trouble == ""


def test_counts_since_the_start_outlive_their_domain(shared: Server) -> None:
    with Raw(shared.address) as raw:
        raw.hello(label="brief")
        number = raw.give(bytes(3 * PAGE))
        raw.settle()
        before = shared.status().counters.pages_merged
        raw.exchange(memory_pb2.Events(kind=[4], segment=[number], first=[0], count=[3]))
        raw.bye()
    assert shared.status().counters.pages_merged == before


def test_a_silent_client_is_called_that(shared: Server, client: Raw) -> None:
    client.give(bytes(PAGE))
    reply = client.instructions(settling=1)

    def state() -> str:
        return next(c.state for c in shared.clients() if c.label == client.label)

    until(lambda: state() == "silent", what="the silence being noticed")
    client.exchange(obey(reply))
    assert state() == "active"


def test_settings_change_live_or_not_at_all(serve, shared: Server) -> None:  # type: ignore[no-untyped-def]
    server = serve()

    def refuse(**values: str) -> str:
        with pytest.raises(grpc.RpcError) as refused:
            server.configure(**values)
        assert reason(refused.value) == "REASON_BAD_CONFIG"
        return refused.value.details() or ""

    reply = server.admin.SetConfig(pb.SetConfigRequest(values={"pages_to_scan": "77"}), timeout=10)
    (setting,) = reply.settings
    assert (setting.key, setting.value, setting.default_value) == ("pages_to_scan", "77", "32768")
    assert (setting.origin, setting.live) == ("live", True)
    assert setting.description
    assert "nonsense" in refuse(pages_to_scan="88", nonsense="1")
    assert "max_page_sharing" in refuse(pages_to_scan="88", max_page_sharing="1")
    assert "run" in refuse(run="3")
    assert "restart" in refuse(address="unix:/tmp/x.sock")
    assert refuse(use_zero_pages="perhaps")
    assert refuse(cpu_ceiling_percent="nan")
    found = {s.key: s for s in server.admin.GetConfig(pb.GetConfigRequest(), timeout=10).settings}
    assert found["pages_to_scan"].value == "77"
    assert found["sleep_millisecs"].origin == "environment"
    assert found["run"].origin == "default"


def test_run_0_stops_and_settle_says_so(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve(run=0)
    with Raw(server.address) as raw:
        raw.hello()
        raw.give(bytes(4 * PAGE))
        report = raw.settle()
        assert (report.settled, report.passes) == (False, 0)
        assert not server.admin.ScanNow(pb.ScanNowRequest(), timeout=10).report.settled
        status = server.status()
        assert (status.run, status.counters.pages_scanned) == (0, 0)
        assert "scan start" in status.trouble
        server.configure(run=1)
        assert raw.settle(2).settled
        raw.exchange(settling=3)
        server.configure(run=0)  # waiting clients are told
        raw.wait()
        assert server.status().settling == 0


def test_run_2_gives_every_page_back_and_run_1_merges_again(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve()
    content = noise(600)
    with Raw(server.address) as one, Raw(server.address) as two:
        for raw in (one, two):
            raw.hello()
            raw.give(content)
        one.settle_with(two)
        assert server.status().counters.pages_sharing == 600
        server.configure(run=2)
        for raw in (one, two):
            raw.wait()
            while (events := obey(reply := raw.exchange())) is not None:
                assert not reply.merges.count
                raw.exchange(events)
        status = server.status()
        assert (status.counters.pages_shared, status.counters.pages_sharing, status.run) == (0, 0, 2)
        until(lambda: server.status().pool_bytes == 0, what="the frames being given back")
        assert "run=2" in status.trouble
        server.configure(run=1)
        assert one.settle_with(two).merged_pages == 1200


def test_scan_now_settles_all_domains_and_says_what_it_found(shared: Server, client: Raw) -> None:
    client.give(noise(3))
    report = shared.admin.ScanNow(pb.ScanNowRequest(), timeout=20).report
    assert report.settled
    assert report.pages_unshared >= 3
    assert report.passes >= 1


def test_scan_now_ends_at_its_deadline(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve(settle_cpu_percent=1, cpu_ceiling_percent=1, pages_to_scan=16)
    with Raw(server.address) as raw:
        raw.hello()
        raw.give(noise(4000))
        report = server.admin.ScanNow(pb.ScanNowRequest(timeout_seconds=0.2), timeout=10).report
        assert not report.settled
        assert server.status().settling == 0


def test_a_caller_that_hangs_up_waits_no_longer(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve(settle_cpu_percent=1, cpu_ceiling_percent=1, pages_to_scan=16)
    with Raw(server.address) as raw:
        raw.hello()
        raw.give(noise(4000))
        call = server.admin.ScanNow.future(pb.ScanNowRequest(), timeout=10)
        until(lambda: server.status().settling == 1)
        call.cancel()
        until(lambda: server.status().settling == 0)


def test_watching_the_status(shared: Server) -> None:
    calls = shared.admin.WatchStatus(pb.WatchStatusRequest(interval_seconds=0.1), timeout=10)
    uptimes = [next(calls).uptime_seconds for _ in range(3)]
    assert uptimes[2] - uptimes[0] >= 0.19
    calls.cancel()


def test_the_ceiling_is_kept_and_idle_domains_cost_next_to_nothing(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve(cpu_ceiling_percent=5, sleep_millisecs=1)
    with Raw(server.address) as raw:
        raw.hello()
        made = raw.segment(noise(3000))
        raw.add(made.name, 3000)
        until(lambda: server.status().counters.pages_scanned > 1000)
        assert server.status().scan_cpu_percent < 15  # its average is of few slices yet
        raw.settle()
        until(lambda: server.status().scan_cpu_percent < 5)
        scans = server.status().counters.full_scans
        raw.settle(2)
        assert server.status().counters.full_scans > scans  # wakes at once


def test_trouble_says_that_no_client_can_hold_writes(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve()
    with Raw(server.address) as raw:
        raw.hello(tier=memory_pb2.TIER_OFF)
        assert "userfaultfd" in server.status().trouble


def test_trouble_says_that_a_budget_is_used_up(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve()
    with Raw(server.address) as raw:
        raw.hello()
        number = raw.give(bytes(PAGE))
        raw.instructions(settling=1)
        raw.exchange(
            memory_pb2.Events(kind=[2], segment=[number], first=[0], count=[1], pool=[0], frame=[0], detail=[2])
        )
        assert "vm.max_map_count" in server.status().trouble
