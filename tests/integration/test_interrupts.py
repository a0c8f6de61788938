"""An exception may arrive between any two steps of Python: Ctrl-C, a test's time-out, any signal handler that raises.

After 5 to 25 of them in advise() a lock was held for ever, of allocate() the allocator raised KeyError for ever or lost
pieces, of os.fork() another lock was lost, and each one in connect() left descriptors, threads and a session whose
client nobody had, so that nobody's settle() settled.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import kernel
from support.programs import run
from support.server import Server
from support.strikes import CALLS, IN_CHILDREN
from support.waiting import until

pytestmark = pytest.mark.needs("uffd")

TESTS = Path(__file__).parents[1]
SAMPLE = 11
"""In `make test` an exception comes at each step of this number; `make stress` leaves none out."""


def strike_all(server: Server, call: str, stride: int, timeout: float = 150) -> int:
    """Runs support/strikes.py. How many steps the call has."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-m", "support.strikes", server.address, call, str(stride)],
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing of a program's is told unasked"
    until(lambda: not server.clients(), what="the server having no session left")
    return int(done.stdout)


@pytest.mark.parametrize("call", [*CALLS, *IN_CHILDREN])
def test_an_exception_at_any_step_of_a_call_leaves_nothing_and_the_next_one_works(server: Server, call: str) -> None:
    assert strike_all(server, call, SAMPLE) >= 1


STORM = """
import logging, random, signal
del space                                     # of the client that ends now
level = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
client.close()

class Hit(Exception): pass
def hit(_, frame):
    if frame.f_code.co_filename != logging.__file__:   # its own fork hooks lose its lock: that is Python's
        raise Hit
signal.signal(signal.SIGALRM, hit)

seconds, rng = float(sys.argv[2]), random.Random(int(sys.argv[3]))
client = pagefold.connect(sys.argv[1], autostart=False)
want = np.arange(1 << 14)
first, second = client.array(want), client.array(want)
mine = {}

def fork_once():
    pid = fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os._exit(0 if (first == want).all() else 1)
    while True:
        try:
            assert os.waitpid(pid, 0)[1] == 0
            return
        except Hit:
            pass
        except ChildProcessError:
            return

def again():
    with pagefold.connect(sys.argv[1], autostart=False) as other:
        other.allocate(9000)

def pin():
    with client.pinned(second):
        pass

def keep():
    number = rng.randrange(40)
    array = client.full(rng.randrange(1, 20000), number, "u1")
    mine[number] = array
    mine.pop(rng.randrange(40), None)

calls = [
    client.stats, keep, keep, lambda: client.settle(0.05), pin, fork_once, again, lambda: client.allocate(5000).close(),
    lambda: client.advise(second, mergeable=False), lambda: client.advise(second, mergeable=True),
]
hits, until_ = 0, time.monotonic() + seconds
while time.monotonic() < until_:
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.choice([rng.uniform(0.00002, 0.0009), rng.uniform(0.0001, 0.02)]))
        try:
            for _ in range(50):
                rng.choice(calls)()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Hit as error:
        hits += 1
        last = error if hits % 2 else None    # as Jupyter keeps the last one, and its frames
signal.signal(signal.SIGALRM, signal.SIG_IGN)
last = None
assert hits > 5 * seconds, hits

spans = sorted((a.ctypes.data, -(-a.nbytes // PAGE) * PAGE) for a in mine.values())
assert all(low + size <= following for (low, size), (following, _) in zip(spans, spans[1:])), "memory of two arrays"
assert all((array == number).all() for number, array in mine.items())
client._session.arena.sweep()
client._session.arena.check()

done = []
def probe():                                  # what the interrupted thread holds, another one waits for
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    array = client.array(want)
    until(lambda: client.settle(20).settled, what="settling")
    done.append((array == want).all())
thread = threading.Thread(target=probe, daemon=True)
thread.start()
thread.join(60)
assert done == [True], "the client does not work any more"
mine.clear()
until(lambda: client.stats().allocated_bytes == first.nbytes + second.nbytes, what="all memory coming back")
def is_level():
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    return files <= level[0] + 3 and threads <= level[1]   # a segment, and a pool twice
until(is_level, what=f"what was there before: {level}")
closing = threading.Thread(target=client.close)
closing.start()
closing.join(20)
assert not closing.is_alive()
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_program_works_on_after_a_storm_of_signals(server: Server, seed: int) -> None:
    run(server, STORM, "6", str(seed))
    until(lambda: not server.clients(), what="the server having no session left")


def test_an_interrupted_connect_ends_by_itself_though_nobody_waits(serve: Callable[..., Server]) -> None:
    """It left 44 to 97 descriptors, 6 to 16 threads, and sessions that nobody's settle() could do without."""
    server = serve()
    run(
        server,
        """
import random, signal
client.close()
def level():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
until(lambda: level()[1] <= 6)
before, rng, hits = level(), random.Random(11), 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0002, 0.02))
        try:
            with pagefold.connect(sys.argv[1], autostart=False) as other:
                other.allocate(9000)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        hits += 1
assert hits > 10, hits
other = None                                  # whose end was interrupted before it began
until(lambda: all(now <= then for now, then in zip(level(), before)), what=f"{before} again")
with pagefold.connect(sys.argv[1], autostart=False) as other:
    arrays = [other.array(np.arange(1 << 14)) for _ in range(2)]
    assert other.settle(20).settled
""",
    )
    until(lambda: not server.clients(), what="the server having no session left")


def test_a_program_that_is_interrupted_at_its_end_leaves_no_names(server: Server) -> None:
    before = kernel.names()
    run(
        server,
        """
import atexit, signal
buffers = [client.allocate(5 * PAGE) for _ in range(3)]
signal.signal(signal.SIGALRM, signal.default_int_handler)
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.001)   # called before pagefold's own
sys.stderr = open(os.devnull, "w")
""",
    )
    assert {name for name in kernel.names() - before if not name.startswith("pagefold-p-")} == set()


# Signals

MASKS = """
import signal
def masks():
    "What each thread takes that is there because of pagefold, by number and name."
    found = {}
    for task in os.listdir("/proc/self/task"):
        if int(task) in (os.getpid(), *numpys):
            continue
        with open(f"/proc/self/task/{task}/status") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines())
        blocked = int(fields["SigBlk"], 16)
        taken = {n for n in signal.valid_signals() if not blocked >> n - 1 & 1}
        found[int(task), fields["Name"].strip()] = taken - UNBLOCKABLE
    return found
# Those that a thread raises by itself reach crash handlers; the C library keeps two for itself.
UNBLOCKABLE = {getattr(signal, f"SIG{name}") for name in "SEGV BUS ILL FPE TRAP ABRT SYS KILL STOP".split()} | {32, 33}
def assert_blocked(least):
    found = masks()
    assert len(found) >= least, found
    assert not any(found.values()), found
numpys = ()
numpys = [task for task, _ in masks() if task < min(task for task, name in masks() if name.startswith("pagefold"))]
"""


def test_every_thread_that_is_there_because_of_pagefold_blocks_all_signals(server: Server) -> None:
    """A program that waits for SIGTERM by sigtimedwait died of it: gRPC's threads took it, after a fork once more."""
    run(
        server,
        MASKS
        + """
assert_blocked(3)
array = table(8)
assert client.settle(20).settled
with child() as one:
    assert_blocked(3)                         # gRPC has stopped its threads for the fork, and started them again
def act():
    client.reattach()
    assert_blocked(2)
    fork_again = Child()
    assert_blocked(2)
    fork_again.go()
with child(act) as one:
    one.go()
assert client.settle(20).settled
assert_blocked(3)

library = ctypes.CDLL(None)
pid = library.fork()                          # past Python's hooks
if pid == 0:
    library._exit(0)
os.waitpid(pid, 0)
assert_blocked(3)
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "the program's own thread is as it was"

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
assert signal.sigtimedwait([signal.SIGTERM], 5).si_signo == signal.SIGTERM
assert not signal.sigpending()
client.close()
""",
    )
