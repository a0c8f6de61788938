"""What each of several users may hold of a server, and its part of the processor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from pagefold_proto.v1 import admin_pb2
from support import kernel
from support.raw import PAGE, Raw, noise, reason
from support.server import Server
from support.tenancy import ALICE, BOB
from support.tenant_cases import PAGES, SEEDS, Crew, House, domains, give_away
from support.waiting import until
from support.worker import page_of

pytestmark = [pytest.mark.needs("root")]


def tenant(server: Server, uid: int) -> admin_pb2.TenantInfo:
    (found,) = [t for t in server.admin.ListDomains(admin_pb2.ListDomainsRequest(), timeout=10).tenants if t.uid == uid]
    return found


def test_quotas_are_per_user_and_say_what_to_do(house: House) -> None:
    server, address = house
    server.configure(tenant_max_sessions=2, tenant_max_domains=1, tenant_max_segments=2, tenant_max_bytes=8 * PAGE)
    with Raw(address) as one, Raw(address) as two, Raw(address) as three, Raw(address) as other:
        for raw in (one, two, three):
            give_away(raw, ALICE)
        give_away(other, BOB)
        one.hello()
        assert remedy(lambda: two.hello(label="more")) == ("REASON_LIMIT", "raise tenant_max_domains")
        two.hello()
        assert remedy(three.hello) == ("REASON_LIMIT", "raise tenant_max_sessions")
        give(one, ALICE, 4)
        assert remedy(lambda: give(two, ALICE, 5)) == ("REASON_LIMIT", "raise tenant_max_bytes")
        number = give(two, ALICE, 4)
        server.configure(tenant_max_bytes=0)
        assert remedy(lambda: give(one, ALICE, 1)) == ("REASON_LIMIT", "raise tenant_max_segments")
        other.hello()
        give(other, BOB, 4)
        held = tenant(server, ALICE)
        assert (held.sessions, held.domains, held.segments, held.bytes) == (2, 1, 2, 8 * PAGE)
        two.stub.DropSegment(two_drop(two, number), timeout=10)
        give(one, ALICE, 4)
        two.bye()
        three.hello()
        held = tenant(server, ALICE)
        assert (held.sessions, held.domains, held.segments, held.bytes) == (2, 1, 2, 8 * PAGE)


def test_mappings_are_summed_over_a_users_clients(house: House) -> None:
    from pagefold_proto.v1 import memory_pb2 as pb

    server, address = house
    server.configure(tenant_max_mappings=100)
    with Raw(address) as one, Raw(address) as two, Raw(address) as other:
        for raw, uid in ((one, ALICE), (two, ALICE), (other, BOB)):
            give_away(raw, uid)
        for raw in (one, two):
            raw.hello()
            give(raw, ALICE, 50)
            raw.exchange(gauges=pb.Gauges(mappings=50))
        assert tenant(server, ALICE).mappings == 100
        assert remedy(lambda: give(one, ALICE, 1)) == ("REASON_LIMIT", "raise tenant_max_mappings")
        other.hello()
        give(other, BOB, 1)
        one.exchange(gauges=pb.Gauges(mappings=49))
        give(one, ALICE, 1)
        two.bye()
        assert tenant(server, ALICE).mappings == 49


def test_a_client_cannot_claim_more_mappings_than_it_can_have(house: House) -> None:
    """One claimed 2^32 - 1, and its user could open no session any more."""
    from pagefold_proto.v1 import memory_pb2 as pb

    server, address = house
    with Raw(address) as liar, Raw(address) as other:
        for raw in (liar, other):
            give_away(raw, ALICE)
        liar.hello()
        liar.exchange(gauges=pb.Gauges(mappings=(1 << 32) - 1))
        assert tenant(server, ALICE).mappings == 0, "it has no memory"
        number = give(liar, ALICE, 8)
        liar.exchange(gauges=pb.Gauges(mappings=(1 << 32) - 1))
        assert tenant(server, ALICE).mappings == 8, "a page takes one at most"
        sparse = liar.segment(b"")
        os.chown(kernel.SHM / sparse.name[1:], ALICE, ALICE)
        os.ftruncate(sparse.fd, PAGE << 24)
        liar.add(sparse.name, 1 << 24)
        liar.exchange(gauges=pb.Gauges(mappings=(1 << 32) - 1))
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        assert tenant(server, ALICE).mappings == min(limit, 8 + (1 << 24))
        for segment in (number, number + 1):
            liar.stub.DropSegment(pb.DropSegmentRequest(session=liar.token, segment=segment), timeout=10)
        assert tenant(server, ALICE).mappings == 0
        other.hello()


@pytest.mark.needs("uffd")
def test_what_a_quota_refuses_keeps_its_bytes_and_the_rest_goes_on_merging(house: House, crew: Crew) -> None:
    server = house[0]
    one, two = crew(ALICE), crew(ALICE)
    server.configure(tenant_max_bytes=tenant(server, ALICE).bytes)
    for worker in (one, two):  # larger than what is left of a segment that is there already
        worker.call("allocate", "more", 64 << 20)
        worker.call("fill_pages", "more", SEEDS)
    assert "raise tenant_max_bytes" in one.call("settle").reason
    trouble = one.call("stats").trouble
    assert "raise tenant_max_bytes" in trouble, trouble
    assert domains(server)[ALICE, ""].counters.pages_sharing == PAGES, "what was there before is merged"
    two.call("write", "more", 5 * PAGE, b"still mine")
    assert one.call("read", "more", 0, PAGES * PAGE) == b"".join(map(page_of, SEEDS))
    assert two.call("read", "more", 5 * PAGE, 10) == b"still mine"
    bob = crew(BOB)
    assert bob.call("settle").settled
    assert "raise tenant" not in bob.call("stats").trouble


# Fair shares
def test_who_floods_is_put_off_and_whoever_else_wants_something_is_not(house: House) -> None:
    """By counters: what each has had of the processor, and whose calls had to wait. Alice makes many expensive calls
    and Bob few cheap ones, at the same time."""
    from pagefold_proto.v1 import memory_pb2 as pb

    server, address = house
    with Raw(address) as flood, Raw(address) as other:
        for raw, uid in ((flood, ALICE), (other, BOB)):
            give_away(raw, uid)
            raw.hello()
        number, pages = give(flood, ALICE, 128), 128
        length = 1 << 13
        events = pb.Events(
            kind=[pb.EVENT_KIND_INCLUDED] * length,
            segment=[number] * length,
            count=[pages] * length,
            **dict.fromkeys(("first", "pool", "frame", "detail"), [0] * length),
        )
        ended = threading.Event()

        def floods() -> None:
            while not ended.is_set():
                flood.exchange(events)

        thread = threading.Thread(target=floods)
        thread.start()
        try:
            until(lambda: other.exchange() and tenant(server, ALICE).calls_delayed >= 3, what="the flood being put off")
        finally:
            ended.set()
            thread.join()
        hers, his = tenant(server, ALICE), tenant(server, BOB)
        assert his.calls_delayed == 0
        assert hers.call_cpu_seconds > his.call_cpu_seconds > 0


def give(raw: Raw, uid: int, pages: int) -> int:
    made = raw.segment(noise(pages))
    os.chown(kernel.SHM / made.name[1:], uid, uid)
    return raw.add(made.name, pages)


def two_drop(raw: Raw, number: int) -> object:
    from pagefold_proto.v1 import memory_pb2 as pb

    return pb.DropSegmentRequest(session=raw.token, segment=number)


def remedy(call: Callable[[], object]) -> tuple[str, str]:
    """The stable reason, and what the text says to do."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason(caught.value), "raise " + (caught.value.details() or "").rpartition("raise ")[2]
