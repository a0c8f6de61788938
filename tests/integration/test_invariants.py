"""Invariants, end to end, where no other file holds them. docs/design/invariants.md says which file holds which."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pagefold_proto.v1 import admin_pb2
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.variants]

PAGES = 512
Work = Callable[..., Worker]


def pool_of(server: Server) -> Path:
    domains = server.admin.ListDomains(admin_pb2.ListDomainsRequest(), timeout=10).domains
    return kernel.SHM / next(d.pool for d in domains).lstrip("/")


def pages_of(data: bytes) -> list[bytes]:
    return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]


def sharing(work: Work, count: int = 2) -> list[Worker]:
    workers = [work() for _ in range(count)]
    for w in workers:
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    assert workers[0].call("settle").settled
    return workers


def test_I1_frames_do_not_change_while_pages_break_merge_and_go(server: Server, work: Work) -> None:
    keeper, *others = sharing(work, 3)
    before = keeper.call("digest", "a")
    frames = sorted(pages_of(pool_of(server).read_bytes()[: PAGES * PAGE]))
    assert frames == sorted(pages_of(keeper.call("read", "a", 0, PAGES * PAGE)))
    for round_ in range(5):
        for number, w in enumerate(others):
            for page in range(round_, PAGES, 7):
                w.call("write", "a", page * PAGE, bytes([number + 1, round_]))
        server.configure(run=2 if round_ % 2 else 1)
        others[0].call("settle", 5)
        server.configure(run=1)
        others[1].call("settle", 5)
    others[0].call("free", "a")
    others[1].kill()
    until(lambda: len(server.clients()) == 2, 10, "the server noticing the death")
    if keeper.call("stats").merged_bytes == PAGES * PAGE:
        assert server.status().counters.pages_shared == PAGES
    assert keeper.call("read", "a", 0, 8) == (1).to_bytes(8, "little")
    keeper.call("settle", 5)
    assert keeper.call("digest", "a") == before


FORK = """
import os
def run(remote):
    go, went = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(went)
        before = bytes(memoryview(remote.buffers["a"]))
        os.write(tell, b"x")
        os.read(go, 1)
        same = bytes(memoryview(remote.buffers["a"])) == before
        memoryview(remote.buffers["a"])[:] = b"c" * len(before)
        os._exit(0 if same else 1)
    os.close(go)
    os.read(told, 1)
    remote.child = (pid, went)
"""
END = """
import os
def run(remote):
    pid, went = remote.child
    os.close(went)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_I4_nothing_is_punched_that_a_forked_child_maps(server: Server, work: Work) -> None:
    one, two = sharing(work)
    for page in range(0, PAGES, 2):
        one.call("write", "a", page * PAGE, b"owned by one")
    assert one.call("settle").settled
    one.call("execute", FORK)
    frames = server.status().counters.pages_shared
    one.call("fill_pages", "a", [3] * PAGES)  # broken, and ready to be merged again if it were allowed
    two.call("free", "a")
    one.call("settle", 10)
    server.configure(run=2)
    one.call("settle", 1)
    assert server.status().counters.pages_shared <= frames
    one.call("free", "a")
    assert one.call("execute", END) == 0, "the child still reads what there was when it was forked"
    server.configure(run=1)
    # When the child is gone the memory is the parent's again, and is given back.
    until(lambda: kernel.shared_bytes() == 0, 10, "the detour leaving nothing behind")
    one.call("allocate", "b", PAGES * PAGE)
    assert one.call("read", "b", 0, PAGES * PAGE) == bytes(PAGES * PAGE)


def test_after_a_fork_the_parent_merges_again(server: Server, work: Work) -> None:
    one, _ = sharing(work)
    mappings = one.call("stats").mappings
    one.call("execute", FORK)
    assert one.call("execute", END) == 0
    one.call("write", "a", 0, b"changed")
    until(lambda: one.call("settle", 5).settled and one.call("stats").merged_bytes == (PAGES - 1) * PAGE, 20, "merging")
    assert one.call("stats").mappings <= mappings + 2


CHILD = """
import os, pickle
def run(remote):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = {"before": bytes(remote.buffers["a"][:2])}
        b = remote.client.allocate(4096)
        b[:] = b"k" * 4096
        found["settled"] = remote.client.settle(10).settled
        found["own"] = b[:2]
        found["trouble"] = remote.client.stats().trouble
        remote.client.close()
        with open(write, "wb") as pipe:
            pipe.write(pickle.dumps(found))
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        found = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    return found
"""


def test_a_forked_child_becomes_a_client_of_its_own(server: Server, work: Work) -> None:
    one, _ = sharing(work)
    before = one.call("read", "a", 0, 2)
    found = one.call("execute", CHILD)
    assert found == {"before": before, "settled": True, "own": b"kk", "trouble": ""}
    assert one.call("settle", 10) is not None
    assert one.call("read", "a", 0, 2) == before


@pytest.mark.needs("root")
def test_I6_another_user_opens_nothing_of_ours(server: Server, work: Work) -> None:
    sharing(work)
    names = sorted(kernel.names())
    assert any("-s-" in n for n in names)
    assert any("-p-" in n for n in names)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        opened = []
        for name in names:
            for flags in (os.O_RDONLY, os.O_RDWR):
                try:
                    os.open(kernel.SHM / name, flags)
                    opened.append(name)
                except PermissionError:
                    pass
        os.write(write, ("\n".join(opened) or "none").encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 4096) == b"none"
    os.close(read)
    os.close(write)


def test_I6_a_write_stays_with_its_writer(server: Server, work: Work) -> None:
    one, two = sharing(work)
    assert kernel.allocated(pool_of(server).name) == PAGES * PAGE
    frames = pool_of(server).read_bytes()[: PAGES * PAGE]
    theirs = two.call("digest", "a")
    one.call("write", "a", 0, b"mine" * (PAGES * PAGE // 4))
    assert two.call("digest", "a") == theirs
    assert pool_of(server).read_bytes()[: PAGES * PAGE] == frames
    modes = {(kernel.SHM / n).stat().st_mode & 0o777 for n in kernel.names() if "-p-" in n}
    assert modes == {0o400}


def test_labels_keep_domains_apart(server: Server, work: Work) -> None:
    one, two, three = work(label="left"), work(label="left"), work(label="right")
    for w in (one, two, three):
        w.call("allocate", "a", 64 * PAGE)
        w.call("fill_pages", "a", list(range(1, 65)))
    for w in (one, two, three):
        assert w.call("settle").settled
    assert one.call("stats").merged_bytes == two.call("stats").merged_bytes == 64 * PAGE
    assert three.call("stats").merged_bytes == 0
