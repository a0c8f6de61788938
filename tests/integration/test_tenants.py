"""Several users on one server: nothing of one is merged with another's, opened, spoofed or seen."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from support import kernel
from support.raw import PAGE, Raw, noise, reason
from support.server import Server
from support.tenancy import ALICE, BOB, tenants_server
from support.waiting import until
from support.worker import Worker, page_of

pytestmark = [pytest.mark.needs("root")]
PAGES = 64
SEEDS = list(range(1, PAGES + 1))

House = tuple[Server, str]
Crew = Callable[..., Worker]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with tenants_server(tmp_path / "server") as house:
        yield house


@pytest.fixture
def crew(house: House) -> Iterator[Crew]:
    """Starts workers of users that are not root, each with the same pages as all others."""
    started: list[Worker] = []

    def start(uid: int, **connect: str) -> Worker:
        worker = Worker(house[1], uid=uid, **connect)
        started.append(worker)
        worker.call("allocate", "a", PAGES * PAGE)
        worker.call("fill_pages", "a", SEEDS)
        return worker

    yield start
    for worker in started:
        worker.close()


def mapped_pools(worker: Worker) -> set[int]:
    """The inodes of the pools that a process maps privately: what its merged pages are."""
    found = set()
    for line in Path(f"/proc/{worker.pid}/maps").read_text().splitlines():
        if re.search(r"/pagefold-p(ool)?-", line) and line.split()[1].endswith("p") and "w" in line.split()[1]:
            found.add(int(line.split()[4]))
    return found


def domains(server: Server) -> dict[tuple[int, str], admin_pb2.DomainInfo]:
    listed = server.admin.ListDomains(admin_pb2.ListDomainsRequest(), timeout=10).domains
    return {(domain.uid, domain.label): domain for domain in listed}


def tenant(server: Server, uid: int) -> admin_pb2.TenantInfo:
    (found,) = [t for t in server.admin.ListDomains(admin_pb2.ListDomainsRequest(), timeout=10).tenants if t.uid == uid]
    return found


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason(caught.value)


def give_away(raw: Raw, uid: int) -> None:
    """Makes a raw client's lease and doorbell another user's: a raw client of that user, run by root."""
    os.chown(kernel.SHM / raw.lease.name[1:], uid, uid)
    os.chown(kernel.SHM / f"sem.{raw.doorbell[1:]}", uid, uid)


# Domains never mix


@pytest.mark.needs("uffd")
@pytest.mark.parametrize(
    "places", [((ALICE, ""), (BOB, "")), ((ALICE, "one"), (ALICE, "two"))], ids=["of-two-users", "of-two-labels"]
)
def test_equal_pages_of_two_domains_never_share_a_frame(
    house: House, crew: Crew, places: tuple[tuple[int, str], ...]
) -> None:
    server = house[0]
    pairs = [[crew(uid, label=label) for _ in range(2)] for uid, label in places]
    for pair in pairs:
        assert pair[0].call("settle").settled
    for pair, place in zip(pairs, places, strict=True):
        counters = domains(server)[place].counters
        assert (counters.pages_shared, counters.pages_sharing) == (PAGES, PAGES), "each domain merges, for itself"
        inode = (kernel.SHM / domains(server)[place].pool[1:]).stat().st_ino
        assert [mapped_pools(worker) for worker in pair] == [{inode}, {inode}]
    assert mapped_pools(pairs[0][0]) != mapped_pools(pairs[1][0])
    pools = [(kernel.SHM / domains(server)[place].pool[1:]).read_bytes()[: PAGES * PAGE] for place in places]
    assert sorted(split(pools[0])) == sorted(split(pools[1])), "the content is the same, and stands there twice"
    before = pairs[1][0].call("digest", "a")
    pairs[0][0].call("write", "a", 0, b"x" * PAGE * PAGES)
    assert pairs[1][0].call("digest", "a") == pairs[1][1].call("digest", "a") == before


@pytest.mark.needs("uffd")
def test_a_single_page_of_each_of_two_users_finds_no_twin(house: House, crew: Crew) -> None:
    one, other = crew(ALICE), crew(BOB)
    for worker in (one, other, one):
        assert worker.call("settle").settled
    for uid in (ALICE, BOB):
        counters = domains(house[0])[uid, ""].counters
        assert (counters.pages_shared, counters.pages_sharing, counters.pages_unshared) == (0, 0, PAGES)
    assert mapped_pools(one) == mapped_pools(other) == set()


@pytest.mark.needs("uffd", "pagemap_scan")
def test_a_write_in_one_domain_holds_and_copies_nothing_in_the_other(house: House, crew: Crew) -> None:
    """By the counters of time: windows are where writes are held, copies are what a write to a merged page costs."""
    server = house[0]
    pairs = {uid: [crew(uid) for _ in range(2)] for uid in (ALICE, BOB)}
    for pair in pairs.values():
        assert pair[0].call("settle").settled
    server.configure(run=0)  # what counts from now on, writes have done
    pools = {uid: inode_of(server, uid) for uid in pairs}
    bobs = pairs[BOB][0]
    before = [(toll(worker), copies(worker, pools[BOB])) for worker in pairs[BOB]]
    assert [held for (_, _, held), _ in before] == [PAGES * PAGE] * 2, "all is merged there"
    pairs[ALICE][0].call("write", "a", 0, b"x" * PAGE * PAGES)
    assert copies(pairs[ALICE][0], pools[ALICE]) == PAGES, "each page that was written was copied"
    assert [(toll(worker), copies(worker, pools[BOB])) for worker in pairs[BOB]] == before
    assert [copies(worker, pools[ALICE]) for worker in pairs[BOB]] == [0, 0], "nothing of hers is mapped there"
    bobs.call("write", "a", 0, b"y" * PAGE)
    assert [copies(worker, pools[BOB]) for worker in pairs[BOB]] == [1, 0], "this count does count"


@pytest.mark.needs("uffd")
def test_two_domains_of_the_same_bytes_stand_on_different_physical_frames(house: House, crew: Crew) -> None:
    """By the kernel's own numbers: frames of memory by /proc/PID/pagemap, shares by Pss."""
    pairs = {uid: [crew(uid) for _ in range(2)] for uid in (ALICE, BOB)}
    for pair in pairs.values():
        assert pair[0].call("settle").settled
        for worker in pair:
            worker.call("digest", "a")  # each page is looked at once, and so is in its page table
    frames = {
        uid: [kernel.physical_frames(worker.pid, inode_of(house[0], uid)) for worker in pairs[uid]] for uid in pairs
    }
    for one, other in frames.values():
        assert one == other, "within a domain both stand on the same memory"
        assert len(one) == PAGES
    assert not frames[ALICE][0] & frames[BOB][0], "a frame of memory serves two domains"
    for uid, pair in pairs.items():
        shares = [kernel.pss_of(worker.pid, inode_of(house[0], uid)) for worker in pair]
        assert shares == [PAGES * PAGE // 2] * 2, "each page is shared by two, not by four"


def inode_of(server: Server, uid: int) -> int:
    return (kernel.SHM / domains(server)[uid, ""].pool[1:]).stat().st_ino


def toll(worker: Worker) -> tuple[int, float, int]:
    """Windows so far, the longest, and what is merged, as the client counts."""
    stats = worker.call("stats")
    return stats.windows, stats.window_max_micros, stats.merged_bytes


def copies(worker: Worker, inode: int) -> int:
    """Pages that the process has copied from that pool: anonymous memory in private mappings of it."""
    return kernel.mapped(worker.pid, inode, "Anonymous") // PAGE


def split(content: bytes) -> list[bytes]:
    return [content[at : at + PAGE] for at in range(0, len(content), PAGE)]


# Owners and modes


def test_a_socket_is_open_to_others_only_where_that_was_asked_for(house: House) -> None:
    server, address = house
    private, shared = Path(server.directory), Path(address.removeprefix("unix:"))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "server.sock").stat().st_mode) & 0o077 == 0
    assert (stat.S_IMODE(shared.parent.stat().st_mode), shared.parent.stat().st_uid) == (0o755, 0)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o666
    assert as_user(ALICE, lambda: connects(shared)) == "connected"
    assert as_user(ALICE, lambda: connects(private / "server.sock")) == "PermissionError"


def test_a_group_may_be_asked_for(tmp_path: Path) -> None:
    with tenants_server(tmp_path / "server", tenants_group=str(BOB)) as (_, address):
        path = Path(address.removeprefix("unix:"))
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, BOB)
        assert as_user(ALICE, lambda: connects(path)) == "PermissionError"
        assert as_user(BOB, lambda: connects(path)) == "connected"


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    ended = subprocess.run(
        [sys.executable, "-m", "pagefold_server", "--address", f"unix:{tmp_path}/private/server.sock"],
        env=os.environ | {"PAGEFOLD_TENANTS_ADDRESS": f"unix:{loose}/server.sock"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 4
    assert f"chmod 755 {loose}" in ended.stderr
    assert not (tmp_path / "private/server.sock").exists()


@pytest.mark.needs("uffd")
def test_objects_have_the_right_owners_and_modes(house: House, crew: Crew) -> None:
    crew(ALICE), crew(ALICE).call("settle")
    found = {name: (kernel.SHM / name).stat() for name in kernel.names()}
    mine = {name: status for name, status in found.items() if status.st_uid == ALICE}
    kinds = {"pagefold-s": 0o600, "pagefold-l": 0o600, "pagefold-p": 0o400, "sem.pagefold-d": 0o600}
    for kind, mode in kinds.items():
        modes = {stat.S_IMODE(status.st_mode) for name, status in mine.items() if name.startswith(kind)}
        assert modes == {mode}, kind


# What a tenant cannot do


@pytest.mark.needs("uffd")
def test_a_tenant_opens_nothing_of_anothers(house: House, crew: Crew) -> None:
    crew(ALICE), crew(ALICE).call("settle")
    targets = [name for name in kernel.names() if (kernel.SHM / name).stat().st_uid == ALICE]
    assert len(targets) >= 7  # two segments, leases and doorbells, and a pool

    def opens() -> str:
        opened = []
        for name in targets:
            for flags in (os.O_RDONLY, os.O_RDWR):
                try:
                    os.close(os.open(kernel.SHM / name, flags))
                    opened.append(name)
                except PermissionError:
                    pass
            try:
                os.unlink(kernel.SHM / name)
                opened.append(f"unlinked {name}")
            except PermissionError:
                pass
        return "\n".join(opened)

    assert as_user(BOB, opens) == ""


def test_operators_calls_are_not_to_be_had_where_tenants_connect(house: House) -> None:
    with grpc.insecure_channel(house[1]) as channel:
        stub = admin_pb2_grpc.AdminStub(channel)
        for call in (
            lambda: stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=10),
            lambda: stub.ListClients(admin_pb2.ListClientsRequest(), timeout=10),
            lambda: stub.ListSegments(admin_pb2.ListSegmentsRequest(), timeout=10),
            lambda: stub.SetConfig(admin_pb2.SetConfigRequest(values={"run": "2"}), timeout=10),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert house[0].status().run == 1


def test_a_lease_of_somebody_elses_opens_no_session(house: House) -> None:
    """The story: names in /dev/shm can be read by all, and a lease's name alone once opened a session of its owner's:
    in the victim's domain, with the victim's segments to be had by their names, which can be read as well."""
    server, address = house
    with Raw(address) as victim, Raw(address) as thief:
        give_away(victim, ALICE)
        give_away(thief, BOB)
        victim.hello()
        stolen = {"lease": victim.lease.name, "doorbell": victim.doorbell}
        for proof in (thief.proof, b"", bytes(32), victim.proof[:31], victim.proof + b"\0"):
            assert refused(lambda proof=proof: thief.hello(**stolen, proof=proof)) == "REASON_WRONG_OWNER"
        assert [client.uid for client in server.clients()] == [ALICE], "the victim's session is untouched"
        victim.exchange()


def test_a_lease_without_a_secret_opens_none_either(house: House) -> None:
    with Raw(house[1]) as raw:
        os.pwrite(raw.lease.fd, bytes(32), 0)
        assert refused(lambda: raw.hello(proof=bytes(32))) == "REASON_WRONG_OWNER"
        os.ftruncate(raw.lease.fd, 0)
        assert refused(lambda: raw.hello(proof=b"")) == "REASON_WRONG_OWNER"


def test_segments_and_doorbells_of_somebody_elses_are_refused(house: House) -> None:
    with Raw(house[1]) as victim, Raw(house[1]) as thief:
        for raw, uid in ((victim, ALICE), (thief, BOB)):
            give_away(raw, uid)
        victim.hello()
        made = victim.segment(noise(4))
        os.chown(kernel.SHM / made.name[1:], ALICE, ALICE)
        assert refused(lambda: thief.hello(doorbell=victim.doorbell)) == "REASON_BAD_NAME"
        thief.hello()
        assert refused(lambda: thief.add(made.name, 4)) == "REASON_WRONG_OWNER"
        thief.token = bytes(16)
        assert refused(thief.exchange) == "REASON_UNKNOWN_SESSION"
        victim.add(made.name, 4)


def test_a_doorbell_that_changes_its_owner_after_a_first_look_is_not_rung(house: House) -> None:
    from pagefold_core import Doorbell

    with Raw(house[1]) as raw:
        give_away(raw, ALICE)
        Doorbell(raw.doorbell, ALICE)
        with pytest.raises(PermissionError):
            Doorbell(raw.doorbell, BOB)


# Quotas


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


# Being somebody else


def connects(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError as error:
            return type(error).__name__
        return "connected"


def as_user(uid: int, do: Callable[[], str]) -> str:
    """What it returns, done by a forked child that is that user."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write, do().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said
