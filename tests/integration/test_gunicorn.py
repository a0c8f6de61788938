"""A real pre-forking gunicorn: the master loads a table once, four workers serve it, and nobody's memory grows.

With each kind of worker: processes, threads, and gevent's greenlets, in which every request once timed out.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import kernel
from support.server import Server
from support.waiting import until

pytest.importorskip("numpy")
pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytestmark = [pytest.mark.needs("uffd"), pytest.mark.usefixtures("no_names")]

WORKERS = 4
PAGES = 4096

APP = """
import os, sys
import numpy as np
import pagefold

client = pagefold.connect(os.environ["TABLE_ADDRESS"], autostart=False)
table = client.empty((PAGES, 4096), "u1")
for page in range(PAGES):
    table[page] = (page // 2) % 251            # pairs: one half of it merges
    table[page, :4] = np.frombuffer((page // 2 | 1 << 30).to_bytes(4, "little"), "u1")
unique = client.empty((PAGES, 4096), "u1")
for page in range(PAGES):
    unique[page] = page % 251
    unique[page, :4] = np.frombuffer((page | 1 << 31).to_bytes(4, "little"), "u1")
assert client.settle(60).settled

own = []

def app(environ, start_response):
    what, _, page = environ["PATH_INFO"].strip("/").partition("/")
    if what == "pid":
        body = str(os.getpid()).encode()
    elif what == "write":                        # stays in this worker
        unique[int(page), 8:12] = np.frombuffer(os.getpid().to_bytes(4, "little"), "u1")
        body = unique[int(page)].tobytes()
    elif what == "own":                          # made by this worker, with the client that it inherited
        if not own:
            own.append(client.array(table[:64]))
            assert client.settle(20).settled
        body = own[0][int(page) % 64].tobytes()
    else:
        body = {"table": table, "unique": unique}[what][int(page)].tobytes()
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Pid", str(os.getpid()))])
    return [body]
"""


def wanted(what: str, page: int) -> bytes:
    if what == "table":
        return (page // 2 | 1 << 30).to_bytes(4, "little") + bytes([page // 2 % 251]) * 4092
    return (page | 1 << 31).to_bytes(4, "little") + bytes([page % 251]) * 4092


class Site:
    """A running gunicorn."""

    def __init__(self, directory: Path, server: Server, kind: str, pages: int, *options: str) -> None:
        if kind == "gevent":
            pytest.importorskip("gevent")
        (directory / "table_app.py").write_text(APP.replace("PAGES", str(pages)))
        self.kind = kind
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.log = directory / "gunicorn.log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--worker-class", kind, *options]
            place = ["--chdir", str(directory), "--bind", f"fd://{listener.fileno()}", "--no-control-socket"]
            self.process = subprocess.Popen(
                [*command, *place, "table_app:app"],
                env={k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
                | {"TABLE_ADDRESS": server.address},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        listener.close()

    def get(self, path: str) -> tuple[int, bytes]:
        """Who answered, and what."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return int(response.headers["X-Pid"]), response.read()
        finally:
            connection.close()

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid) for pid in children}

    def is_up(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"gunicorn ended:\n{self.log.read_text()}")
        return len(self.workers()) == WORKERS

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


KINDS = ("sync", "gthread", "gevent")


@pytest.fixture(params=KINDS)
def site(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Iterator[Site]:
    threads = "4" if request.param == "gthread" else "1"
    site = Site(tmp_path, server, request.param, PAGES, "--threads", threads, "--preload")
    yield site
    site.stop()


def test_workers_share_the_table_and_read_right_bytes(site: Site, server: Server) -> None:
    until(site.is_up, 90, "four workers")
    site.get("/pid")
    frames = server.status().counters.pages_shared
    assert frames >= PAGES // 2
    private = {pid: kernel.private_bytes(pid) for pid in site.workers()}
    shared = kernel.shared_bytes()

    def ask(number: int) -> int:
        what, page = ("table", "unique")[number % 2], number * 37 % PAGES
        pid, body = site.get(f"/{what}/{page}")
        assert body == wanted(what, page), f"{what} page {page}, read by {pid}"
        return pid

    with ThreadPoolExecutor(8) as pool:
        answered = set(pool.map(ask, range(2000)))
    assert answered <= site.workers()
    assert len(answered) > 1
    # What a worker writes is its own, and its master's and brothers' pages are what they were.
    writer, body = site.get("/write/7")
    assert body[8:12] == writer.to_bytes(4, "little")
    for _ in range(40):
        pid, body = site.get("/unique/7")
        assert body[8:12] == (writer.to_bytes(4, "little") if pid == writer else wanted("unique", 7)[8:12])
    # A table that every worker had for itself would be 32 MiB; a tenth is more than what requests leave behind.
    assert kernel.shared_bytes() <= shared + (1 << 20)
    # A worker of gevent's makes its hub and its greenlets with its first request.
    bound = PAGES * 8192 // (2 if site.kind == "gevent" else 10)
    for pid in site.workers():
        assert kernel.private_bytes(pid) - private[pid] < bound
    # A worker that dies is replaced by a fork of the master's, whose memory has not been thawed.
    os.kill(writer, signal.SIGKILL)
    until(lambda: site.is_up() and writer not in site.workers(), 30, "another worker")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))

    def ask_own(page: int) -> int:
        pid, body = site.get(f"/own/{page}")
        assert body == wanted("table", page % 64)
        return pid

    frames = server.status().counters.pages_shared
    with ThreadPoolExecutor(8) as pool:
        clients = set(pool.map(ask_own, range(200)))
    assert {client.pid for client in server.clients()} == clients | {site.process.pid}
    assert server.status().counters.pages_shared == frames, "what workers make themselves merges with the table"
    assert site.stop() == 0
    until(lambda: not server.clients(), 20, "the master's goodbye")


@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_load_the_table_themselves_answer_and_end_with_their_master(
    kind: str, tmp_path: Path, server: Server
) -> None:
    pages = 64
    site = Site(tmp_path, server, kind, pages)
    try:
        until(lambda: site.is_up() and len(server.clients()) == WORKERS, 90, "four workers, a client each")

        def ask(number: int) -> int:
            what, page = ("table", "unique", "own")[number % 3], number % pages
            pid, body = site.get(f"/{what}/{page}")
            assert body == wanted("unique" if what == "unique" else "table", page)
            return pid

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(300))) <= {client.pid for client in server.clients()}
        workers = site.workers()
    finally:
        assert site.stop() == 0
    until(lambda: not server.clients(), 20, "the workers' goodbye")
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
