"""Programs in which gevent or eventlet put greenlets in the place of threads, before or after the client knows of it.

After `monkey.patch_all()` the session's thread was a greenlet that waited in native code: connect() never came back,
and the whole program stood still (gunicorn -k gevent: every request timed out).
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import Server

pytest.importorskip("numpy")
pytestmark = pytest.mark.usefixtures("no_names")

LIBRARIES = ("gevent", "gevent and gRPC", "eventlet", "none")

PRELUDE = """
import faulthandler, sys
faulthandler.dump_traceback_later(100, exit=True)
address, library, server = sys.argv[1], sys.argv[2], int(sys.argv[3])

def patch():
    if library.startswith("gevent"):
        from gevent import monkey
        monkey.patch_all()
    if library == "gevent and gRPC":
        from grpc.experimental.gevent import init_gevent
        init_gevent()
    if library == "eventlet":
        import eventlet
        eventlet.monkey_patch()

def connect():
    return pagefold.connect(address, autostart=False)
"""

# Others run while this one waits; `turns` counts how often they did.
BODY = """
import logging, os, signal, threading, time
import numpy as np

turns = []
def turn():
    while True:
        turns.append(1)
        time.sleep(0.01)
threading.Thread(target=turn, daemon=True).start()
time.sleep(0.05)

def others_ran(atleast, what):
    count = len(turns)
    yield
    assert len(turns) - count >= atleast, f"{what}: others ran {len(turns) - count} times"

want = np.arange(1 << 18)
table, again = client.array(want), client.array(want)
report = client.settle(60)
assert report.settled and report.saved_bytes >= table.nbytes, report

# Nobody is kept from running by a client that is idle, or that waits for a server that does not answer.
watch = others_ran(20, "idle"); next(watch)
time.sleep(1)
next(watch, None)
os.kill(server, signal.SIGSTOP)
try:
    watch = others_ran(20, "settle"); next(watch)
    assert not client.settle(1.5).settled
    next(watch, None)
finally:
    os.kill(server, signal.SIGCONT)
assert client.settle(60).settled

# Two at once, and more than one client.
second = connect()
reports = []
threads = [threading.Thread(target=lambda c=c: reports.append(c.settle(60).settled)) for c in (client, second) * 2]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert reports == [True] * 4, reports
second.close()

# What the library logs gives nobody else the processor, though the handler does.
class Slow(logging.Handler):
    seen = []
    def emit(self, record):
        time.sleep(0.05)
        Slow.seen.append(record.getMessage())
logging.getLogger("pagefold").addHandler(Slow())
logging.getLogger("pagefold").propagate = False
import pagefold._log
got, said = [], []
def allocates():
    while not said: time.sleep(0.001)
    got.append(client.allocate(4096))
other = threading.Thread(target=allocates)
other.start()
said.append(True)
pagefold._log.log.warning("said")             # and no other greenlet has run
assert library == "none" or not got
if library == "none":
    assert Slow.seen
other.join()
for _ in range(500):
    if Slow.seen: break
    time.sleep(0.01)
assert Slow.seen == ["said"] and len(got) == 1

# The server comes to know of what is advised and freed, children attach, and the end is an end.
client.advise(again, mergeable=False)
assert (again == want).all()
del got
pid = os.fork()
if pid == 0:
    code = 1
    try:
        signal.alarm(60)
        assert (table == want).all()
        mine = client.array(want)
        assert client.settle(60).settled
        assert (mine == want).all()
        client.close()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert (table == want).all() and (again == want).all()
"""

ORDERS = {
    "patched before the import": "patch()\nimport pagefold\nclient = connect()\n",
    "patched after the import": "import pagefold\npatch()\nclient = connect()\n",
    "patched after connect()": "import pagefold\nclient = connect()\npatch()\n",
}


def run(server: Server, library: str, code: str) -> None:
    name = library.partition(" ")[0]
    if name != "none" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + code, server.address, library, str(server.pid)],
        cwd=Path(__file__).parents[1],
        env={k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=150,
    )
    errors = [line for line in ended.stderr.splitlines() if "RLock(s) were not greened" not in line]
    assert (ended.returncode, errors) == (0, []), ended.stderr


@pytest.fixture
def awake(server: Server) -> Iterator[Server]:
    """A server that goes on whatever a program did to it."""
    yield server
    os.kill(server.pid, signal.SIGCONT)


@pytest.mark.needs("uffd")
@pytest.mark.parametrize(
    ("library", "order"), [("none", "patched before the import"), *itertools.product(LIBRARIES[:3], ORDERS)]
)
def test_a_program_of_greenlets_merges_and_its_greenlets_go_on(awake: Server, library: str, order: str) -> None:
    run(awake, library, ORDERS[order] + BODY + "client.close()\n")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_client_that_is_not_closed_does_not_keep_a_program_of_greenlets_from_ending(
    server: Server, library: str
) -> None:
    run(
        server, library, "patch()\nimport pagefold\nclient = connect()\nbuffer = client.allocate(1 << 20)\ndel buffer\n"
    )
    assert not server.clients(), "its atexit handler said goodbye"


def test_the_programs_own_calls_under_gevents_grpc_get_their_callbacks(server: Server) -> None:
    """gRPC runs callbacks in a greenlet of the thread that made the first channel: that must not be one of ours."""
    run(
        server,
        "gevent and gRPC",
        """
patch()
import pagefold
client = connect()
import gevent, grpc
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
stub, done = admin_pb2_grpc.AdminStub(grpc.insecure_channel(address)), []
call = stub.GetStatus.future(admin_pb2.GetStatusRequest(), timeout=20)
call.add_done_callback(done.append)
for _ in range(1000):
    if done: break
    gevent.sleep(0.01)
assert done and done[0].result().clients == 1
client.close()
""",
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_program_of_greenlets_starts_a_server(server: Server, library: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/run/server.sock"
    run(
        server,
        library,
        f"""
patch()
import os, pathlib, signal, threading, time
import pagefold
clients = []
threads = [threading.Thread(target=lambda: clients.append(pagefold.connect({address!r}))) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert [client.stats().connected for client in clients] == [True] * 3
for client in clients: client.close()
pid = int(pathlib.Path({str(tmp_path)!r}, "run", "server.pid").read_text())
os.kill(pid, signal.SIGTERM)
while os.path.exists(f"/proc/{{pid}}"): time.sleep(0.01)
""",
    )
