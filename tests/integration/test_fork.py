"""Forks of every kind, in real programs with a real server: nobody's bytes change, nothing of it is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import kernel
from support.children import compile_c
from support.programs import finish, run, start
from support.server import Server
from support.waiting import until

pytest.importorskip("numpy")
pytestmark = [pytest.mark.needs("uffd"), pytest.mark.usefixtures("no_names")]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(server: Server, method: str) -> None:
    run(
        server,
        """
import multiprocessing
from support import fork_tasks
fork_tasks.array = table(64)
expected = int(fork_tasks.array.sum(dtype="u8"))
method = sys.argv[2]
with multiprocessing.get_context(method).Pool(2) as pool:
    task = fork_tasks.sum_inherited if method == "fork" else fork_tasks.sum_own
    sums = pool.map(task, [sys.argv[1]] * 4)
    pool.close()
    pool.join()
assert sums == [expected] * 4, sums
quiet()
assert int(fork_tasks.array.sum(dtype="u8")) == expected
client.close()
""",
        method,
    )


def test_programs_that_are_started_leave_memory_alone(server: Server) -> None:
    """vfork and posix_spawn run in this address space until they exec: nothing is frozen, nothing has to be thawed.

    With `preexec_fn`, Python forks, gRPC starts a thread in the child, and `close_fds` takes away what that waits on:
    the child may be aborted before it execs (grpc/grpc#43055, seen with 1.81 to 1.85; without pagefold, too).
    """
    run(
        server,
        """
array = table(32)
before = array.copy()
true = "/bin/true"
plain = lambda: subprocess.run([true], check=True)
spawned = lambda: os.waitpid(os.posix_spawn(true, [true], os.environ), 0)
for way in (plain, spawned):
    frozen = []
    thread = threading.Thread(target=lambda: [frozen.append(space.counts().frozen) for _ in range(2000)])
    thread.start()
    for _ in range(20):
        way()
    thread.join()
    assert set(frozen) == {0}, "no fork handler was called"
    assert not space.shared

def exec_true():
    os.execv(true, [true])

ways = [
    lambda: subprocess.run([true], check=True, close_fds=False, preexec_fn=lambda: array.fill(0)),
    lambda: subprocess.run([true], check=True, close_fds=False, preexec_fn=os.getpid),
    lambda: subprocess.run([true], check=True, start_new_session=True, close_fds=True),
    lambda: Child(exec_true).go(),
]
for way in ways:
    way()
    assert (array == before).all()
quiet()
assert (array == before).all()
client.close()
""",
    )


def test_nothing_of_the_detour_is_left(server: Server) -> None:
    run(
        server,
        """
one, two = table(256), table(256)          # each page twice: merged
own = table(128, seed=9)                   # unique: owned
hole = client.empty((64, PAGE), "u1")      # never touched
hole[::9] = 5
assert client.settle(20).settled
expected = [array.copy() for array in (one, two, own, hole)]

def state():
    space.harvest()
    return space.counts().mappings, kernel.mappings(os.getpid()), len(os.listdir("/proc/self/fd"))

def counted():
    counts = space.counts()
    return counts.owned, counts.merged, counts.zero, counts.copied, counts.frozen

def write():
    own[:64] = 3
    one[5] = 7
    hole[1] = 1

until(lambda: client.settle(20).settled)
before, pages, memory = state(), counted(), kernel.shared_bytes()
for _ in range(3):
    with child(write) as first, child(write) as second:
        assert space.counts().frozen > 0 and space.shared
        first.go()
        assert not space.thaw(), "one of them lives"
        second.go()
    quiet()
assert [(array == wanted).all() for array, wanted in zip((one, two, own, hole), expected)] == [True] * 4
assert counted()[4] == 0
assert client.settle(20).settled
assert counted() == pages
assert kernel.shared_bytes() == memory, (kernel.shared_bytes(), memory)
after = state()
assert after[0] == before[0] and after[2] == before[2], (before, after)
assert after[1] <= before[1] + 3, "nothing but the heap may differ"
client.close()
""",
    )


def test_memory_made_since_a_fork_does_not_wait_for_its_child(server: Server) -> None:
    run(
        server,
        """
old = table(16)
with child():
    new = client.empty((40000, PAGE), "u1")   # larger than a segment: one of its own
    new[:64] = 7
    Child(lambda: new.fill(1)).go()
    def thawed():
        space.thaw()
        return space.counts().frozen < 40000
    until(thawed, what="the thaw of what only the second child had")
    assert space.shared and space.counts().frozen >= 16
    report = client.settle(20)                # of the old ones, some may not have been looked at before the fork
    assert report.settled or "16 pages (64 KiB) are not merged: a forked child shares them" in report.reason, report
    assert client.stats().merged_bytes == 64 * PAGE
    assert (new[:64] == 7).all() and not new[64:].any()
quiet()
assert (old == table(16)).all()
client.close()
""",
    )


WRITERS = """
import itertools
arrays = [client.empty((64, PAGE), "u1") for _ in range(3)]
stop = threading.Event()
written = [0] * len(arrays)

def write(index):
    for value in itertools.count(1):
        if stop.is_set():
            return
        written[index] = value % 256
        arrays[index][:] = value % 256       # NumPy lets the GIL go meanwhile

def look():
    seen = [array.copy() for array in arrays]
    time.sleep(0.02)                         # the parent's threads go on writing
    for array, was in zip(arrays, seen):
        assert (array == was).all(), "the parent's writes are seen"
        array[:] = 77
    time.sleep(0.02)
    assert all((array == 77).all() for array in arrays)

threads = [threading.Thread(target=write, args=(index,)) for index in range(len(arrays))]
for thread in threads:
    thread.start()
for _ in range(25):
    Child(look, fork=FORK).go()
stop.set()
for thread in threads:
    thread.join()
assert [int(array.min()) for array in arrays] == written, "the child's writes are seen, or one of ours is lost"
assert [int(array.max()) for array in arrays] == written
quiet()
assert [int(array.max()) for array in arrays] == written
assert client.settle(20).settled
client.close()
"""


@pytest.fixture
def c_library(tmp_path: Path) -> str:
    library = compile_c(tmp_path)
    if library is None:
        pytest.skip("this machine has no C compiler (cc)")
    return str(library)


C_FORK = "c_fork = ctypes.PyDLL(sys.argv[2]).python_goes_on   # with the GIL, as C code that comes back must\n"


def test_forks_while_threads_write(server: Server) -> None:
    run(server, WRITERS.replace("FORK", "fork"))


def test_forks_of_c_code_while_threads_write(server: Server, c_library: str) -> None:
    run(server, C_FORK + WRITERS.replace("FORK", "c_fork"), c_library)


def test_a_child_of_c_code_is_told_what_it_is(server: Server, c_library: str) -> None:
    run(
        server,
        C_FORK
        + """
array = table(16)

def look():
    array[0] = 1
    for use in (client.stats, lambda: client.allocate(1), lambda: client.settle(1)):
        try:
            use()
        except pagefold.ForkedClient:
            continue
        raise AssertionError("not told")
    client.close()
    Child(lambda: array.fill(3)).go()        # and forks itself, through Python's hooks
    Child(lambda: array.fill(4), fork=c_fork).go()
    assert (array[0] == 1).all()

Child(look, fork=c_fork).go()
assert (array == table(16)).all()
quiet()
client.close()
""",
        c_library,
    )


def test_forks_by_a_thread_that_python_does_not_know(server: Server, c_library: str) -> None:
    """A thread of C code forks, without the GIL and without any hook, while others allocate, free, write and merge."""
    run(
        server,
        """
forks = ctypes.CDLL(sys.argv[2])

class Look(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("wanted", ctypes.c_void_p), ("size", ctypes.c_size_t),
                ("forks", ctypes.c_int), ("failures", ctypes.c_int)]

stop = threading.Event()
failures = []

def churn(seed):
    try:
        while not stop.is_set():
            array = table(24, seed)
            client.settle(0.05)
            assert (array == wanted[seed]).all()
    except BaseException as error:
        failures.append(error)

kept = table(64)
copy = kept.copy()
wanted = {seed: table(24, seed).copy() for seed in (1, 2)}
threads = [threading.Thread(target=churn, args=(seed,)) for seed in (1, 1, 2)]
for thread in threads:
    thread.start()
look = Look(kept.ctypes.data, copy.ctypes.data, kept.nbytes, 60, 0)
thread = ctypes.c_ulong()
assert forks.pthread_create(ctypes.byref(thread), None, forks.forks, ctypes.byref(look)) == 0
assert forks.pthread_join(thread, None) == 0
assert look.failures == 0
stop.set()
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
assert failures == []
assert (kept == copy).all()
quiet()
assert client.settle(20).settled
client.close()
""",
        c_library,
    )


def test_a_grandchild_that_outlives_them_all(server: Server, tmp_path: Path) -> None:
    """It reads frames and segments of a process that is long gone, whose death frees nothing that it maps (I3, I4)."""
    report = tmp_path / "report"
    program = start(
        server,
        """
one, two = table(64), table(64)
own = table(64, seed=5)
assert client.settle(20).settled
gate, go = os.pipe()

def grandchild():
    os.close(go)
    os.read(gate, 1)                         # ends when the parent does
    while os.getppid() == middle:
        time.sleep(0.01)
    time.sleep(1.0)                          # the server has looked for the dead meanwhile
    same = (one == two).all() and (one[:, 8:] == own[:, 8:] - 4 % 251).any()
    digest = [int(array.sum(dtype="u8")) for array in (one, two, own)]
    one[:] = 0
    digest.append(int(one.sum()) + int(two.sum(dtype="u8")))
    with open(sys.argv[2] + ".new", "w") as file:
        file.write(repr(digest))
    os.rename(sys.argv[2] + ".new", sys.argv[2])
    os._exit(0)

wanted = [int(array.sum(dtype="u8")) for array in (one, two, own)]
with open(sys.argv[2] + ".wanted", "w") as file:
    file.write(repr([*wanted, wanted[1]]))
if fork() == 0:
    middle = os.getpid()
    if fork() == 0:
        grandchild()
    os._exit(0)
os._exit(0)
""",
        str(report),
    )
    assert program.wait(60) == 0
    until(report.exists, 30, "the grandchild's report")
    assert report.read_text() == Path(f"{report}.wanted").read_text()
    assert program.stderr is not None
    program.stderr.close()
    # Nobody is left: the server notices, and sweeps what the dead have left.
    until(lambda: kernel.shared_bytes() == 0 and not server.clients(), 30, "the sweep")
    server.stop()
    with Server(server.directory, **server.settings):
        until(lambda: not {name for name in kernel.names() if "-s-" in name or "-l-" in name}, 30, "the names' sweep")


def test_forks_while_merges_are_under_way(server: Server) -> None:
    """Both programs have the same, and rewrite it: there are always merges. Children compare all that they inherit."""
    code = """
array = table(1024)
expected = array.copy()
deadline = time.monotonic() + 60
merged = windows = 0
for number in range(30):
    client._session.kick()
    time.sleep(0.003 * (number % 10))        # at another moment of a merge each time
    with child(lambda: None if (array == expected).all() else os._exit(2)) as one:
        array[number::97] = number           # and what is merged is broken
        expected[number::97] = number
        assert (array == expected).all()
        one.go()
    expected_now = expected.copy()
    quiet()
    array[number::97] = 1 + number % 7
    expected[number::97] = 1 + number % 7
    merged += client.stats().merged_bytes
    windows = max(windows, client.stats().windows)
assert (array == expected).all()
assert windows > 0 and merged > 0, "forks met merges"
client.close()
"""
    programs = [start(server, code) for _ in range(2)]
    for program in programs:
        finish(program)


def test_a_thousand_forks_leave_nothing_behind(server: Server) -> None:
    run(
        server,
        """
one, two = table(64), table(64)
expected = one.copy()
stop = threading.Event()
calls = []

def talk():
    while not stop.is_set():
        client.settle(0.2)                   # grpc has a call under way most of the time
        calls.append(1)

def state():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(kernel.names())

def look():
    assert one[number % 64, 9] == expected[number % 64, 9]
    one[number % 64] = 0

thread = threading.Thread(target=talk)
thread.start()
for number in range(20):
    Child(look).go()
quiet()
space.harvest()
before, mappings = state(), kernel.mappings(os.getpid())
for number in range(1000):
    Child(look).go()
assert (one == expected).all() and (two == expected).all()
quiet()
space.harvest()
until(lambda: state() <= before, what="descriptors, threads and names going back")
stop.set()
thread.join()
assert kernel.mappings(os.getpid()) <= mappings + 20, "the heap may have grown by a few; not one for each fork"
assert len(calls) > 5
assert client.settle(20).settled
client.close()
""",
    )
