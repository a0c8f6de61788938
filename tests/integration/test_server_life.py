"""A server's life: start, ready, the only one there, reload, drain, end. And who may call it over TCP."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pagefold
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pagefold_proto import shm_names
from pagefold_proto.addresses import default_address
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from support import kernel
from support.raw import Raw, noise, reason
from support.server import Server
from support.tenancy import tenants_server
from support.waiting import until

Serve = Callable[..., Server]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def attempt(*flags: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    return subprocess.run(
        [sys.executable, "-m", "pagefold_server", *map(str, flags)],
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


# The address


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


# TCP


def test_tcp_without_tls_or_token_is_refused_with_the_remedy() -> None:
    refused = attempt("--address", "tcp:127.0.0.1:0")
    assert refused.returncode == 4
    assert "token_file" in refused.stderr
    assert "tls_cert" in refused.stderr


@pytest.mark.parametrize(
    ("content", "mode", "remedy"),
    [
        ("short", 0o600, "openssl"),
        ("x" * 32, 0o644, "chmod 600"),
        ("x" * 32 + "\n" + "y" * 32, 0o600, "cannot be sent"),
        ("\u00e9" * 32, 0o600, "cannot be sent"),
    ],
)
def test_bad_token_files_are_refused(tmp_path: Path, content: str, mode: int, remedy: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    token.chmod(mode)
    refused = attempt("--address", "tcp:127.0.0.1:0", "--token-file", token)
    assert (refused.returncode, remedy in refused.stderr) == (4, True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tcp_with_a_token(serve: Serve, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct horse battery staple\n")
    token.chmod(0o600)
    port = _free_port()
    serve(address=f"tcp:127.0.0.1:{port}", token_file=token)
    second = attempt("--address", f"tcp:127.0.0.1:{port}", "--token-file", token)
    assert second.returncode == 4
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        status = admin_pb2.GetStatusRequest()
        for shown in ("", "Bearer wrong", "correct horse battery staple", "Bearer ", "Bearer"):
            metadata = (("authorization", shown),) if shown else ()
            with pytest.raises(grpc.RpcError) as refused:
                admin.GetStatus(status, metadata=metadata, timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert reason(refused.value) == "REASON_BAD_TOKEN"
        with pytest.raises(grpc.RpcError) as refused:
            next(admin.WatchStatus(admin_pb2.WatchStatusRequest(), timeout=10))
        assert reason(refused.value) == "REASON_BAD_TOKEN"
        right = (("authorization", "Bearer correct horse battery staple"),)
        assert admin.GetStatus(status, metadata=right, timeout=10).address == f"tcp:127.0.0.1:{port}"
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
    with Raw(f"127.0.0.1:{port}", metadata=right) as raw:
        raw.hello()


def _certificate(directory: Path, name: str) -> tuple[Path, Path]:
    key, cert = directory / f"{name}.key", directory / f"{name}.cert"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


def test_tls_that_fails_is_told_as_such(serve: Serve, tmp_path: Path) -> None:
    """A wrong certificate was reported as "no server answers": people looked for a server."""
    key, cert = _certificate(tmp_path, "localhost")
    _, other = _certificate(tmp_path, "elsewhere")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no certificate")
    token = tmp_path / "token"
    token.write_text("x" * 32)
    token.chmod(0o600)
    secure, clear, nobody = (_free_port() for _ in range(3))
    serve(address=f"tcp:localhost:{secure}", tls_cert=cert, tls_key=key)
    serve(address=f"tcp:localhost:{clear}", token_file=token)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    for host, port, ca, words in (
        ("localhost", secure, other, "vouches for"),
        ("127.0.0.1", secure, cert, "vouches for"),  # it is not the name in the certificate
        ("localhost", secure, None, "speaks TLS"),
        ("localhost", secure, nonsense, "holds no certificate"),
        ("localhost", clear, cert, "does not speak TLS"),
        ("localhost", nobody, cert, "no server answers"),
        ("localhost", nobody, None, "no server answers"),
    ):
        address = f"tcp:{host}:{port}"
        expected = pagefold.ServerUnavailable if port == nobody else pagefold.TlsFailed
        with pytest.raises(expected, match=words):
            pagefold.connect(address, ca=ca, token="x" * 32)
        flags = [] if ca is None else ["--ca", str(ca)]
        command = [sys.executable, "-m", "pagefold.cli", "status", "--address", address, *flags]
        said = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (said.returncode, words in said.stderr) == (3 if port == nobody else 1, True), said.stderr
    with pagefold.connect(f"tcp:localhost:{secure}", ca=cert) as client:
        assert client.stats().connected


def test_a_token_that_cannot_be_sent_is_an_argument_of_the_callers(tmp_path: Path) -> None:
    """One with a line break was reported as a fault of the server's."""
    for token in ("a\nb" * 8, "\u00e9" * 16, "a\0b" * 8):
        with pytest.raises(ValueError, match="token cannot be sent"):
            pagefold.connect("tcp:localhost:9", token=token)
        (tmp_path / "token").write_text(token)
        command = [sys.executable, "-m", "pagefold.cli", "status", "--address", "tcp:localhost:9"]
        said = subprocess.run([*command, "--token-file", str(tmp_path / "token")], capture_output=True, text=True)
        assert (said.returncode, "cannot be sent" in said.stderr) == (2, True), said.stderr
    with pytest.raises(pagefold.ServerUnavailable):
        pagefold.connect("tcp:localhost:9", token="around it is fine\n")


def test_tcp_with_tls(serve: Serve, tmp_path: Path) -> None:
    key, cert = _certificate(tmp_path, "localhost")
    port = _free_port()
    serve(address=f"tcp:localhost:{port}", tls_cert=cert, tls_key=key)
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(cert.read_bytes())) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        assert admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10).run == 1


# Health and reflection


def test_health_and_reflection_answer(serve: Serve) -> None:
    server = serve()
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "pagefold.v1.Memory", "pagefold.v1.Admin"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert reply.status == SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        (told,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=10)
        names = {service.name for service in told.list_services_response.service}
        assert {"pagefold.v1.Memory", "pagefold.v1.Admin", "grpc.health.v1.Health"} <= names


# The end


def test_sigterm_drains(serve: Serve) -> None:
    server = serve()
    with Raw(server.address) as raw, grpc.insecure_channel(server.address) as channel:
        raw.hello()
        pool = raw.exchange().pools[0].name
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == SERVING
        statuses = server.admin.WatchStatus(admin_pb2.WatchStatusRequest(interval_seconds=60), timeout=20)
        assert next(statuses).run == 1
        raw.give(noise(2000))
        scan = server.admin.ScanNow.future(admin_pb2.ScanNowRequest(), timeout=20)
        until(lambda: scan.done() or server.status().settling, what="the call being in flight")
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert list(statuses) == []  # ends without an error
        assert scan.result() is not None  # a call in flight is answered
        assert server.stop() == 0
        assert pool[1:] not in kernel.names()
        assert raw.lease.name[1:] in kernel.names()  # the client's own objects are the client's


def test_the_second_sigint_ends_it_at_once(serve: Serve) -> None:
    server = serve()
    with Raw(server.address) as raw, grpc.insecure_channel(server.address) as channel:
        raw.hello()
        pool = raw.exchange().pools[0].name
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == SERVING
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        assert next(watch).status == NOT_SERVING  # an open stream keeps it from ending before its grace is over
        assert server.stop(signal.SIGINT) == 130
        assert pool[1:] not in kernel.names()
        assert list(server.directory.glob("server.[sp]*")) == []


def test_it_ends_by_itself_when_nobody_has_been_there_for_long(serve: Serve) -> None:
    server = serve(idle_exit_seconds=0.5)
    with Raw(server.address) as raw:
        raw.hello()
        assert server.process is not None
        with pytest.raises(TimeoutError):
            server.process.wait(1.2)
    assert server.process.wait(10) == 0


# Settings


def test_sighup_reloads_the_file_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    file = tmp_path / "server.toml"
    file.write_text("pages_to_scan = 100\nlog_format = 'json'\n")
    ready, tell = os.pipe()
    address = f"unix:{tmp_path}/server.sock"
    log = tmp_path / "log"
    flags = ["--config", str(file), "--address", address, "--ready-fd", str(tell), "--sleep-millisecs", "7"]
    with (
        log.open("w") as stderr,
        subprocess.Popen([sys.executable, "-m", "pagefold_server", *flags], pass_fds=[tell], stderr=stderr) as process,
    ):
        os.close(tell)
        with open(ready, "rb") as pipe:
            pipe.read()
        with grpc.insecure_channel(address) as channel:
            admin = admin_pb2_grpc.AdminStub(channel)

            def setting(key: str) -> tuple[str, str]:
                found = {s.key: s for s in admin.GetConfig(admin_pb2.GetConfigRequest(), timeout=10).settings}
                return found[key].value, found[key].origin

            assert setting("pages_to_scan") == ("100", "file")
            assert setting("sleep_millisecs") == ("7", "flag")
            file.write_text("pages_to_scan = 200\nsleep_millisecs = 9\nlog_format = 'console'\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: setting("pages_to_scan") == ("200", "file"))
            assert setting("sleep_millisecs") == ("7", "flag")
            assert setting("log_format") == ("json", "file")
            until(lambda: "need a restart" in log.read_text())
            file.write_text("pages_to_scan = 'many'\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: "not reloaded" in log.read_text())
            assert setting("pages_to_scan") == ("200", "file")
        process.terminate()
    assert process.returncode == 0


def test_a_bad_setting_ends_the_start() -> None:
    refused = attempt("--pages-to-scan", "0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "pages_to_scan" in refused.stderr
    assert attempt(PAGEFOLD_CPU_CEILING_PERCENT="1000").returncode == 2
    assert attempt("--config", "/does/not/exist").returncode == 2


def test_stale_names_are_swept_at_start(serve: Serve, no_names: None) -> None:
    made = [shm_names.create_locked(kind, 0o600, 10) for kind in ("s", "l", "p")]
    for stale in made[:2]:
        os.close(stale.fd)  # lets the lock go
    server = serve()
    until(lambda: not {stale.name[1:] for stale in made[:2]} & kernel.names(), what="the sweep")
    assert made[2].name[1:] in kernel.names()
    server.stop()
    shm_names.remove(made[2].name)
    os.close(made[2].fd)
