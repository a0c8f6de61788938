"""The frame pool, on the real /dev/shm."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pagefold_core import punch_hole
from pagefold_proto import shm_names
from pagefold_server.engine.reference import pool as pool_module
from pagefold_server.engine.reference.pool import Pool

PAGE = mmap.PAGESIZE


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(os.geteuid())
    yield made
    made.close(unlink=True)


def page(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE // 8)


def path(pool: Pool) -> Path:
    return Path("/dev/shm") / pool.name[1:]


def test_frames_near_each_other_are_contiguous(pool: Pool) -> None:
    first = pool.allocate(-1)
    frames = [first]
    for _ in range(199):
        frames.append(pool.allocate(frames[-1] + 1))
    assert frames == list(range(first, first + 200))
    pool.check()


def test_a_wish_that_cannot_be_had_starts_a_run_somewhere_else(pool: Pool) -> None:
    frame = pool.allocate(-1)
    other = pool.allocate(frame)
    assert other != frame
    assert [pool.allocate(other + n) for n in range(1, 80)] == [other + n for n in range(1, 80)]
    assert pool.allocate(1 << 40) not in (frame, other)
    pool.check()


def test_a_wish_in_the_middle_of_a_gap_leaves_both_ends_free(pool: Pool) -> None:
    pool.allocate(-1)
    assert pool.allocate(100) == 100
    pool.check()
    assert [pool.allocate(n) for n in (99, 101, 1, 98)] == [99, 101, 1, 98]
    pool.check()


def test_gaps_too_short_for_a_run_are_left_until_the_pool_is_at_its_limit() -> None:
    pool = Pool(os.geteuid(), limit=300)
    frames = [pool.allocate(n) for n in range(200)]
    for frame in frames[10:20]:
        pool.release(frame)
    pool.flush()
    assert pool.allocate(-1) == 200
    assert pool.allocate(10) == 10, "but a wish for one is granted"
    rest = [pool.allocate(-1) for _ in range(108)]
    assert sorted(rest) == [*range(11, 20), *range(201, 300)]
    with pytest.raises(OSError, match="limit") as caught:
        pool.allocate(-1)
    assert caught.value.errno == errno.ENOSPC
    pool.check()
    pool.release(77)
    assert pool.allocate(-1) == 77, "what is released is punched before the pool is called full"
    pool.check()
    pool.close(unlink=True)


def test_I1_a_frame_reads_as_written_and_is_written_once(pool: Pool) -> None:
    frames = [pool.allocate(-1) for _ in range(5)]
    for frame in frames:
        pool.write(frame, page(frame + 1))
    assert [pool.read(frame) for frame in frames] == [page(frame + 1) for frame in frames]
    with pytest.raises(ValueError, match="not to be written"):
        pool.write(frames[0], page(9))
    with pytest.raises(ValueError, match="not to be written"):
        pool.write(pool.allocate(-1), b"short")
    with pytest.raises(ValueError, match="has not been written"):
        pool.read(pool.allocate(-1))


def test_I1_releasing_some_frames_leaves_the_others_as_they_are(pool: Pool) -> None:
    frames = [pool.allocate(n) for n in range(600)]
    for frame in frames:
        pool.write(frame, page(frame))
    gone = set(random.Random(5).sample(frames, 300))
    for frame in gone:
        pool.release(frame)
    pool.flush()
    pool.check()
    assert pool.frames_in_use() == 300
    assert pool.bytes_allocated() == 300 * PAGE
    assert all(pool.read(frame) == page(frame) for frame in frames if frame not in gone)


def test_I1_a_released_number_comes_back_only_when_it_is_punched(pool: Pool) -> None:
    frame = pool.allocate(-1)
    pool.write(frame, page(7))
    pool.release(frame)
    assert pool.allocate(frame) != frame
    with pytest.raises(ValueError, match="not in use"):
        pool.release(frame)
    pool.check()
    pool.flush()
    assert pool.allocate(frame) == frame
    fd = os.open(path(pool), os.O_RDONLY)
    assert os.pread(fd, PAGE, frame * PAGE) == bytes(PAGE)
    os.close(fd)
    pool.check()


def test_neighbours_are_punched_together(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(256):
        pool.write(pool.allocate(n), page(n))
    punched: list[tuple[int, int]] = []

    def punch(fd: int, offset: int, length: int) -> None:
        punched.append((offset // PAGE, length // PAGE))
        punch_hole(fd, offset, length)

    monkeypatch.setattr(pool_module, "punch_hole", punch)
    for n in random.Random(3).sample(range(256), 256):
        pool.release(n)
    assert punched == [(0, 256)], "and a full batch is not waited with"
    assert pool.bytes_allocated() == 0


def test_a_failed_punch_keeps_its_frames_out_of_use(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(10):
        pool.write(pool.allocate(n), page(n))

    def punch(fd: int, offset: int, length: int) -> None:
        if offset >= 5 * PAGE:
            raise OSError(errno.EIO, "no")
        punch_hole(fd, offset, length)

    for n in (1, 2, 7):
        pool.release(n)
    with monkeypatch.context() as broken:
        broken.setattr(pool_module, "punch_hole", punch)
        with pytest.raises(OSError, match="no"):
            pool.flush()
    pool.check()
    assert [pool.allocate(n) == n for n in (1, 2, 7)] == [True, True, False]
    pool.flush()
    assert pool.allocate(7) == 7


def test_no_room_leaves_the_books_consistent(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pool.allocate(-1)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda *_: 100)  # what a full tmpfs does in the middle of a page
        with pytest.raises(OSError, match="No space left") as caught:
            pool.write(frame, page(1))
    assert caught.value.errno == errno.ENOSPC
    pool.release(frame)
    pool.flush()
    pool.check()
    assert pool.frames_in_use() == 0


def test_books_hold_under_random_use(pool: Pool) -> None:
    rng = random.Random(11)
    held: dict[int, bytes] = {}
    for step in range(3000):
        if rng.random() < 0.55 or not held:
            near = rng.choice([-1, *held][:50]) + 1
            frame = pool.allocate(near)
            assert frame not in held
            held[frame] = page(step + 1)
            pool.write(frame, held[frame])
        else:
            frame = rng.choice(list(held)[-200:])
            assert pool.read(frame) == held.pop(frame)
            pool.release(frame)
        if rng.random() < 0.02:
            pool.flush()
            pool.check()
    pool.check()
    assert pool.frames_in_use() == len(held)
    assert all(pool.read(frame) == data for frame, data in held.items())


def test_clients_open_it_read_only_and_hold_what_they_map(pool: Pool) -> None:
    frame = pool.allocate(-1)
    pool.write(frame, page(3))
    assert path(pool).stat().st_mode & 0o777 == 0o400
    fd = os.open(path(pool), os.O_RDONLY)
    with mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=frame * PAGE) as view:
        view[0] = 99  # the kernel copies
        assert pool.read(frame) == page(3)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a pool to another user")
def test_a_root_server_gives_the_pool_to_the_domains_user() -> None:
    pool = Pool(12345)
    assert (path(pool).stat().st_uid, path(pool).stat().st_mode & 0o777) == (12345, 0o400)
    pool.close(unlink=True)


def test_closing_lets_the_name_go_or_leaves_it_to_be_taken_over() -> None:
    pool = Pool(os.geteuid())
    fd = os.open(path(pool), os.O_RDONLY)
    assert shm_names.is_name(shm_names.POOL, pool.name)
    assert not shm_names.is_garbage(fd)
    pool.close(unlink=False)
    pool.close(unlink=True)  # twice is fine, and does nothing more
    assert shm_names.remove_garbage(pool.name, fd)
    os.close(fd)
    other = Pool(os.geteuid())
    other.close(unlink=True)
    assert not path(other).exists()


def test_the_check_finds_a_book_that_is_wrong(pool: Pool) -> None:
    frame = pool.allocate(-1)
    pool.write(frame, page(1))
    pool._use[frame] = 0
    with pytest.raises(AssertionError, match="gaps"):
        pool.check()
    pool._give(frame, 1)
    with pytest.raises(AssertionError, match="memory behind"):
        pool.check()


def test_a_hole_cannot_be_punched_into_a_pipe() -> None:
    read, write = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        punch_hole(write, 0, PAGE)
    os.close(read)
    os.close(write)
