"""Clients in programs that fork or end, with a server inside the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pagefold
import pytest
from pagefold.testing import FakeServer
from support.children import Child
from support.fake_pool import FakePool
from support.waiting import until

np = pytest.importorskip("numpy")

PAGE = 4096
Connect = Callable[..., pagefold.Client]


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
def test_memory_merges_again_when_the_children_are_gone(client: pagefold.Client, pool: FakePool) -> None:
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
    time.sleep(1.5)  # the load itself: threads and forks race for so long, and no event says that they have met
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
    said = "their client was closed, and its buffers and arrays live on" in done.stderr
    assert (done.returncode, said, len(done.stderr.splitlines())) == (0, how == "closed before", int(said)), done.stderr
