"""A server's address: it has one server, is private, is made again if removed, and is the same for all programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pagefold
import pytest
from pagefold_proto.addresses import default_address
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from support import kernel
from support.raw import Raw, noise, reason
from support.server import Server
from support.starting import Serve, attempt
from support.tenancy import tenants_server
from support.waiting import until


def test_socket_and_pid_file_are_private_and_go_at_the_end(serve: Serve) -> None:
    server = serve()
    socket, pid_file = server.directory / "server.sock", server.directory / "server.pid"
    assert socket.stat().st_mode & 0o077 == 0
    assert pid_file.stat().st_mode & 0o077 == 0
    assert pid_file.read_text() == f"{server.pid}\n"
    assert server.stop() == 0
    assert not socket.exists()
    assert not pid_file.exists()


def test_a_second_server_names_the_first_and_leaves_it_alone(serve: Serve) -> None:
    server = serve()
    second = attempt("--address", server.address)
    assert second.returncode == 3
    assert f"pid {server.pid}" in second.stderr
    assert server.status().pid == server.pid


# What somebody removes
def connects(server: Server) -> bool:
    """Whether a client that comes now gets a session."""
    try:
        with Raw(server.address) as raw:
            raw.hello()
            raw.bye()
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize("gone", [["sock"], ["pid"], ["sock", "pid"], []], ids=" and ".join)
def test_what_is_removed_is_there_again_and_keeps_a_second_server_out(serve: Serve, gone: list[str]) -> None:
    """Cleaners of /tmp remove the socket of a server that lives: no program could connect until it ended. Without the
    pid file a second server took the socket, which the first one unlinked when it ended."""
    server = serve()
    files = {name: server.directory / f"server.{name}" for name in ("sock", "pid")}
    with Raw(server.address) as early:
        early.hello()
        if gone:
            for name in gone:
                files[name].unlink()
        else:
            shutil.rmtree(server.directory)
        if len(gone) != 1:  # else a second server may be faster: see the next test but one
            until(lambda: connects(server), what="the socket being there again")
        second = attempt("--address", server.address)
        assert (second.returncode, "another server" in second.stderr) == (3, True)
        until(lambda: connects(server), what="the socket being there again")
        until(lambda: files["pid"].exists(), what="the pid file being there again")
        assert files["pid"].read_text() == f"{server.pid}\n"
        assert files["sock"].stat().st_mode & 0o077 == 0
        assert server.directory.stat().st_mode & 0o077 == 0
        early.give(noise(1))
        assert early.settle().settled, "who was connected goes on"
    server.stop()
    assert not files["sock"].exists()
    assert not files["pid"].exists()


@pytest.mark.needs("root")
def test_the_socket_for_other_users_is_there_again_too(tmp_path: Path) -> None:
    with tenants_server(tmp_path / "server") as (server, address):
        directory = Path(address.removeprefix("unix:")).parent
        for path in (*directory.iterdir(), directory):
            path.rmdir() if path.is_dir() else path.unlink()
        until(lambda: (directory / "server.sock").is_socket(), what="the socket being there again")
        assert (directory / "server.sock").stat().st_mode & 0o777 == 0o666
        assert directory.stat().st_mode & 0o777 == 0o755
        assert server.status().pid == server.pid


def test_a_server_that_lost_its_address_ends_and_leaves_the_files_and_frames_to_the_next(serve: Serve) -> None:
    first = serve()
    with Raw(first.address) as raw:
        raw.hello()
        pool = raw.exchange().pools[0].name
        assert first.process is not None
        first.process.send_signal(signal.SIGSTOP)  # it does not see what happens for now
        for name in ("sock", "pid"):
            (first.directory / f"server.{name}").unlink()
        second = serve(address=first.address)
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(20) == 0
        assert (first.directory / "server.pid").read_text() == f"{second.pid}\n"
        assert connects(second)
        assert "another server has the address" in first.log.read_text()
        until(lambda: pool[1:] not in kernel.names(), what="the first one's pool going, which nobody maps")


def test_what_another_put_in_the_place_is_not_unlinked(serve: Serve) -> None:
    server = serve()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    kept = server.directory / "server.sock"
    kept.unlink()
    kept.write_text("dear diary")
    server.process.send_signal(signal.SIGCONT)
    until(lambda: "cannot be had again yet" in server.log.read_text(), what="the server saying so")
    server.stop()
    assert kept.read_text() == "dear diary"


@pytest.mark.parametrize("name", ["a%2Fb", "a#b", "a?b", "a%25b", "a b;c&d=e@f[g]", "caf\u00e9", "caf\udce9", "a\\b"])
def test_a_path_means_the_same_to_server_client_and_command_line(tmp_path: Path, name: str) -> None:
    """grpc takes a path for a part of a URI: the server was at a/b, and the client looked for a%2Fb."""
    tmp_path.chmod(0o700)
    address = f"unix:{tmp_path}/{name}"
    with Server(tmp_path / "log", address=address):
        assert os.fsencode(name) in os.listdir(os.fsencode(tmp_path))
        with pagefold.connect(address, autostart=False) as client:
            assert client.stats().connected
        env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")} | {"PAGEFOLD_ADDRESS": address}
        told = subprocess.run([sys.executable, "-m", "pagefold.cli", "status", "--json"], env=env, capture_output=True)
        assert told.returncode == 0, told.stderr
    assert sorted(os.listdir(tmp_path)) == ["log"]


def test_a_program_with_a_name_that_is_no_text_connects_and_is_shown(server: Server, tmp_path: Path) -> None:
    """Its name is not UTF-8: connect() raised UnicodeEncodeError. And a raw client may say what it likes."""
    code = "import pagefold, sys\nwith pagefold.connect(sys.argv[1]): print('connected', flush=True); sys.stdin.read()"
    program = os.fsencode(tmp_path) + b"/\xe9t\xe9\x1b[2J.py"
    with open(program, "w") as file:
        file.write(code)
    words = [os.fsencode(sys.executable), program, os.fsencode(server.address)]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True) as running, Raw(server.address) as raw:
        assert running.stdout is not None
        assert running.stdout.readline() == "connected\n"
        raw.hello(program="\x1b[31mred\nnew line", label="\x1b]0;x\x07")
        programs = {client.program for client in server.clients()}
        assert programs == {"\\udce9t\\udce9\\x1b[2J.py", "\x1b[31mred\nnew line"}
        running.communicate(timeout=20)
    assert running.returncode == 0
    assert all(line.isprintable() for line in server.log.read_text().split("\n"))


def test_a_killed_server_is_succeeded_at_once(serve: Serve) -> None:
    server = serve()
    with Raw(server.address) as raw:
        raw.hello()
        pool = raw.exchange().pools[0].name
        server.kill()
        assert pool[1:] in kernel.names()
        server.start()
        until(lambda: pool[1:] not in kernel.names(), what="the dead server's pool being swept")
        with pytest.raises(grpc.RpcError) as refused:
            raw.exchange()
        assert reason(refused.value) == "REASON_UNKNOWN_SESSION"
        raw.hello()


def test_the_directory_is_made_and_must_be_ours_alone(tmp_path: Path) -> None:
    for mode in (0o755, 0o770, 0o1777):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(mode)
        refused = attempt("--address", f"unix:{tmp_path}/open/server.sock")
        assert (refused.returncode, "chmod 700" in refused.stderr) == (4, True)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert attempt("--address", f"unix:{tmp_path}/link/server.sock").returncode == 4
    assert attempt("--address", f"unix:{tmp_path}/not/there/server.sock").returncode == 4


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "server.sock").write_text("dear diary")
    refused = attempt("--address", f"unix:{tmp_path}/server.sock")
    assert (refused.returncode, "no socket" in refused.stderr) == (4, True)
    assert (tmp_path / "server.sock").read_text() == "dear diary"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.sock"]


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    refused = attempt("--address", f"unix:{tmp_path}/{'x' * 108}")
    assert (refused.returncode, "107" in refused.stderr) == (2, True)


@pytest.fixture
def own_place() -> Iterator[Path]:
    """This user's default directory; in a /dev/shm of the tests' own."""
    place, logs = Path(default_address().removeprefix("unix:")).parent, Path(f"/var/tmp/pagefold-{os.geteuid()}")
    there = logs.exists()
    assert not place.exists()
    yield place
    for made in (place, logs) if not there else (place,):
        shutil.rmtree(made, ignore_errors=True)


SHARED_TABLE = """
import os, sys, numpy, pagefold
with pagefold.connect() as client:
    table = client.array(numpy.arange(1 << 18))
    print("ready", flush=True)
    sys.stdin.readline()
    print(client.settle(30).saved_bytes, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.needs("root", "uffd")
def test_programs_of_a_user_share_whatever_their_environment(own_place: Path, tmp_path: Path) -> None:
    """One had XDG_RUNTIME_DIR (a login), the other had not (cron, sudo, a service): two servers, in silence."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEFOLD", "XDG", "HOME", "TMP"))}
    login = plain | {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", SHARED_TABLE]
    with (
        subprocess.Popen(words, env=login, stdin=-1, stdout=-1, text=True) as one,
        subprocess.Popen(words, env=plain, stdin=-1, stdout=-1, text=True) as two,
    ):
        for expected in ("ready", str(2 << 20)):
            for program in (one, two):
                assert program.stdout is not None
                assert program.stdout.readline().strip() == expected
            for program in (one, two):
                assert program.stdin is not None
                program.stdin.write("\n")
                program.stdin.flush()
    assert (one.returncode, two.returncode) == (0, 0)
    pid = int((own_place / "server.pid").read_text())
    with grpc.insecure_channel(f"unix:{own_place}/server.sock") as channel:
        status = admin_pb2_grpc.AdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=10)
    assert (status.pid, status.log) == (pid, f"/var/tmp/pagefold-{os.geteuid()}/server.log")
    assert own_place.stat().st_mode & 0o777 == 0o700
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), what="the server's end")


@pytest.mark.needs("root")
def test_a_sandbox_with_its_own_shm_has_its_own_server_and_says_so_where_it_cannot(
    own_place: Path, serve: Serve
) -> None:
    """The first program's sandbox started the user's server, and everybody outside was refused from then on."""
    server = serve()
    inside = subprocess.run(
        [sys.executable, "-c", IN_A_SANDBOX, server.address],
        cwd=Path(__file__).parents[1],
        env={k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert inside.returncode == 0, inside.stderr
    pid = int(inside.stdout)
    assert pid > 0
    assert not own_place.exists(), "outside there is none"
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), what="the server's end")


IN_A_SANDBOX = """
import sys, pagefold
from pathlib import Path
from pagefold_proto.addresses import default_address
from support.namespace import own_shm
assert own_shm("64m")
try:
    pagefold.connect(sys.argv[1])
except pagefold.ServerRefused as error:
    assert "different containers or mount namespaces" in str(error), error
with pagefold.connect() as client:
    assert client.stats().connected
print(Path(default_address().removeprefix("unix:").replace(".sock", ".pid")).read_text())
"""
