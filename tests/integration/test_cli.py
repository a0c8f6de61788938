"""The command line against a real server: what scripts get, what people see, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pagefold as library
import pytest
from pagefold.testing import embedded_server
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import Worker

MIB = 1 << 20
CLI = [sys.executable, "-m", "pagefold.cli"]
Work = Callable[..., Worker]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_") and k != "COLUMNS"}
    return kept | more


def pagefold(address: str, *words: str, code: int | None = 0, **env: str) -> str:
    """Runs a command and returns what it printed; nobody may ever see a traceback."""
    env = environment(PAGEFOLD_ADDRESS=address, **env)
    ended = subprocess.run([*CLI, *words], env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ended.stderr
    assert code in (None, ended.returncode), ended.stderr
    return ended.stdout if code != 2 else ended.stderr


def told(address: str, *words: str, code: int = 0, **env: str) -> Any:
    return json.loads(pagefold(address, *words, "--json", code=code, **env))


def test_status_clients_and_domains(server: Server, work: Work) -> None:
    workers = [work(), work()]
    for worker in workers:
        worker.call("allocate", "a", MIB)
        worker.call("write", "a", 0, os.urandom(16) * (MIB // 16))
    status = told(server.address, "status", "--domains")
    assert (status["clients"], status["segments"], status["page_size"]) == (2, 2, os.sysconf("SC_PAGE_SIZE"))
    assert [domain["clients"] for domain in status["domains"]] == [2]
    assert [(tenant["uid"], tenant["sessions"]) for tenant in status["tenants"]] == [(os.getuid(), 2)]
    assert [client["pid"] for client in told(server.address, "clients")["clients"]] == [w.pid for w in workers]
    segments = told(server.address, "clients", "--segments")["segments"]
    assert all(Path("/dev/shm", segment["name"].lstrip("/")).exists() for segment in segments)
    first = told(server.address, "clients")["clients"][0]["client"]
    assert {s["client"] for s in told(server.address, "clients", "--segments", "--client", str(first))["segments"]} == {
        first
    }
    for words in (["status", "--domains"], ["clients"], ["clients", "--segments"]):
        assert str(workers[0].pid if words == ["clients"] else 2) in pagefold(server.address, *words)
    narrow = pagefold(server.address, "clients", COLUMNS="80")
    assert all(str(worker.pid) in narrow for worker in workers), "what is typed again is not cut off"


@pytest.mark.needs("uffd")
def test_scan_now_merges_and_unmerge_gives_back(server: Server, work: Work) -> None:
    workers = [work(), work()]
    for worker in workers:
        worker.call("allocate", "a", MIB)
        worker.call("fill_pages", "a", list(range(1, 257)))
    report = told(server.address, "scan", "now", "--timeout", "30")
    assert report["settled"]
    assert report["saved_bytes"] == MIB
    assert told(server.address, "status")["saved_bytes"] == MIB
    assert "saves 1 MiB" in pagefold(server.address, "status")
    assert told(server.address, "scan", "unmerge", "--wait", "30") == {"run": 2, "merged_pages_left": 0}
    assert told(server.address, "status")["counters"]["pages_sharing"] == 0


def test_scan_stop_and_start(server: Server) -> None:
    assert told(server.address, "scan", "stop") == {"run": 0}
    assert "pagefold scan start" in told(server.address, "status")["trouble"]
    pagefold(server.address, "scan", "now", code=1)
    assert told(server.address, "scan", "start") == {"run": 1}
    assert told(server.address, "status")["trouble"] == ""
    assert told(server.address, "scan", "now")["settled"]


def test_config(server: Server) -> None:
    settings = {s["key"]: s for s in told(server.address, "config", "get")["settings"]}
    assert settings["pages_to_scan"]["default_value"] == "32768"
    assert pagefold(server.address, "config", "get", "pages-to-scan") == "32768\n"
    changed = told(server.address, "config", "set", "pages_to_scan=64", "sleep-millisecs=7")["settings"]
    assert {s["key"]: (s["value"], s["origin"]) for s in changed} == {
        "pages_to_scan": ("64", "live"),
        "sleep_millisecs": ("7", "live"),
    }
    assert told(server.address, "config", "get", "pages_to_scan")["value"] == "64"
    said = pagefold(server.address, "config", "set", "pages_to_scan=128", "run=5", code=2)
    assert said.startswith("pagefold: run: ")
    assert pagefold(server.address, "config", "get", "pages_to_scan") == "64\n"  # all or nothing
    assert "restart" in pagefold(server.address, "config", "set", "engine=reference", code=2)
    assert "no such setting" in pagefold(server.address, "config", "get", "nonsense", code=2)


def test_status_watch_until_ctrl_c_and_until_the_server_stops(server: Server) -> None:
    words = [*CLI, "status", "--watch", "--interval", "0.1", "--json"]
    for stop, code in ((lambda p: p.send_signal(signal.SIGINT), 130), (lambda _: server.stop(), 3)):
        with subprocess.Popen(
            words, env=environment(PAGEFOLD_ADDRESS=server.address), stdout=-1, stderr=-1, text=True
        ) as watching:
            assert watching.stdout is not None
            uptimes = [json.loads(watching.stdout.readline())["uptime_seconds"] for _ in range(3)]
            assert uptimes == sorted(uptimes)
            stop(watching)
            _, said = watching.communicate(timeout=30)
        assert watching.returncode == code
        assert "Traceback" not in said


def test_serve_answers_and_ends_when_asked(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    address = f"unix:{tmp_path}/server.sock"
    config = tmp_path / "pagefold.toml"
    config.write_text("pages_to_scan = 99\nsleep_millisecs = 1\n")
    ready, tell = os.pipe()
    words = ["serve", "--config", str(config), "--set", "sleep-millisecs=2", "--ready-fd", str(tell)]
    with subprocess.Popen(
        [*CLI, *words], env=environment(PAGEFOLD_ADDRESS=address), pass_fds=[tell], stderr=-1, text=True
    ) as serving:
        os.close(tell)
        with open(ready, "rb") as pipe:
            assert pipe.read(1)
        origins = {s["key"]: (s["value"], s["origin"]) for s in told(address, "config", "get")["settings"]}
        assert origins["pages_to_scan"] == ("99", "file")
        assert origins["sleep_millisecs"] == ("2", "flag")
        pagefold(address, "serve", code=1)  # one server a socket
        serving.send_signal(signal.SIGINT)
        _, said = serving.communicate(timeout=30)
    assert serving.returncode == 0
    assert "Traceback" not in said
    pagefold(address, "status", code=3)


def test_stop_ends_the_server_and_nothing_else(serve: Callable[..., Server], work: Work, tmp_path: Path) -> None:
    server = serve()
    worker = work(address=server.address)
    worker.call("allocate", "a", MIB)
    worker.call("write", "a", 0, b"x" * MIB)
    other = serve()
    assert told(server.address, "stop") == {"pid": server.pid, "stopped": True}
    assert not (server.directory / "server.sock").exists()
    assert server.process is not None
    assert server.process.wait(10) == 0
    assert worker.call("read", "a", 0, MIB) == b"x" * MIB
    pagefold(server.address, "stop", code=3)
    assert told(other.address, "status")["pid"] == other.pid
    assert f"pid {other.pid}) has ended" in pagefold(other.address, "stop")


def test_where_server_socket_and_log_are_is_told(tmp_path: Path) -> None:
    with Server(tmp_path / "server", log_file=tmp_path / "log") as server:
        assert told(server.address, "status")["log"] == str(tmp_path / "log")
        for words in (["status"], ["doctor"]):
            said = " ".join(pagefold(server.address, *words, code=None, COLUMNS="400").split())
            for what in (server.address, str(tmp_path / "log"), f"pid {server.pid}"):
                assert what in said


def test_tcp_with_a_token(serve: Callable[..., Server], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(0o600)
    with Server(tmp_path / "tcp", address="tcp:127.0.0.1:0", token_file=token) as server:
        found = until(lambda: re.search(r'"address": "(tcp:[^"]+)"', server.log.read_text()))
        address = found[1]
        assert told(address, "status", "--token-file", str(token))["address"] == address
        assert told(address, "status", PAGEFOLD_TOKEN=token.read_text())["run"] == 1
        pagefold(address, "status", code=1)


def checks(report: Any) -> dict[str, Any]:
    return {check["name"]: check for check in report["checks"]}


@pytest.mark.needs("uffd")
def test_doctor_with_a_server(server: Server) -> None:
    report = told(server.address, "doctor")
    assert report["able"]
    assert checks(report)["barrier"]["state"] == checks(report)["server"]["state"] == "ok"
    assert "protocol 1" in checks(report)["server"]["found"]
    assert "this machine can merge" in pagefold(server.address, "doctor")


def test_doctor_says_off_where_the_kernel_lacks_it(server: Server) -> None:
    report = told(server.address, "doctor", code=1, PAGEFOLD_DISABLE="uffd,user")
    assert not report["able"]
    assert (checks(report)["barrier"]["state"], checks(report)["barrier"]["found"]) == ("fail", "off")
    assert "see client, barrier" in pagefold(server.address, "doctor", code=1, PAGEFOLD_DISABLE="uffd,user")


def test_doctor_without_a_server(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    none = f"unix:{tmp_path}/none.sock"
    assert checks(told(none, "doctor"))["server"]["state"] == "ok"
    assert checks(told(none, "doctor", code=1, PAGEFOLD_AUTOSTART="0"))["server"]["state"] == "fail"
    assert checks(told("tcp:127.0.0.1:9", "doctor", code=1))["server"]["state"] == "fail"
    tmp_path.chmod(0o755)
    open_to_others = checks(told(none, "doctor", code=1))["server"]
    assert open_to_others["state"] == "fail"
    assert f"chmod 700 {tmp_path}" in open_to_others["remedy"]


def test_a_server_that_is_stopped_is_not_taken_for_none(server: Server) -> None:
    """doctor tried a server of its own, and said that the machine can merge, and that connect() would start one."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        found = checks(told(server.address, "doctor", code=1))
        for name in ("server", "client"):
            assert found[name]["state"] == "fail"
            assert f"process {server.pid} listens" in found[name]["meaning"]
        with pytest.raises(library.ServerUnavailable, match=f"process {server.pid} listens"):
            library.connect(server.address, autostart=False)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_doctor_warns_of_stopped_scanning_and_of_fork_support(server: Server) -> None:
    server.configure(run=0)
    report = told(server.address, "doctor", code=1, GRPC_ENABLE_FORK_SUPPORT="0")
    assert "pagefold scan start" in checks(report)["server"]["meaning"]
    assert checks(report)["fork_support"]["state"] == "warn"


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("no_names")
def test_demo_saves_what_can_be_saved_and_loses_nothing(tmp_path: Path) -> None:
    result = told("", "demo", "--workers", "3", "--mib", "16", TMPDIR=str(tmp_path))
    assert result["verified"] is True
    assert result["lost_bytes"] == 0
    assert (result["workers"], result["bytes_per_worker"]) == (3, 16 * MIB)
    assert result["distinct_bytes"] == (14 + 3) * MIB
    assert result["ideal_saved_bytes"] == 3 * 16 * MIB - result["distinct_bytes"]
    assert result["saved_bytes"] == result["physical_before"] - result["physical_after"]
    assert result["saved_bytes"] >= 0.95 * result["ideal_saved_bytes"]
    assert result["written_bytes"] <= result["returned_bytes"] <= result["written_bytes"] + MIB // 2
    assert result["settle_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("no_names")
def test_demo_on_a_terminal_and_in_a_log() -> None:
    assert "every byte verified, memory saved" in pagefold("", "demo", "--workers", "2", "--mib", "8")
    screen, terminal = pty.openpty()
    words = [*CLI, "demo", "--workers", "2", "--mib", "8"]
    with subprocess.Popen(words, env=environment(TERM="xterm"), stdout=terminal, stderr=terminal) as running:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # EIO: the other end is closed
                break
            shown += piece
    os.close(screen)
    assert running.returncode == 0
    text = shown.decode()
    assert "physical memory" in text
    assert "every byte verified, memory saved" in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_demo_with_barrier_off_says_so() -> None:
    env = environment(PAGEFOLD_DISABLE="uffd,user")
    ended = subprocess.run(
        [*CLI, "demo", "--workers", "2", "--mib", "1"], env=env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "pagefold doctor" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize("after", ["worker processes", "each loaded", "merged"])
def test_demo_ends_at_ctrl_c_and_leaves_nothing(after: str, tmp_path: Path) -> None:
    words = [*CLI, "demo", "--workers", "2", "--mib", "32"]
    with subprocess.Popen(
        words, env=environment(TMPDIR=str(tmp_path)), stdout=-1, stderr=-1, text=True, process_group=0
    ) as running:
        assert running.stdout is not None
        while after not in running.stdout.readline():
            assert running.poll() is None
        children = descendants(running.pid)
        assert len(children) == 3  # the server and two workers
        os.killpg(running.pid, signal.SIGINT)  # what a terminal does
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said == ""
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_nothing_for_long() -> None:
    """A demo that is killed outright cannot clean up: its workers see their pipe close, its server sees them go."""
    names = kernel.names()
    with tempfile.TemporaryDirectory() as directory:
        words = [*CLI, "demo", "--workers", "2", "--mib", "8"]
        with subprocess.Popen(words, env=environment(TMPDIR=directory), stdout=-1, text=True) as running:
            assert running.stdout is not None
            while "worker processes" not in running.stdout.readline():
                assert running.poll() is None
            children = descendants(running.pid)
            running.kill()
        workers = [pid for pid in children if "_demo.workers" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 2
        until(lambda: not any(alive(pid) for pid in workers), what="the workers' end")
        for pid in set(children) - set(workers):
            os.kill(pid, signal.SIGTERM)  # it would end by itself, in 20 seconds
            until(lambda pid=pid: not alive(pid), what="the server's end")  # type: ignore[misc]
        until(lambda: kernel.names() <= names, what="the end of the names")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid: int) -> list[int]:
    """The children that the main thread started; the demo starts its own nowhere else."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


COMMANDS = ["status", "status --watch --json", "clients", "config get run", "scan now", "fsck", "--version", "--help"]


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_a_line_and_no_traceback(server: Server, words: str, unbuffered: str) -> None:
    env = environment(PAGEFOLD_ADDRESS=server.address, PYTHONUNBUFFERED=unbuffered)
    with open("/dev/full", "w") as full:
        command = [*CLI, *words.split()]
        ended = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode != 0
    assert ended.stderr == "pagefold: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("words", ["status", "status --json", "fsck", "--help"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_descriptors_change_no_exit_code(server: Server, words: str, closed: str) -> None:
    """What was printed went to the next file that was opened, a socket of gRPC's say; or there was a traceback."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *CLI, *words.split()]
    env = environment(PAGEFOLD_ADDRESS=server.address)
    ended = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full"])
def test_no_server_is_3_even_where_nobody_can_be_told(tmp_path: Path, closed: str) -> None:
    env = environment(PAGEFOLD_ADDRESS=f"unix:{tmp_path}/none.sock")
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *CLI, "status"]
    assert subprocess.run(shell, env=env, stderr=subprocess.DEVNULL, timeout=60).returncode == 3


def test_a_reader_that_has_seen_enough_is_no_error(server: Server) -> None:
    env = environment(PAGEFOLD_ADDRESS=server.address)
    for words in ("config get", "status --watch --interval 0.1", "status --watch --interval 0.1 --json"):
        with subprocess.Popen([*CLI, *words.split()], env=env, stdout=-1, stderr=-1, text=True) as said:
            assert said.stdout is not None
            assert said.stderr is not None
            assert said.stdout.read(1)
            said.stdout.close()
            assert said.stderr.read() == ""


@pytest.mark.parametrize("more", [[], ["--segments"], ["--json"], ["--segments", "--json"]])
def test_a_client_that_is_not_there_is_said_so(server: Server, work: Work, more: list[str]) -> None:
    """It was told "no clients", and exit code 0."""
    work()
    env = environment(PAGEFOLD_ADDRESS=server.address)
    ended = subprocess.run([*CLI, "clients", "--client", "99", *more], env=env, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "there is no client 99" in ended.stderr
    assert ended.stdout == ""
    assert pagefold(server.address, "clients", "--client", "1", *more)


def test_the_package_is_the_command() -> None:
    said = [
        subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
        for module in ("pagefold", "pagefold.cli")
    ]
    assert said[0].stdout == said[1].stdout
    assert "Usage: pagefold" in said[0].stdout


def test_doctor_in_a_pipe_fits_a_page(server: Server) -> None:
    """But for the remedies: a command that is cut in the middle of a word cannot be copied."""
    lines = pagefold(server.address, "doctor").splitlines()
    remedies = [line for line in lines if line.startswith("    -> ")]
    assert max(len(line) for line in lines if line not in remedies) <= 80
    assert any("/etc/sysctl.d/60-pagefold.conf" in line for line in remedies)
    wide = pagefold(server.address, "doctor", COLUMNS="120").splitlines()
    assert 80 < max(len(line) for line in wide if not line.startswith("    -> ")) <= 120


@pytest.mark.parametrize("seconds", ["inf", "1e10", "1e300"])
def test_any_number_of_seconds_will_do(server: Server, seconds: str) -> None:
    assert told(server.address, "scan", "now", "--timeout", seconds)["settled"]
    assert told(server.address, "scan", "unmerge", "--wait", seconds)["merged_pages_left"] == 0
    assert told(server.address, "scan", "start") == {"run": 1}
    assert told(server.address, "fsck", "--patience", seconds)["clean"]
    with subprocess.Popen(
        [*CLI, "status", "--watch", "--interval", seconds, "--json"],
        env=environment(PAGEFOLD_ADDRESS=server.address),
        stdout=-1,
        stderr=-1,
    ) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["uptime_seconds"] > 0
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 130


def test_a_long_directory_for_temporary_files_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Unix socket's path has 107 bytes at most; the demo's was in $TMPDIR, whatever that was."""
    for length in (40, 120, 200):
        long = tmp_path / ("d" * length)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with embedded_server() as address:
            assert told(address, "status")["clients"] == 0
            assert Path(address.removeprefix("unix:")).parent.stat().st_mode & 0o777 == 0o700
        assert list(long.iterdir()) == []
