"""Children that become clients of their own, by using the client that they inherited."""

from __future__ import annotations

import pytest
from support.programs import run
from support.server import Server

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
    assert stats.connected and stats.allocated_bytes == stats.merged_bytes == 64 * PAGE, stats
    client.advise(one, mergeable=False)       # inherited: a snapshot is never merged, so nothing is to be done
    with client.pinned(own):
        own[3] = 9
    client.advise(mine, mergeable=False)
    assert client.stats().merged_bytes == 0 and (mine == one).all()
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
            sessions.append(client._parts.session)
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
