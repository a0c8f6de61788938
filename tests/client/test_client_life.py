"""Buffers and arrays on real memory, with a server inside the process that merges what a test tells it to."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pagefold
import pytest
from pagefold import _client
from pagefold.testing import FakeServer
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from support import faults, kernel
from support.children import Child
from support.waiting import until

np = pytest.importorskip("numpy")

PAGE = 4096
MIB = 1 << 20
Connect = Callable[..., pagefold.Client]


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
def connect(fake: FakeServer, no_names: None) -> Iterator[Connect]:
    clients: list[pagefold.Client] = []

    def one(**options: Any) -> pagefold.Client:
        clients.append(pagefold.connect(transport=pagefold.LocalTransport(fake), **options))
        return clients[-1]

    yield one
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect) -> pagefold.Client:
    return connect()


class Pool:
    """Frames of the fake server's."""

    def __init__(self, fake: FakeServer, frames: int = 16) -> None:
        self.fake = fake
        self.made = shm_names.create_locked(shm_names.POOL, 0o600, frames * PAGE)
        for frame in range(frames):
            os.pwrite(self.made.fd, bytes([frame + 1]) * PAGE, frame * PAGE)
        fake.replies.append(pb.ExchangeReply(pools=[pb.PoolInfo(pool=1, name=self.made.name)]))

    def merge(self, client: pagefold.Client, buffer: pagefold.Buffer, page: int, count: int, frame: int) -> None:
        """Has the client merge pages of a buffer, and waits until it has said that it did."""
        self.fake.replies.append(
            pb.ExchangeReply(
                merges=pb.MergeBatch(
                    segment=[buffer.segment], first=[buffer.first + page], count=[count], pool=[1], frame=[frame]
                )
            )
        )
        assert client.settle(5).settled
        assert client.settle(5).settled

    def close(self) -> None:
        shm_names.remove(self.made.name)
        os.close(self.made.fd)


@pytest.fixture
def pool(fake: FakeServer, connect: Connect) -> Iterator[Pool]:
    pool = Pool(fake)
    yield pool
    pool.close()


# Buffers


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


# Arrays


def test_arrays_are_plain_arrays_on_page_boundaries(client: pagefold.Client) -> None:
    arrays = [
        client.empty((100, 3), "f4"),
        client.zeros(7, "i2", order="F"),
        client.full((2, 2), 3.5),
        client.array([[1, 2], [3, 4]], "u1"),
        client.empty_like(np.ones((3, 4), "c8")),
        client.zeros_like([1, 2, 3]),
        client.full_like(np.ones(3), 9),
        client.zeros((), "f8"),
    ]
    for array in arrays:
        assert type(array) is np.ndarray
        assert array.ctypes.data % PAGE == 0
        assert array.flags.writeable
        assert not array.flags.owndata
    assert [a.shape for a in arrays] == [(100, 3), (7,), (2, 2), (2, 2), (3, 4), (3,), (3,), ()]
    assert [a.dtype.str for a in arrays] == ["<f4", "<i2", "<f8", "|u1", "<c8", "<i8", "<f8", "<f8"]
    assert arrays[2].tolist() == [[3.5, 3.5], [3.5, 3.5]]
    assert arrays[3].tolist() == [[1, 2], [3, 4]]
    assert arrays[6].tolist() == [9, 9, 9]
    assert client.full(3, 7).dtype == np.full(3, 7).dtype


@pytest.mark.parametrize("order", ["C", "F", "A", "K"])
@pytest.mark.parametrize(
    "source",
    [
        np.arange(24).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(48).reshape(2, 3, 8)[:, ::-1, ::2],
        np.float32(5),
    ],
    ids=["C", "F", "turned", "gaps", "scalar"],
)
def test_copies_have_the_layout_that_numpy_gives_them(client: pagefold.Client, source: Any, order: Any) -> None:
    theirs = np.array(source, order=order)
    ours = client.array(source, order=order)
    assert (ours == theirs).all()
    assert ours.dtype == theirs.dtype
    assert ours.strides == theirs.strides
    assert client.empty_like(source, order=order).strides == np.empty_like(source, order=order).strides


@pytest.mark.parametrize(
    ("obj", "dtype"),
    [
        (["a", "bcd"], "S"),
        (np.array([1, 22, 333]), "S"),
        (np.array(["x", "yz"]), None),
        (["2020-01-01"], "M8[s]"),
        (np.array([1.7, 2.2]), "i4"),
        ([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
        (range(5), "f2"),
        ([], None),
        (np.zeros((0, 3)), None),
        (b"bytes", None),
        (3 + 4j, None),
    ],
)
def test_anything_that_numpy_takes(client: pagefold.Client, obj: Any, dtype: Any) -> None:
    theirs, ours = np.array(obj, dtype), client.array(obj, dtype)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(("shape", "dtype"), [((0,), "f8"), ((3, 0, 2), "i1"), (3, "V0"), ((), "V0")])
def test_arrays_without_bytes(client: pagefold.Client, shape: Any, dtype: str) -> None:
    array = client.empty(shape, dtype)
    theirs = np.empty(shape, dtype)
    assert (array.shape, array.dtype) == (theirs.shape, theirs.dtype)
    with client.pinned(array):
        client.advise(array, mergeable=False)


def test_types_that_add_a_dimension(client: pagefold.Client) -> None:
    assert client.zeros(5, np.dtype(("f4", (2, 3)))).shape == (5, 2, 3)
    assert client.zeros(5, "S").dtype == np.zeros(5, "S").dtype


@pytest.mark.parametrize("dtype", [object, [("a", "i4"), ("b", "O")]])
def test_objects_are_refused(client: pagefold.Client, dtype: Any) -> None:
    with pytest.raises(TypeError, match="Python objects"):
        client.empty(3, dtype)


def test_arguments_that_make_no_sense(client: pagefold.Client) -> None:
    with pytest.raises(ValueError, match="negative dimensions"):
        client.empty((2, -1))
    with pytest.raises(TypeError):
        client.empty(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order"):
        client.empty(2, order="X")  # type: ignore[arg-type]


def test_an_array_keeps_its_memory_from_being_closed(client: pagefold.Client) -> None:
    array = client.zeros(1000)
    buffer = array.base.base.obj
    assert isinstance(buffer, pagefold.Buffer)
    with pytest.raises(BufferError):
        buffer.close()


def test_without_numpy_the_error_says_how_to_get_it(client: pagefold.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pagefold\[numpy\]'"):
        client.zeros(3)
    assert client.allocate(3)[:] == b"\0\0\0"


# Merging


@pytest.mark.needs("uffd")
def test_merged_memory_is_counted_and_a_write_unshares_it(client: pagefold.Client, pool: Pool) -> None:
    client.settle(5)
    buffer = client.allocate(8 * PAGE)
    for page in range(4):
        buffer[page * PAGE : (page + 1) * PAGE] = bytes([page + 1]) * PAGE
    pool.fake.replies.append(pb.ExchangeReply(totals=pb.DomainTotals(pages_shared=2, pages_sharing=6)))
    client.settle(5)
    pool.merge(client, buffer, 0, 4, 0)
    pool.fake.replies.append(pb.ExchangeReply(totals=pb.DomainTotals(pages_shared=2, pages_sharing=6)))
    client.settle(5)
    stats = client.stats()
    assert (stats.merged_bytes, stats.owned_bytes, stats.copied_bytes) == (4 * PAGE, 4 * PAGE, 0)
    assert stats.allocated_bytes == 8 * PAGE
    assert stats.windows > 0
    buffer[PAGE] = 99
    stats = client.stats()
    assert (stats.merged_bytes, stats.copied_bytes) == (3 * PAGE, PAGE)
    assert buffer[: 2 * PAGE] == b"\1" * PAGE + b"c" + b"\2" * (PAGE - 1)
    assert (pb.EVENT_KIND_COPIED, buffer.segment, buffer.first + 1, 1, 0, 0, 0) in until(
        lambda: [row for row in pool.fake.booked if row[0] == pb.EVENT_KIND_COPIED], what="the server being told"
    )
    assert stats.as_dict()["barrier"] == "uffd"
    assert stats.trouble == ""
    assert stats.connected


@pytest.mark.needs("uffd")
def test_a_clients_share_of_the_saving(client: pagefold.Client, pool: Pool) -> None:
    client.settle(5)
    buffer = client.allocate(4 * PAGE)
    buffer[:] = b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE + b"\4" * PAGE
    pool.merge(client, buffer, 0, 4, 0)
    totals = pb.DomainTotals(pages_shared=2, pages_sharing=6)
    pool.fake.replies.extend(pb.ExchangeReply(totals=totals) for _ in range(9))  # to whatever else is said
    client.settle(5)
    assert client.stats().saved_bytes == 3 * PAGE  # 4 of 8 mappings; 6 pages saved in all


@pytest.mark.needs("uffd")
def test_advice_takes_memory_back_at_once_and_pins_hold_for_a_while(client: pagefold.Client, pool: Pool) -> None:
    client.settle(5)
    array = client.array(np.repeat(np.arange(1, 5, dtype="u1"), PAGE))
    buffer = array.base.base.obj
    pool.merge(client, buffer, 0, 4, 0)
    assert client.stats().merged_bytes == 4 * PAGE
    client.advise(array[PAGE + 5 : PAGE + 6], mergeable=False)
    assert client.stats().merged_bytes == 3 * PAGE, "the page that it touches"
    pool.merge(client, buffer, 1, 1, 1)
    assert client.stats().merged_bytes == 3 * PAGE, "declined"
    client.advise(memoryview(array), mergeable=True)
    pool.merge(client, buffer, 1, 1, 1)
    assert client.stats().merged_bytes == 4 * PAGE
    client.advise(buffer, mergeable=False)
    client.advise(buffer, mergeable=True)
    with client.pinned(array[::-1]), client.pinned(array[: PAGE + 1 : PAGE]):
        pool.merge(client, buffer, 0, 4, 0)
        assert client.stats().merged_bytes == 0
        with pytest.raises(BufferError):
            buffer.close()
    pool.merge(client, buffer, 0, 4, 0)
    assert client.stats().merged_bytes == 4 * PAGE
    assert (array == np.repeat(np.arange(1, 5), PAGE)).all()


@pytest.mark.needs("uffd")
@pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup")
def test_memory_that_cannot_be_taken_back_is_told_with_how_much_it_is(client: pagefold.Client, pool: Pool) -> None:
    client.settle(5)
    buffer = client.allocate(4 * PAGE)
    content = b"".join(bytes([page + 1]) * PAGE for page in range(4))
    buffer[:] = content
    pool.merge(client, buffer, 0, 4, 0)
    with faults.armed("adopt.save", "error:28"), pytest.raises(pagefold.OutOfSharedMemory, match="16 KiB cannot"):
        client.advise(buffer, mergeable=False)
    assert client.stats().merged_bytes == 4 * PAGE
    with client.pinned(memoryview(buffer)[PAGE : 2 * PAGE]):
        client.advise(
            buffer, mergeable=False
        )  # what was refused before is not about this call, nor is the pin a refusal
    assert client.stats().merged_bytes == PAGE
    client.advise(buffer, mergeable=False)
    assert client.stats().merged_bytes == 0
    assert buffer[:] == content


@pytest.mark.parametrize(
    "obj",
    [np.zeros(5), bytearray(5), b"x", memoryview(bytearray(100)), memoryview(bytearray(100))[::3], None, [1, 2]],
    ids=["array", "bytearray", "bytes", "memoryview", "gaps", "None", "list"],
)
def test_memory_of_others_is_refused_with_a_hint(client: pagefold.Client, obj: Any) -> None:
    client.allocate(1)
    with pytest.raises(ValueError, match="allocate"):
        client.advise(obj, mergeable=False)
    with pytest.raises(ValueError, match="allocate"), client.pinned(obj):
        pass


def test_types_that_have_no_buffer_protocol_can_be_pinned(client: pagefold.Client) -> None:
    with client.pinned(client.zeros(5, "M8[s]")):
        pass


# Life and death


def test_a_closed_clients_buffers_go_on_and_go_with_the_last_of_them(connect: Connect, fake: FakeServer) -> None:
    before = kernel.names()
    client = connect()
    buffer, array = client.allocate(5 * PAGE), client.array([1, 2, 3])
    segments = kernel.mappings(os.getpid())
    with client:
        buffer[0:2] = b"ab"
    assert client.closed
    assert kernel.names() == before
    buffer[2:4] = b"cd"
    array += 1
    assert (buffer[:4], array.tolist()) == (b"abcd", [2, 3, 4])
    for use in (lambda: client.allocate(1), client.stats, client.settle, lambda: client.zeros(1)):
        with pytest.raises(pagefold.ClientClosed):
            use()
    client.close()
    assert "closed" in repr(client)
    assert "/pagefold-s-" in Path("/proc/self/maps").read_text()
    del buffer, array
    assert "/pagefold-s-" not in Path("/proc/self/maps").read_text(), "gone without a run of the garbage collector"
    assert kernel.mappings(os.getpid()) <= segments
    assert fake.of("Bye")


def test_a_client_that_is_dropped_says_so_and_lets_go_of_its_names(connect: Connect, fake: FakeServer) -> None:
    before = kernel.names()
    client = pagefold.connect(transport=pagefold.LocalTransport(fake))
    with pytest.warns(ResourceWarning, match="not closed"):
        del client
    until(lambda: kernel.names() == before, what="its names going")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_client_and_its_buffers_cannot_be_copied(
    client: pagefold.Client, duplicate: Callable[[object], object]
) -> None:
    """A shallow copy had the original's session, and ended it when it was collected."""
    with client.allocate(10) as buffer:
        for thing, remedy in ((client, "pass the client itself"), (buffer, r"bytes\(buffer\)")):
            with pytest.raises(TypeError, match=remedy):
                duplicate(thing)
        gc.collect()
        assert not client.closed
        assert client.stats().connected
        array = client.array(range(3))
        assert list(pickle.loads(pickle.dumps(array))) == list(copy.deepcopy(array)) == [0, 1, 2]


@pytest.mark.parametrize(
    "timeout", [0, -1, 1, True, 1e10, math.inf, -math.inf, pytest.param(10**400, id="10**400"), None]
)
def test_settle_takes_any_number_of_seconds(client: pagefold.Client, timeout: float | None) -> None:
    """More seconds than threading can wait for were an OverflowError, and None was a minute."""
    assert client.settle(timeout).settled or (timeout is not None and timeout <= 0)


@pytest.mark.parametrize(("timeout", "error"), [(math.nan, ValueError), ("5", TypeError), ([], TypeError)])
def test_settle_refuses_what_is_no_number(client: pagefold.Client, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        client.settle(timeout)


def test_settle_without_an_end_waits_longer_than_the_default(
    client: pagefold.Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "SETTLE_SECONDS", 0.0)
    fake.settle = False
    timer = threading.Timer(0.5, setattr, (fake, "settle", True))
    timer.start()
    assert client.settle(None).settled
    timer.join()


def test_arrays_keep_the_session_of_a_client_that_went_out_of_scope(fake: FakeServer) -> None:
    # A table that a function made and returned was never merged, and nothing said so.
    before = kernel.names()

    def load() -> Any:
        return pagefold.connect(transport=pagefold.LocalTransport(fake)).array(np.arange(5000))

    table = load()
    until(lambda: bool(fake.of("AddSegment")), what="the memory being announced")
    fake.replies.append(pb.ExchangeReply(merges=pb.MergeBatch(segment=[1], first=[0], count=[1])))
    view = table[10:]
    del table
    assert not fake.of("Bye"), "merging goes on as long as anybody looks at the memory"
    assert view[0] == 10
    del view
    until(lambda: bool(fake.of("Bye")), what="the session ending with the last array")
    until(lambda: kernel.names() == before, what="its names going")


def test_closing_says_what_is_left_unmerged(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = connect()
    client.allocate(3 * PAGE)
    client.close()
    assert caplog.text == "", "nothing lives on"
    with connect() as client:
        kept = client.array(np.zeros(3 * PAGE, "u1"))
    assert "3 pages (12 KiB) are not merged: their client was closed" in caplog.text
    assert "keep a client open as long as its arrays" in caplog.text
    del kept


def test_closing_by_several_threads_at_once(connect: Connect) -> None:
    client = connect()
    client.allocate(1)
    threads = [threading.Thread(target=client.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_refusal_at_hello_leaves_nothing(fake: FakeServer, no_names: None) -> None:
    fake.failures.append(("Hello", pagefold.IncompatibleServer("REASON_PROTOCOL_MISMATCH", "too old")))
    with pytest.raises(pagefold.IncompatibleServer, match="too old"):
        pagefold.connect(transport=pagefold.LocalTransport(fake))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"barrier": "yes"}, "'uffd', 'user' or 'off'"),
        ({"label": "x" * 65}, "64"),
        ({"mapping_budget": -1}, "negative"),
        ({"address": "nowhere"}, "not an address"),
    ],
)
def test_arguments_of_connect(options: dict[str, Any], text: str, no_names: None) -> None:
    with pytest.raises(ValueError, match=text):
        pagefold.connect(**options)


def test_without_a_barrier_memory_works_and_the_client_says_why_nothing_merges(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEFOLD_DISABLE", "uffd,user")
    client = connect()
    buffer = client.allocate(PAGE)
    buffer[0] = 1
    stats, report = client.stats(), client.settle()
    assert stats.barrier == "off"
    assert "vm.unprivileged_userfaultfd" in stats.trouble
    assert not report.settled
    assert report.reason == stats.trouble
    with pytest.raises(pagefold.BarrierUnavailable, match=r"vm\.unprivileged_userfaultfd"):
        connect(barrier="uffd")
    monkeypatch.setenv("PAGEFOLD_BARRIER", "user")
    with pytest.raises(pagefold.BarrierUnavailable):
        connect()
    assert connect(barrier="off").stats().barrier == "off"


def test_the_environment_chooses_the_budget(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEFOLD_MAPPING_BUDGET", "123")
    assert connect().stats().mapping_budget == 123
    assert connect(mapping_budget=77).stats().mapping_budget == 77
    monkeypatch.setenv("PAGEFOLD_MAPPING_BUDGET", "many")
    with pytest.raises(ValueError, match="many"):
        connect()


# Forks


def test_a_forked_child_has_a_snapshot_and_no_client(client: pagefold.Client, fake: FakeServer) -> None:
    array, buffer = client.array(np.arange(10000)), client.allocate(5)
    ready, go = os.pipe(), os.pipe()

    def child() -> None:
        array[0] = 77
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        assert array[1] == 1, "the parent's later write is not seen"
        assert array[2:].tolist() == list(range(2, 10000))
        buffer[:] = b"child"
        buffer.close()
        for use in (client.stats, lambda: client.allocate(1), lambda: client.advise(array, mergeable=True)):
            with pytest.raises(pagefold.ForkedClient, match=r"pagefold\.connect"):
                use()
        client.close()
        assert not client.closed
        assert "parent" in repr(client)
        with pagefold.connect(transport=pagefold.LocalTransport(FakeServer())) as mine:
            assert mine.array([1, 2]).tolist() == [1, 2]
        Child(lambda: array.__setitem__(5, 5)).go()
        assert array[0] == 77

    def write() -> None:
        os.read(ready[0], 1)
        array[1] = 88
        os.write(go[1], b"x")

    thread = threading.Thread(target=write)
    thread.start()
    Child(child).go()
    thread.join()
    assert array[:3].tolist() == [0, 88, 2], "the child's write is not seen"
    assert buffer[:] == bytes(5)
    assert client.settle(5).settled
    for fd in (*ready, *go):
        os.close(fd)


def test_closed_clients_memory_is_a_snapshot_in_a_child_as_well(connect: Connect) -> None:
    with connect() as client:
        array = client.array([1, 2, 3])

    def child() -> None:
        array[:] = 9

    Child(child).go()
    Child(child).go()
    assert array.tolist() == [1, 2, 3]


@pytest.mark.needs("uffd")
def test_memory_merges_again_when_the_children_are_gone(client: pagefold.Client, pool: Pool) -> None:
    client.settle(5)
    buffer = client.allocate(4 * PAGE)
    buffer[:] = b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE + b"\4" * PAGE
    Child(lambda: None).go()

    def merged() -> bool:
        pool.merge(client, buffer, 0, 4, 0)
        return client.stats().merged_bytes == 4 * PAGE

    until(merged, what="the thaw")
    assert buffer[:] == b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE + b"\4" * PAGE


def test_forks_from_many_threads_while_others_allocate(client: pagefold.Client) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def guarded(act: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                act()
        except BaseException as error:
            failures.append(error)

    def allocate() -> None:
        buffer = client.allocate(3 * PAGE)
        if any(buffer[:]):
            raise AssertionError("not zero")
        buffer[:] = b"x" * (3 * PAGE)
        client.stats()

    shared = client.array(np.arange(5000))

    def fork() -> None:
        Child(lambda: shared.__setitem__(slice(None), 0)).go()

    threads = [threading.Thread(target=guarded, args=(act,)) for act in (allocate, allocate, fork, fork)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []
    assert (shared == np.arange(5000)).all()


PROGRAMS = {
    "returns": "",
    "raises": "raise SystemExit(0)",
    "closed before": "client.close()",
    "out of scope": "del client",
    "in a child": "import os\nif os.fork() == 0:\n    buffer[0] = 2\n    sys.exit(0)\nos.wait()\nassert buffer[0] == 1",
    "in a thread": "import threading\nthreading.Thread(target=lambda: [client.allocate(9) for _ in range(99)]).start()",
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_a_program_that_ends_leaves_no_names_and_does_not_hang(how: str, no_names: None) -> None:
    code = f"""
import sys, pagefold
from pagefold.testing import FakeServer
client = pagefold.connect(transport=pagefold.LocalTransport(FakeServer()))
buffer = client.allocate(100)
buffer[0] = 1
{PROGRAMS[how]}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = "their client was closed while buffers and arrays of it live" in done.stderr
    assert (done.returncode, said, len(done.stderr.splitlines())) == (0, how == "closed before", int(said)), done.stderr
