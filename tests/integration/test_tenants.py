"""Several users on one server: nothing of one is merged with another's, opened, spoofed or seen."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from support import kernel
from support.raw import PAGE, Raw, noise, reason
from support.server import Server
from support.tenancy import ALICE, BOB, tenants_server
from support.tenant_cases import PAGES, Crew, House, domains, give_away
from support.worker import Worker

pytestmark = [pytest.mark.needs("root")]


def mapped_pools(worker: Worker) -> set[int]:
    """The inodes of the pools that a process maps privately: what its merged pages are."""
    found = set()
    for line in Path(f"/proc/{worker.pid}/maps").read_text().splitlines():
        if re.search(r"/pagefold-p(ool)?-", line) and line.split()[1].endswith("p") and "w" in line.split()[1]:
            found.add(int(line.split()[4]))
    return found


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason(caught.value)


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
