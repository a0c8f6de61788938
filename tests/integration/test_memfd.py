"""Segments in memfd objects: they merge like any others, /dev/shm does not bound them, and nobody has the server open
what is not the client's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pagefold_core import make_object
from pagefold_proto import shm_names
from pagefold_proto.v1 import admin_pb2
from pagefold_proto.v1 import memory_pb2 as pb
from support.apart import run_apart
from support.raw import Raw, noise, reason
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

Work = Callable[..., Worker]
PAGES = 512


@pytest.mark.needs("uffd")
def test_memfd_segments_merge_break_and_come_back(server: Server, work: Work, no_names: None) -> None:
    one, two = work(backing="memfd"), work(backing="shm")
    for w in (one, two):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    digest = two.call("digest", "a")
    assert one.call("settle").settled
    stats = one.call("stats")
    assert (stats.backing, stats.memfd_bytes, stats.merged_bytes) == ("memfd", PAGES * PAGE, PAGES * PAGE)
    assert (two.call("stats").backing, two.call("stats").memfd_bytes) == ("shm", 0)
    listed = {s.client: s for s in server.admin.ListSegments(admin_pb2.ListSegmentsRequest(), timeout=10).segments}
    assert sorted(s.backing for s in listed.values()) == [pb.BACKING_SHM, pb.BACKING_MEMFD]
    assert all(s.allocated_bytes == 0 for s in listed.values()), "every page was given back"
    assert server.status().memfd_segments == 1
    assert [c.memfd_segments for c in server.clients()] == [1, 0]
    assert one.call("digest", "a") == digest
    for page in range(0, PAGES, 5):
        one.call("write", "a", page * PAGE, b"written")
    assert two.call("digest", "a") == digest
    server.configure(run=2)
    until(lambda: server.status().counters.pages_shared == 0, what="taking everything apart")
    assert two.call("digest", "a") == digest
    for page in range(PAGES):
        assert one.call("read", "a", page * PAGE, 7) == (
            b"written" if page % 5 == 0 else two.call("read", "a", page * PAGE, 7)
        )
    one.close()
    two.close()


@pytest.mark.needs("uffd")
def test_a_fork_keeps_the_bytes_of_memfd_segments(work: Work) -> None:
    one, two = work(backing="memfd"), work(backing="memfd")
    for w in (one, two):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    assert one.call("settle").settled
    digest = two.call("digest", "a")
    child = one.call(
        "execute",
        """
import hashlib, os
def run(remote):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            view = memoryview(remote.buffers["a"])
            first = hashlib.blake2b(view).hexdigest()
            view[0:5] = b"child"
            os.write(write, (first + ("y" if bytes(view[0:5]) == b"child" else "n")).encode())
        finally:
            os._exit(0)
    os.close(write)
    memoryview(remote.buffers["a"])[4096:4102] = b"parent"
    with open(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said
""",
    )
    assert child == digest + "y"
    assert one.call("read", "a", 0, 5) == two.call("read", "a", 0, 5)
    assert one.call("read", "a", PAGE, 6) == b"parent"
    assert one.call("settle").settled


def test_backings_that_are_none_are_refused(work: Work) -> None:
    with pytest.raises(ValueError, match="backing 'hugetlb'"):
        work(backing="hugetlb")
    assert work(env={"PAGEFOLD_BACKING": "memfd"}).call("stats").backing == "memfd"
    assert work().call("stats").backing == "auto"


@pytest.mark.needs("root", "uffd")
def test_where_dev_shm_is_small_memory_comes_from_memfd_by_itself() -> None:
    # A container's 64 MiB, three workers with 100 MiB each, of which 90 are zeros: only the frames are in /dev/shm.
    run_apart(
        """
with Worker(server.address) as one, Worker(server.address) as two:
    for w in (one, two):
        w.call("allocate", "a", 100 << 20)
        w.call("fill_pages", "a", list(range(1, 2561)))
        w.call("execute", "def run(remote): memoryview(remote.buffers['a'])[10 << 20:] = bytes(90 << 20)")
    assert os.statvfs("/dev/shm").f_bfree * os.statvfs("/dev/shm").f_frsize > 60 << 20
    digest = one.call("digest", "a")
    assert one.call("settle").settled
    stats = one.call("stats")
    assert (stats.backing, stats.memfd_bytes, stats.owned_bytes) == ("auto", 100 << 20, 0), stats
    assert one.call("digest", "a") == two.call("digest", "a") == digest
""",
        size="64m",
    )


@pytest.mark.needs("root", "uffd")
def test_a_server_in_another_pid_namespace_says_what_to_do(server: Server) -> None:
    # The client's pid means another process there, or none.
    script = """
import ctypes, sys
from support.worker import Worker, PAGE
assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID: for children
with Worker(sys.argv[1], backing="memfd") as w:
    w.call("allocate", "a", 64 * PAGE)
    w.call("fill_pages", "a", list(range(64)))
    digest = w.call("digest", "a")
    report = w.call("settle", 5)
    trouble = w.call("stats").trouble
    assert "PID namespace" in trouble and "backing='shm'" in trouble, trouble
    assert w.call("digest", "a") == digest
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, server.address],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


# What a client may name


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[Raw]:
    with Raw(shared.address) as raw:
        raw.hello(label=os.urandom(8).hex())
        yield raw


@pytest.fixture
def made() -> Iterator[shm_names.LockedObject]:
    one = shm_names.LockedObject(*make_object("memfd", 4 * PAGE))
    yield one
    os.close(one.fd)


def offer(raw: Raw, name: str, descriptor: int, pid: int | None = None, pages: int = 4, number: int = 1) -> str:
    """What the server makes of it: a reason, or nothing if it takes it."""
    request = pb.AddSegmentRequest(session=raw.token, segment=number, name=name, pages=pages)
    request.backing = pb.BACKING_MEMFD
    request.pid, request.descriptor = os.getpid() if pid is None else pid, descriptor
    try:
        raw.stub.AddSegment(request, timeout=10)
    except grpc.RpcError as error:
        return reason(error)
    return ""


def test_a_memfd_is_taken_and_read(shared: Server, client: Raw, made: shm_names.LockedObject) -> None:
    content = noise(2)
    os.pwrite(made.fd, content + content, 0)
    assert offer(client, made.name, made.fd) == ""
    assert client.settle().pages_shared == 2
    # Said again, it is the same; with another size, it is a lie.
    assert offer(client, made.name, made.fd) == ""
    assert offer(client, made.name, made.fd, pages=3) == "REASON_PROTOCOL_VIOLATION"


def test_the_servers_own_descriptor_cannot_write(shared: Server, client: Raw, made: shm_names.LockedObject) -> None:
    assert offer(client, made.name, made.fd) == ""
    held = [
        path
        for path in Path(f"/proc/{shared.pid}/fd").iterdir()
        if os.readlink(path) == f"/memfd:{made.name[1:]} (deleted)"
    ]
    assert held
    for path in held:
        flags = next(
            line
            for line in Path(f"/proc/{shared.pid}/fdinfo/{path.name}").read_text().splitlines()
            if line.startswith("flags:")
        )
        assert int(flags.split()[1], 8) & os.O_ACCMODE == os.O_RDONLY


@pytest.mark.parametrize("pages", [0, 5, 1 << 28, (1 << 32) - 1])
def test_sizes_that_are_not_true(client: Raw, made: shm_names.LockedObject, pages: int) -> None:
    assert offer(client, made.name, made.fd, pages=pages) == "REASON_BAD_SIZE"


def test_what_is_not_that_memfd_is_not_opened(client: Raw, made: shm_names.LockedObject, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(noise(4))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    other = shm_names.LockedObject(*make_object("memfd", 4 * PAGE))
    named = client.segment(noise(4))
    disguised = shm_names.new_name("s")
    (tmp_path / f"memfd:{disguised[1:]}").write_bytes(noise(4))
    client_socket = socket.socket(socket.AF_UNIX)
    objects = {
        "a file": os.open(secret, os.O_RDONLY),
        "a FIFO": os.open(fifo, os.O_RDWR),
        "a device": os.open("/dev/zero", os.O_RDWR),
        "a directory": os.open(tmp_path, os.O_RDONLY),
        "a socket": os.dup(client_socket.fileno()),
        "another memfd": other.fd,
        "an object of /dev/shm": named.fd,
        "a memfd of another name": os.memfd_create("pagefold-s-" + "0" * 32),
        "a memfd without pages": os.memfd_create(made.name[1:]),
        "a number that is no descriptor": 1 << 30,
    }
    for what, fd in objects.items():
        expected = "REASON_BAD_SIZE" if what == "a memfd without pages" else "REASON_NOT_A_SEGMENT"
        assert offer(client, made.name, fd) == expected, what
    assert offer(client, named.name, named.fd) == "REASON_NOT_A_SEGMENT"
    assert offer(client, made.name, made.fd, pid=0) == "REASON_NOT_A_SEGMENT"
    assert offer(client, made.name, made.fd, pid=(1 << 32) - 1) == "REASON_NOT_A_SEGMENT"
    disguise = os.open(tmp_path / f"memfd:{disguised[1:]}", os.O_RDONLY)
    os.unlink(tmp_path / f"memfd:{disguised[1:]}")
    assert offer(client, disguised, disguise) == "REASON_NOT_A_SEGMENT"
    for name in ("", made.name[1:], "/pagefold-p-" + "0" * 32, made.name + "\n", "/../" + made.name[1:]):
        assert offer(client, name, made.fd) == "REASON_BAD_NAME"
    assert offer(client, made.name, made.fd) == "", "and all that did no harm"
    for what, fd in objects.items():
        if what not in ("an object of /dev/shm", "a number that is no descriptor"):
            os.close(fd)
    client_socket.close()
    os.close(disguise)


@pytest.mark.needs("root")
def test_another_users_memfd_is_refused_though_root_could_read_it(client: Raw, made: shm_names.LockedObject) -> None:
    os.fchown(made.fd, 65534, 65534)
    assert offer(client, made.name, made.fd) == "REASON_WRONG_OWNER"


@pytest.mark.needs("root")
def test_a_users_client_cannot_have_the_root_server_open_roots_memory(
    shared: Server, made: shm_names.LockedObject
) -> None:
    with Raw(shared.address) as raw:
        for path in (f"/dev/shm/{raw.lease.name[1:]}", f"/dev/shm/sem.{raw.doorbell[1:]}"):
            os.chown(path, 65534, 65534)
        raw.hello(label="nobody")
        assert offer(raw, made.name, made.fd) == "REASON_WRONG_OWNER"
        os.fchown(made.fd, 65534, 65534)
        assert offer(raw, made.name, made.fd) == ""


# Holds a memfd, and says what it is called; one that is not dumpable is closed to others of its user.
HOLDER = """
import ctypes, os, sys
from pagefold_core import make_object
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
assert ctypes.CDLL(None).prctl(4, int(sys.argv[1]), 0, 0, 0) == 0  # PR_SET_DUMPABLE
name, fd = make_object("memfd", 16384)
print(name, fd, flush=True)
sys.stdin.read()
"""
# What a server that is not root's, but of that user, makes of it.
LOOKER = """
import os, sys
import pagefold_server.errors
from pagefold_server.sessions.objects import Holder, Segment
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
name, pid, fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    segment = Segment(name, os.geteuid(), 4, 1000, Holder(pid, fd))
except pagefold_server.errors.ForeignObjectError as error:
    print(type(error).__name__, error)
else:
    print("taken", os.fstat(segment.fd).st_size)
"""


@pytest.mark.parametrize("dumpable", [True, False])
def test_a_server_of_the_same_user_may_look_unless_the_program_is_closed_to_it(dumpable: bool, client: Raw) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(int(dumpable))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name, fd = process.stdout.readline().split()
        said = subprocess.run(
            [sys.executable, "-c", LOOKER, name, str(process.pid), fd], capture_output=True, text=True, check=True
        ).stdout
        # The server of these tests is root's, if they are, and may look everywhere; but this is another user's.
        if os.geteuid() == 0:
            assert offer(client, name, int(fd), pid=process.pid) == "REASON_WRONG_OWNER"
        process.communicate("")
    if dumpable:
        assert said.split() == ["taken", "16384"]
    else:
        assert said.startswith("NotASegment the server finds no memfd")
        assert "same user" in said
        assert "backing='shm'" in said
