"""Programs out of threads, of another user than they were, forked by C code, or on a busy machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pagefold
import pagefold_core
import pytest
from support.server import Server

pytestmark = pytest.mark.usefixtures("no_names")

USER = 62000 + os.getpid() % 10000
"""A user of this test process's own, whose processes nobody else counts."""


def run(code: str, *args: str, timeout: float = 120, **more: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEFOLD_", "GRPC_"))} | more
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        cwd=Path(__file__).parents[1],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.needs("root")
def test_a_process_without_threads_to_spare_is_told_so_and_lives() -> None:
    """gRPC ends the process where it cannot start a thread: inside of connect(), with SIGABRT."""
    told = run(
        """
import os, resource, sys
import pagefold
for spare in range(0, 64):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            user = int(sys.argv[1])
            os.setgid(user); os.setuid(user)
            resource.setrlimit(resource.RLIMIT_NPROC, (1 + spare, 1 + spare))
            pagefold.connect("unix:/nowhere/server.sock", autostart=False)
        except pagefold.OutOfThreads as error:
            assert "ulimit -u" in str(error) and "pids.max" in str(error) and isinstance(error, RuntimeError)
            code = 1
        except pagefold.ServerUnavailable:
            code = 0
        except BaseException as error:
            print(spare, repr(error), flush=True)
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    print(spare, os.waitstatus_to_exitcode(status), flush=True)
    if status == 0:
        break
""",
        str(USER),
    )
    ends = [line.split(" ", 1)[1] for line in told.splitlines()]
    assert ends[0] == "1"
    assert ends[-1] == "0"
    assert set(ends) == {"0", "1"}, told


@pytest.mark.needs("root")
@pytest.mark.parametrize("dumpable", [False, True])
def test_a_process_that_changed_its_user_is_told_what_opens_its_pages(dumpable: bool) -> None:
    """gunicorn --user: the tracker said that it takes Linux 6.7, the barrier "permission denied"."""
    told = run(
        """
import ctypes, os, sys
import pagefold
from pagefold.cli.checks import own_pages
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(sys.argv[2]), 0, 0, 0)
for asked in ({"barrier": "user"}, {"barrier": "user", "tracker": "pagemap"}):
    try:
        pagefold.connect("unix:/nowhere/server.sock", autostart=False, **asked)
    except pagefold.PagefoldError as error:
        print(type(error).__name__, error)
print([check.state for check in own_pages()])
""",
        str(USER),
        str(int(dumpable)),
    ).splitlines()
    if dumpable:
        assert not [line for line in told if "PR_SET_DUMPABLE" in line]
        assert told[-1] == "[]"
        return
    assert [line.split(" ")[0] for line in told[:2]] == ["BarrierUnavailable", "TrackerUnavailable"]
    for line in told[:2]:
        assert "prctl(PR_SET_DUMPABLE, 1)" in line
        assert "ambient" in line
    assert told[2] == "['fail']"


@pytest.mark.parametrize("value", [None, "1", "0", "false", "N", " no"])
def test_a_child_where_grpc_outlives_no_fork_is_told_so_at_once(value: str | None, server: Server) -> None:
    """With GRPC_ENABLE_FORK_SUPPORT=0 a child's calls hung for ever, past their own time-out."""
    code = """
import os, signal, sys
import pagefold
client = pagefold.connect(sys.argv[1], autostart=False)
buffer = client.allocate(4096)
buffer[:] = bytes(range(256)) * 16
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    ends = []
    for use in (client.reattach, lambda: pagefold.connect(sys.argv[1], autostart=False).close()):
        try:
            use()
            ends.append("works")
        except pagefold.ForkedClient as error:
            ends.append("told" if "GRPC_ENABLE_FORK_SUPPORT" in str(error) else str(error))
    assert buffer[:] == bytes(range(256)) * 16
    print(*ends, flush=True)
    client.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert client.stats().connected
buffer.close()
client.close()
"""
    told = run(code, server.address, **({} if value is None else {"GRPC_ENABLE_FORK_SUPPORT": value}))
    assert told.split() == (["works"] * 2 if value in (None, "1") else ["told"] * 2)


def test_children_connect_where_grpc_outlives_no_fork_if_their_parent_did_not(server: Server) -> None:
    run(
        """
import os, sys
import pagefold
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        with pagefold.connect(sys.argv[1], autostart=False) as client:
            assert client.stats().connected
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
""",
        server.address,
        GRPC_ENABLE_FORK_SUPPORT="0",
    )


def test_a_server_that_takes_its_time_is_connected_to_all_the_same(server: Server) -> None:
    """gRPC gave a connection 50 ms to come about: on a busy machine connect() failed."""
    os.kill(server.pid, signal.SIGSTOP)
    going_on = threading.Timer(1.0, os.kill, (server.pid, signal.SIGCONT))
    going_on.start()
    try:
        with pagefold.connect(server.address, autostart=False) as client:
            assert client.stats().connected
    finally:
        going_on.join()


def test_under_uwsgi_a_child_is_told_which_option_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from pagefold._process import fork

    monkeypatch.setattr(pagefold_core, "can_attach", lambda: False)
    assert "os.fork()" in fork.why_not_attach()
    monkeypatch.setitem(sys.modules, "uwsgi", pagefold)
    assert "py-call-uwsgi-fork-hooks" in fork.why_not_attach()


IN_A_HANDLER = """
import ctypes, faulthandler, gc, os, sys, threading, time
faulthandler.dump_traceback_later(30, exit=True)
forking = threading.Event()
def handler():
    forking.set()
    time.sleep(0.3)                           # others run meanwhile
called = ctypes.CFUNCTYPE(None)(handler)
assert getattr(ctypes.CDLL(None), "__register_atfork")(called, None, None, None) == 0
import pagefold                               # whose own handlers come later, and so are called first
client = pagefold.connect(sys.argv[1], autostart=False)
buffer = client.allocate(9000)
world = {"pin": client.pinned(buffer), "client": pagefold.connect(sys.argv[1], autostart=False)}
acts = {
    "connect": lambda: pagefold.connect(sys.argv[1], autostart=False).close(),
    "close": lambda: client.close(),
    "stats": lambda: client.stats(),
    "settle": lambda: client.settle(0.1),
    "allocate": lambda: client.allocate(9000),
    "advise": lambda: client.advise(buffer, mergeable=False),
    "pin": lambda: world.pop("pin"),
    "client": lambda: world.pop("client"),
}
def act():
    forking.wait()
    acts[sys.argv[2]]()
thread = threading.Thread(target=act)
thread.start()
pid = os.fork()
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
thread.join()
"""


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("call", ["connect", "close", "stats", "settle", "allocate", "advise", "pin", "client"])
def test_a_fork_in_whose_handlers_python_runs_stands_nothing_still(server: Server, call: str) -> None:
    """gRPC's are such handlers with GRPC_ENABLE_FORK_SUPPORT=1. They wait for the GIL while a fork holds our locks."""
    run(IN_A_HANDLER, server.address, call)


def test_a_program_that_ends_while_a_thread_of_it_connects_ends_as_ever(server: Server) -> None:
    """It died of SIGABRT: Python has the C library unwind the session's thread, and Rust lay at the bottom of it."""
    run(
        """
import sys, threading, time
import pagefold
def connects():
    while True:
        try:
            pagefold.connect(sys.argv[1], autostart=False).close()
        except pagefold.ClientClosed as error:
            assert "handlers of its end" in str(error)
            return
for _ in range(3):
    threading.Thread(target=connects, daemon=True).start()
class Last:
    def __del__(self):                        # the end of Python takes a while
        until = time.monotonic() + 1
        while time.monotonic() < until:
            time.sleep(0.001)
sys.modules["last"] = Last()
time.sleep(0.3)
""",
        server.address,
    )


def test_threads_block_signals_whatever_a_program_connected_to_first(server: Server) -> None:
    """After a LocalTransport our handlers were there before gRPC's, which start its threads anew: without the mask."""
    run(
        """
import os, signal, sys
import pagefold
from pagefold.testing import FakeServer
pagefold.connect(transport=pagefold.LocalTransport(FakeServer())).close()
before = set(os.listdir("/proc/self/task"))
client = pagefold.connect(sys.argv[1], autostart=False)
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
client.settle(5)
for task in set(os.listdir("/proc/self/task")) - before:
    with open(f"/proc/self/task/{task}/status") as file:
        fields = dict(line.split(":", 1) for line in file.read().splitlines())
    assert int(fields["SigBlk"], 16) >> signal.SIGTERM - 1 & 1, fields["Name"]
""",
        server.address,
    )
