"""Buffers on real memory: bytes, sizes, and memory that is freed and used again."""

from __future__ import annotations

import gc
import socket
import threading
from pathlib import Path
from typing import Any

import pagefold
import pytest
from support import kernel
from support.waiting import until

np = pytest.importorskip("numpy")

PAGE = 4096
MIB = 1 << 20


def test_buffers_start_on_a_page_are_zero_and_take_no_memory_until_touched(client: pagefold.Client) -> None:
    before = kernel.shared_bytes()
    buffer = client.allocate(32 * MIB + 5)
    assert kernel.shared_bytes() == before
    assert (len(buffer), buffer.nbytes, buffer.address % PAGE) == (32 * MIB + 5, 32 * MIB + 5, 0)
    assert buffer[-1] == 0
    with memoryview(buffer) as view:
        assert (view.format, view.readonly, view.nbytes, view.contiguous) == ("B", False, 32 * MIB + 5, True)
        view[-1] = 7
    assert buffer[-1] == 7


def test_buffers_are_indexed_and_sliced_like_bytes(client: pagefold.Client) -> None:
    with client.allocate(10) as buffer:
        buffer[:5] = b"hello"
        buffer[5] = ord("!")
        buffer[6:10:2] = np.array([1, 2], "u1")
        assert buffer[0:10] == b"hello!\1\0\2\0"
        assert buffer[5] == ord("!")
        buffer[0:8] = np.array([1.0])
        assert buffer[:8] == np.array([1.0]).tobytes()
        for wrong, error in [(10, IndexError), (-11, IndexError), ("x", TypeError)]:
            with pytest.raises(error):
                buffer[wrong]
        with pytest.raises(ValueError, match="structure"):
            buffer[0:2] = b"three"
        with pytest.raises((ValueError, TypeError)):
            buffer[0] = 256
        assert "10 bytes" in repr(buffer)
    assert buffer.closed
    assert "closed" in repr(buffer)
    with pytest.raises(ValueError, match="closed"):
        buffer[0]
    buffer.close()


def test_a_buffer_shows_nothing_that_is_the_librarys_own(client: pagefold.Client) -> None:
    buffer = client.allocate(PAGE)
    assert not {"segment", "first", "pages"} & {*dir(buffer)}
    assert {"address", "nbytes", "closed", "close"} <= {*dir(buffer)}


def test_a_buffer_that_somebody_looks_at_is_not_closed(client: pagefold.Client) -> None:
    buffer = client.allocate(PAGE)
    view = memoryview(buffer)
    with pytest.raises(BufferError, match="looks at"):
        buffer.close()
    view.release()
    buffer.close()


def test_the_kernel_reads_into_buffers(client: pagefold.Client, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"from a file")
    buffer = client.allocate(PAGE)
    with path.open("rb", buffering=0) as file:
        assert file.readinto(buffer) == 11
    a, b = socket.socketpair()
    with a, b:
        a.sendall(b"from a socket")
        with memoryview(buffer) as view:
            assert b.recv_into(view[100:]) == 13
    assert buffer[:11] + buffer[100:113] == b"from a filefrom a socket"


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (-1, ValueError, "negative"),
        (1.5, TypeError, "whole number of bytes, not float"),
        ("1", TypeError, "not str"),
        (None, TypeError, "not NoneType"),
        (1 << 60, pagefold.OutOfSharedMemory, "1 EiB"),
        (1 << 80, MemoryError, "one piece"),
    ],
)
def test_sizes_that_make_no_sense(client: pagefold.Client, size: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        client.allocate(size)


def test_nothing_can_be_allocated_too(client: pagefold.Client) -> None:
    buffer = client.allocate(np.int64(0))
    assert len(buffer) == 0
    assert bytes(buffer) == b""
    with client.pinned(buffer):
        pass
    buffer.close()


def test_freed_memory_goes_back_to_the_kernel_and_reads_as_zeros_when_it_is_used_again(
    client: pagefold.Client,
) -> None:
    before = kernel.shared_bytes()
    buffer = client.allocate(8 * MIB)
    address = buffer.address
    memoryview(buffer)[:] = b"x" * (8 * MIB)
    assert kernel.shared_bytes() - before >= 8 * MIB
    del buffer
    until(lambda: kernel.shared_bytes() == before, what="the memory going back")
    again = client.allocate(8 * MIB)
    assert again.address == address
    assert again[:] == bytes(8 * MIB)


def test_memory_lives_as_long_as_anybody_looks_at_it(client: pagefold.Client) -> None:
    array = np.frombuffer(client.allocate(PAGE), dtype="u4")
    part = client.array(np.arange(4096, dtype="u4"))[1000:2000:2]
    gc.collect()
    client.allocate(MIB)[:] = b"\xff" * MIB
    assert not array.any()
    assert part.tolist() == list(range(1000, 2000, 2))


def test_threads_may_allocate_and_free_as_they_like(client: pagefold.Client) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: list[pagefold.Buffer] = []
        for _ in range(150):
            buffer = client.allocate(int(rng.integers(1, 20 * PAGE)))
            if any(buffer[:]):
                wrong.append(number)
            memoryview(buffer)[:] = bytes([number]) * len(buffer)
            held.append(buffer)
            if len(held) > 8:
                old = held.pop(int(rng.integers(8)))
                if old[:] != bytes([number]) * len(old):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert client.stats().allocated_bytes == 0
