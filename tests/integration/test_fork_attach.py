"""Children that become clients of their own, by using the client that they inherited."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.audit import assert_clean
from support.programs import run, start
from support.server import Server
from support.waiting import until

pytest.importorskip("numpy")
pytestmark = [pytest.mark.needs("uffd"), pytest.mark.usefixtures("no_names")]


def test_a_child_goes_on_with_the_client_that_it_inherited(server: Server) -> None:
    run(
        server,
        """
one, two, own = table(64), table(64), table(64, seed=5)
assert client.settle(20).settled
expected = [array.copy() for array in (one, two, own)]
frames = client.stats().merged_bytes
assert frames == 128 * PAGE

def act():
    mine = table(64)                          # what the parent has as well
    assert (one == mine).all() and (two == mine).all() and (own == expected[2]).all()
    assert client.settle(20).settled
    stats = client.stats()
    assert stats.connected and stats.allocated_bytes == stats.merged_bytes == 192 * PAGE, stats
    client.advise(one, mergeable=False)       # inherited, and this client's by now
    assert client.stats().merged_bytes == 128 * PAGE and (mine == one).all()
    with client.pinned(own):                  # inherited, and a snapshot: it is never merged
        own[3] = 9
    client.advise(mine, mergeable=False)
    assert client.stats().merged_bytes == 64 * PAGE and (mine == one).all()
    try:
        client.advise(np.zeros(9), mergeable=False)
    except ValueError:
        pass
    else:
        raise AssertionError("memory of nobody's")

    def grandchild():
        assert (mine == one).all() and (own[3] == 9).all()
        more = table(8)
        mine[:] = 1
        assert client.settle(20).settled and (more == one[:8]).all()
        client.close()

    Child(grandchild).go()
    assert (mine == one).all()
    mine[:] = 2
    client.close()
    assert client.closed and (mine == 2).all()

with child(act) as first, child(act) as second:
    first.go()
    second.go()
assert [(array == wanted).all() for array, wanted in zip((one, two, own), expected)] == [True] * 3
quiet()
assert client.settle(20).settled
assert client.stats().merged_bytes == frames
client.close()
""",
    )


def test_threads_of_a_child_attach_once(server: Server) -> None:
    run(
        server,
        """
array = table(8)

def act():
    sessions, failures = [], []
    def use():
        try:
            client.reattach()
            buffer = client.allocate(PAGE)
            buffer[:] = b"x" * PAGE
            sessions.append(client._session)
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(set(sessions)) == 1 and len(sessions) == 8
    client.close()

with child(act) as one:
    one.go()
client.reattach()                             # not in a child: nothing happens
assert (array == table(8)).all()
client.close()
""",
    )


def test_a_parent_merges_again_when_a_living_child_has_let_go(server: Server) -> None:
    """The child holds the leases of what it inherited no longer than that memory."""
    run(
        server,
        """
import gc
one, two, own = table(64), table(64), table(64, seed=5)
assert client.settle(20).settled
told, tell = os.pipe()
gate, go = os.pipe()

def act():
    global one, two, own, space
    client.reattach()
    mine = table(16)
    own[1] = 7
    del one, two, own, space
    gc.collect()
    os.write(tell, b"x")
    os.read(gate, 1)                          # lives on
    assert (mine == table(16)).all()
    client.close()

with child(act) as living:
    assert space.shared
    os.write(living._go, b"x")
    os.read(told, 1)
    quiet()
    own[:] = table(64)
    assert client.settle(20).settled
    assert client.stats().merged_bytes == 192 * PAGE
    os.write(go, b"x")
    living.go()
assert (own == one).all() and (two == one).all()
client.close()
""",
    )


def test_a_child_that_cannot_connect_keeps_its_memory_and_tries_again(server: Server) -> None:
    run(
        server,
        """
array = table(8)
address = sys.argv[1]

def act():
    path = address.removeprefix("unix:")
    os.rename(path, path + ".away")
    try:
        client.allocate(1)
    except pagefold.ServerUnavailable:
        pass
    else:
        raise AssertionError("nobody is there")
    finally:
        os.rename(path + ".away", path)
    assert (array == expected).all()
    assert client.array([1, 2]).tolist() == [1, 2]
    client.close()

expected = array.copy()
with child(act) as one:
    one.go()
assert (array == expected).all()
client.close()
""",
    )


FAMILY = """
from support.waiting import until as wait
told, gates = open(sys.argv[2], "w"), sys.argv[3:]
one, two, own = table(64), table(64), table(32, seed=5)
zeros = client.zeros((16, PAGE), "u1")
zeros[:] = 0
assert client.settle(20).settled
assert client.stats().merged_bytes == 128 * PAGE
expected = [array.copy() for array in (one, two, own)]
two[40] = 40                                  # a copy of a frame, by the time of the fork or soon after

def tell(text):
    told.write(text + chr(10))
    told.flush()

def right(*ours):
    "All bytes: ours are the pages of `one` that this process has written."
    assert all((one[page] == (n if page in ours else expected[0][page])).all() for page in range(64))
    assert (two[40] == 40).all() and (np.delete(two, 40, 0) == np.delete(expected[1], 40, 0)).all()
    assert (own == expected[2]).all() and not zeros.any()

def act(gate):
    client.reattach()
    right()
    tell("attached")
    gate.readline()                           # the parent is gone
    right()
    ours = range(n, 64, 5)
    for page in ours:
        one[page] = n
    own[n] = n
    expected[2][n] = n
    right(*ours)
    assert client.settle(20).settled
    right(*ours)
    mine = table(64)                          # what was inherited is what it merges with
    assert client.settle(20).settled
    stats = client.stats()
    assert stats.merged_bytes >= (64 + 63 + 64 - len(ours)) * PAGE, stats
    tell("written")
    gate.readline()
    right(*ours)
    client.close()
    right(*ours)
    tell("done")

for n, path in enumerate(gates[1:], 1):
    gate = open(path)
    if fork() == 0:
        code = 1
        try:
            act(gate)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            tell("failed")
        finally:
            os._exit(code)
    gate.close()
n = 0
right()
open(gates[0]).readline()
right()
client.close()
"""


@pytest.mark.parametrize("end", ["close", "kill", "restart and kill"])
def test_what_children_inherit_merged_is_theirs_and_outlives_the_parent(
    server: Server, tmp_path: Path, end: str
) -> None:
    """References are exact at every moment: of the parent, of its children beside it, and of these alone."""
    names = [tmp_path / name for name in ("told", "parent", "1", "2", "3", "4")]
    for name in names:
        os.mkfifo(name)
    fds = [os.open(name, os.O_RDWR) for name in names]
    told, gates = os.fdopen(fds[0]), fds[1:]

    def hear(word: str) -> None:
        assert [told.readline().strip() for _ in range(4)] == [word] * 4

    program = start(server, FAMILY, *map(str, names))
    try:
        hear("attached")
        clients = {client.pid: client for client in server.clients()}
        children = set(clients) - {program.pid}
        assert len(children) == 4
        until(
            lambda: all(c.pages_merged >= 127 for c in server.clients() if c.pid in children), what="their references"
        )
        assert_clean(server)
        if "restart" in end:
            server.kill()
            server.start()
            until(lambda: [c.pages_merged >= 127 for c in server.clients()] == [True] * 5, 30, "their return")
            assert_clean(server)
        if "kill" in end:
            program.kill()
        else:
            os.write(gates[0], b"\n")
        # Its children have its standard error as well: no end of file comes there.
        assert program.wait(timeout=30) == (-signal.SIGKILL if "kill" in end else 0)
        until(
            lambda: {client.pid for client in server.clients()} == children, what="the end of the parent's references"
        )
        assert_clean(server)
        # One more if what they all have as a copy has merged anew.
        assert server.status().counters.pages_shared in (64, 65), "every frame has users in the children"
        for gate in gates[1:]:
            os.write(gate, b"\n")
        hear("written")
        assert_clean(server)
        for gate in gates[1:]:
            os.write(gate, b"\n")
        hear("done")
        until(lambda: not server.clients(), what="the end of all")
        counters = server.status().counters
        assert (counters.pages_shared, counters.pages_sharing, counters.zero_pages) == (0, 0, 0)
    finally:
        for fd in gates:
            os.close(fd)  # the reader goes on, and ends
        told.close()
        program.kill()
        program.wait(timeout=30)
        print(program.communicate(timeout=30)[1])  # why, if it failed


def test_a_grandchild_takes_over_what_its_parent_took_over(server: Server) -> None:
    """What the child has taken back into its own segment by then is frozen: neither sees what the other writes."""
    run(
        server,
        """
one, two = table(64), table(64)
assert client.settle(20).settled
expected = one.copy()

def act():
    client.reattach()
    one[:32] = 7
    assert client.settle(20).settled          # taken back, and merged again: 32 pages alike
    one[8:16] = np.arange(8)[:, None] + 100   # of these, some are its own
    assert client.settle(20).settled
    until(lambda: client.stats().copied_bytes == 0, what="pages taken back")
    now = one.copy()

    def grandchild():
        client.reattach()
        assert (one == now).all() and (two == expected).all()
        one[4:12] = 9
        two[:] = 3
        report = client.settle(20)            # pages of the parent's would merge, but for this child
        assert report.settled or "a forked child shares them" in report.reason, report
        assert (one[4:12] == 9).all() and (one[12:] == now[12:]).all() and (two == 3).all()
        client.close()
        Child(lambda: two.__setitem__(5, 5)).go()
        assert (two == 3).all()

    with child(grandchild) as second:
        one[12:20] = 11
        assert (one[:12] == now[:12]).all() and (one[20:] == now[20:]).all()
        second.go()
    now[12:20] = 11
    assert (one == now).all() and (two == expected).all()
    until(lambda: not client._session.space.shared, what="the thaw")
    assert (one == now).all() and client.settle(20).settled
    two[:] = one
    assert client.settle(20).settled and (one == now).all() and (two == now).all()
    client.close()
    assert (one == now).all() and (two == now).all()
    Child(lambda: one.__setitem__(slice(None), 1)).go()   # the client is closed: its memory is frozen all the same
    assert (one == now).all()

with child(act) as first:
    first.go()
assert (one == expected).all() and (two == expected).all()
quiet()
client.close()
""",
    )
    until(lambda: not server.clients(), what="the end of all")
    assert server.status().counters.pages_shared == 0
