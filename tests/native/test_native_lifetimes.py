"""How long a native space, its views, blocks and leases live, and spaces without a barrier; on real memory."""

from __future__ import annotations

import fcntl
import gc
import os

import pytest
from pagefold_core import PAGE_SIZE, Space, probe
from support.children import child
from support.spaces import (
    DECLINED,
    RELEASED,
    Bench,
    page_of,
)

pytestmark = pytest.mark.needs("uffd")


def test_without_a_barrier_frozen_memory_stays_frozen_until_it_is_discarded() -> None:
    b = Bench(pages=4, tier="off")
    b.put(0, 1)
    b.put(1, 2)
    with child() as one:
        b.put(1, 3)
        with pytest.raises(BlockingIOError):
            b.space.discard(1, 0, 4)
        assert b.space.thaw() is False
        one.go()
    assert b.space.thaw() is True
    assert b.space.counts().frozen == 4
    assert (b.get(0), b.get(1)) == (page_of(1), page_of(3))
    b.space.discard(1, 0, 4)
    assert (b.get(0), b.get(1)) == (page_of(0), page_of(0))
    assert b.space.counts().frozen == 0
    b.close()


def test_I3_a_lease_is_held_by_a_mapping_too() -> None:
    """By a child as well that closes its descriptors, as a daemon does, while memory lives there, and no longer."""
    name = f"/dev/shm/pagefold-test-{os.getpid()}"
    lease = os.open(name, os.O_CREAT | os.O_RDWR, 0o600)
    probe = os.open(name, os.O_RDONLY)
    os.unlink(name)
    fcntl.flock(lease, fcntl.LOCK_SH)
    space = Space("off", lease, 10)
    segment = os.memfd_create("segment")
    os.truncate(segment, PAGE_SIZE)
    space.add_view(1, segment, 1)
    block = space.block(1, 0, PAGE_SIZE)
    told, tell = os.pipe()
    gate, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.closerange(3, min(gate, tell))
        os.closerange(max(gate, tell) + 1, 4096)
        for fd in range(min(gate, tell) + 1, max(gate, tell)):
            os.close(fd)
        os.write(tell, b"x")
        os.read(gate, 1)
        block.close()
        os.write(tell, b"x")
        os.read(gate, 1)
        os._exit(0)
    os.close(lease)
    block.close()
    space.close()
    del space
    gc.collect()
    os.read(told, 1)
    with pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(go, b"x")
    os.read(told, 1)
    fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(go, b"x")
    os.waitpid(pid, 0)
    for fd in (probe, told, tell, gate, go, segment):
        os.close(fd)


def test_a_view_goes_when_its_last_block_is_gone() -> None:
    b = Bench(pages=4)
    b.put(1, 1)
    b.merge(1, 1, 1)
    b.events()
    assert b.space.drop_view(1) is False
    b.bytes.release()
    b.block.close()
    b.block.close()
    assert b.space.freed() == [(1, 0, 4)]
    assert b.space.drop_view(1) is True
    assert b.events() == [(RELEASED, 1, 1, 0, 0, 1)]
    with pytest.raises(ValueError, match="no view"):
        b.space.drop_view(1)
    b.space.close()


def test_blocks_outlive_their_space() -> None:
    b = Bench(pages=4)
    b.put(1, 1)
    b.merge(1, 1, 1)
    view = memoryview(b.block)
    block = b.block
    with pytest.raises(BufferError):
        block.close()
    b.bytes.release()
    b.space.close()
    del b
    gc.collect()
    assert bytes(view[PAGE_SIZE : 2 * PAGE_SIZE]) == page_of(1)
    view[PAGE_SIZE] = 5
    assert view[PAGE_SIZE] == 5
    view.release()
    block.close()
    assert block.closed
    with pytest.raises(ValueError, match="closed"):
        memoryview(block)


def test_a_block_dies_with_its_last_reference() -> None:
    b = Bench(pages=8)
    view = memoryview(b.space.block(1, 2, 2 * PAGE_SIZE + 1))
    gc.collect()
    assert b.space.freed() == []
    del view
    assert b.space.freed() == [(1, 2, 3)]
    assert len(b.space.block(1, 0, 0)) == 0
    for first, size in [(8, 1), (0, 9 * PAGE_SIZE), (2**62, 1)]:
        with pytest.raises(ValueError, match="inside"):
            b.space.block(1, first, size)
    b.close()


def test_a_closed_space_refuses() -> None:
    b = Bench()
    b.space.close()
    b.space.close()
    with pytest.raises(RuntimeError, match="closed"):
        b.merge(0, 1, 0)
    b.close()


def test_tier_off_merges_nothing_and_loses_nothing() -> None:
    b = Bench(tier="off")
    b.put(0, 1)
    assert b.merge(0, 1, 1) == 0
    assert [kind for kind, *_ in b.events()] == [DECLINED]
    assert b.get(0) == page_of(1)
    b.close()


def test_the_user_tier_works_for_the_programs_own_stores() -> None:
    b = Bench(tier="user")
    b.put(0, 1)
    assert b.merge(0, 1, 1) == 1
    b.bytes[0] = 7
    assert b.adopt(0, 1) == 1
    assert b.bytes[0] == 7
    b.close()


def test_disabled_features_are_absent() -> None:
    everything = probe()
    assert everything.userfaultfd == "full"
    assert everything.userfaultfd_error == ""
    less = probe(["uffd", "user", "pagemap_scan", "wp_async", "wp_unpopulated"])
    assert (less.userfaultfd, less.pagemap_scan, less.wp_async, less.wp_unpopulated) == (
        "none",
        False,
        False,
        False,
    )
    assert less.userfaultfd_error
    lease = os.memfd_create("lease")
    with pytest.raises(OSError, match="disabled"):
        Space("uffd", lease, 100, disabled=["uffd"])
    with pytest.raises(ValueError, match="tier"):
        Space("fast", lease, 100)  # type: ignore[arg-type]
    os.close(lease)
