"""How clients begin and end: closing, dropping, waiting, options."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pagefold
import pytest
from pagefold import _client
from pagefold.testing import FakeServer
from pagefold_proto.v1 import memory_pb2 as pb
from support import kernel
from support.waiting import until

np = pytest.importorskip("numpy")

PAGE = 4096
Connect = Callable[..., pagefold.Client]


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
