"""What a client says of merged memory, advice and pins, with a server that merges what a test tells it to."""

from __future__ import annotations

from typing import Any

import pagefold
import pytest
from pagefold_proto.v1 import memory_pb2 as pb
from support import faults
from support.fake_pool import FakePool
from support.waiting import until

np = pytest.importorskip("numpy")

PAGE = 4096


@pytest.mark.needs("uffd")
def test_merged_memory_is_counted_and_a_write_unshares_it(client: pagefold.Client, pool: FakePool) -> None:
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
def test_a_clients_share_of_the_saving(client: pagefold.Client, pool: FakePool) -> None:
    client.settle(5)
    buffer = client.allocate(4 * PAGE)
    buffer[:] = b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE + b"\4" * PAGE
    pool.merge(client, buffer, 0, 4, 0)
    totals = pb.DomainTotals(pages_shared=2, pages_sharing=6)
    pool.fake.replies.extend(pb.ExchangeReply(totals=totals) for _ in range(9))  # to whatever else is said
    client.settle(5)
    assert client.stats().saved_bytes == 3 * PAGE  # 4 of 8 mappings; 6 pages saved in all


@pytest.mark.needs("uffd")
def test_advice_takes_memory_back_at_once_and_pins_hold_for_a_while(client: pagefold.Client, pool: FakePool) -> None:
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
def test_a_pin_is_good_for_one_with_and_holds_what_it_pins(client: pagefold.Client, pool: FakePool) -> None:
    """In its second `with` nothing was pinned, and nobody was told: a device would have written into frames."""
    buffer = client.allocate(4 * PAGE)
    pool.merge(client, buffer, 0, 1, 0)  # so that the frames are there
    view = memoryview(buffer)
    for pin in (client.pinned(view), client.pinned(view[PAGE:PAGE]), client.pinned(buffer)):
        with pin:
            with pytest.raises(RuntimeError, match="pin it anew"), pin:
                pass
            pool.merge(client, buffer, 0, 4, 0)
            merged = client.stats().merged_bytes + client.stats().zero_bytes
        with pytest.raises(RuntimeError, match="pin it anew"), pin:
            pass
    assert merged <= PAGE, "an end that never began ends nothing"
    with client.pinned(view):
        view.release()
        with pytest.raises(BufferError):
            buffer.close()
    buffer.close()


@pytest.mark.needs("uffd")
@pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup")
def test_memory_that_cannot_be_taken_back_is_told_with_how_much_it_is(client: pagefold.Client, pool: FakePool) -> None:
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
