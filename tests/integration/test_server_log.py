"""The log: bounded, found again after it was renamed or removed, and never anything that something else depends on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from pagefold_server.log import Sink
from support.raw import PAGE, Raw, noise
from support.waiting import until

MIB = 1 << 20


class Logging:
    """A server whose log is said by flags and by what its stderr is."""

    def __init__(self, directory: Path, stderr: int | None, *flags: object, close: bool = False) -> None:
        self.address = f"unix:{directory}/server.sock"
        directory.mkdir(mode=0o700, exist_ok=True)
        ready, tell = os.pipe()
        words = [sys.executable, "-m", "pagefold_server", "--address", self.address, "--ready-fd", str(tell)]
        words += ["--log-format", "json", *map(str, flags)]
        if close:
            words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
        self.process = subprocess.Popen(words, env=env, stderr=stderr, pass_fds=[tell])
        os.close(tell)
        with open(ready, "rb") as pipe:
            assert pipe.read(1), "the server does not start"
        self.channel = grpc.insecure_channel(self.address)
        self.admin = admin_pb2_grpc.AdminStub(self.channel)

    def status(self) -> admin_pb2.Status:
        return self.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10)

    def works(self) -> None:
        """A client comes, merges, and goes, and each of these is a line in the log."""
        with Raw(self.address) as raw:
            raw.hello()
            raw.give(noise(1) * 2)
            report = raw.settle()
            assert (report.settled, report.merged_pages) == (True, 2)
            raw.bye()

    def end(self) -> int:
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Logging]]:
    started: list[Logging] = []

    def make(stderr: int | None, *flags: object, **more: bool) -> Logging:
        started.append(Logging(tmp_path / "server", stderr, *flags, **more))
        return started[-1]

    yield make
    for server in started:
        if server.process.poll() is None:
            server.end()


def full_disk(directory: Path) -> Path:
    """A log on a filesystem without room. Root only; in the tests' own mount namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,size=64k", "tmpfs", str(directory)], check=True)
    log = directory / "log"
    log.touch()
    with contextlib.suppress(OSError), (directory / "fill").open("wb", buffering=0) as fill:
        while True:
            fill.write(bytes(PAGE))
    return log


OBSTACLES = [
    "closed",
    "no reader",
    "a reader that stopped",
    "/dev/full",
    pytest.param("a full disk", marks=pytest.mark.needs("root")),
    "no directory",
    "a directory in its place",
    "a pipe without a reader",
]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_nothing_depends_on_a_log_line(obstacle: str, start: Callable[..., Logging], tmp_path: Path) -> None:
    """A full disk under the log, or a stderr whose reader was gone: every new client was refused, its session stayed,
    and nobody's settle() settled."""
    read, write = os.pipe()
    log, stderr = tmp_path / "log", write
    with contextlib.ExitStack() as undo:
        if obstacle == "closed":
            server = start(None, close=True)
        elif obstacle == "no reader":
            os.close(read)
            server = start(write)
        elif obstacle == "a reader that stopped":
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PAGE)
            server = start(write)
            os.set_blocking(write, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(write, b"x")
        else:
            if obstacle == "/dev/full":
                log = Path("/dev/full")
            elif obstacle == "a full disk":
                undo.callback(subprocess.run, ["umount", "-l", str(tmp_path / "disk")], check=True)
                (tmp_path / "disk").mkdir()
                log = full_disk(tmp_path / "disk")
            elif obstacle == "no directory":
                log = tmp_path / "none" / "log"
            elif obstacle == "a directory in its place":
                log.mkdir()
            else:
                os.mkfifo(log)
            server = start(stderr, "--log-file", log)
        for _ in range(3):
            server.works()
        status = server.status()
        assert status.log_lines_lost >= 3
        assert status.log_trouble
        assert status.log == ("stderr" if obstacle in OBSTACLES[:3] else str(log))
        assert status.trouble == "", "nothing of it holds merging up"
        assert server.end() == 0
        for fd in (read, write):
            with contextlib.suppress(OSError):
                os.close(fd)


def test_lines_are_told_again_when_there_is_room_again(start: Callable[..., Logging], tmp_path: Path) -> None:
    log = tmp_path / "none" / "log"
    server = start(None, "--log-file", log)
    server.works()
    lost = server.status().log_lines_lost
    assert lost
    log.parent.mkdir()
    server.works()
    assert "session opened" in log.read_text()
    assert server.status().log_lines_lost == lost


@pytest.mark.parametrize("how", ["renamed", "removed", "renamed and told by SIGHUP"])
def test_a_log_that_was_taken_away_is_begun_again(how: str, start: Callable[..., Logging], tmp_path: Path) -> None:
    """After logrotate the server wrote on into the old file, SIGHUP or not."""
    log = tmp_path / "log"
    server = start(None, "--log-file", log)
    log.rename(tmp_path / "old") if "renamed" in how else log.unlink()
    if "SIGHUP" in how:
        server.process.send_signal(signal.SIGHUP)
    else:
        server.works()
    until(log.exists, what="the log being there again")
    assert log.stat().st_mode & 0o077 == 0
    server.works()
    text = log.read_text()
    assert "session opened" in text
    assert all(json.loads(line) for line in text.splitlines())


def test_a_log_whose_directory_was_removed_is_begun_again(start: Callable[..., Logging], tmp_path: Path) -> None:
    """Cleaners take what is old of /var/tmp, and empty directories: every line after that was lost."""
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    server = start(None, "--log-file", log)
    shutil.rmtree(log.parent)
    server.works()
    assert "session opened" in log.read_text()
    assert (log.parent.stat().st_mode & 0o077, server.status().log_lines_lost) == (0, 0)


@pytest.mark.needs("root")
@pytest.mark.parametrize("sticky", [False, True])
def test_nothing_is_written_where_another_user_says(sticky: bool, tmp_path: Path) -> None:
    """A user who made the directory anew, when cleaners had taken it, had root's server write to any file."""
    log, theirs = tmp_path / "logs" / "log", tmp_path / "passwd"
    log.parent.mkdir()
    sink = Sink()
    sink.set(log, MIB)
    sink.msg("ours")
    shutil.rmtree(log.parent)
    log.parent.mkdir()
    log.symlink_to(theirs)
    os.lchown(log, 61234, 61234)
    if sticky:
        log.parent.chmod(0o1777)  # of root's: whose files are in it is everybody's choice
    else:
        os.chown(log.parent, 61234, 61234)
    sink.msg("theirs")
    assert not theirs.exists()
    assert sink.lost == 1
    if not sticky:  # there, the kernel may have been the first to refuse (fs.protected_symlinks)
        assert sink.why == "its directory belongs to uid 61234"
    log.unlink()
    os.chown(log.parent, 0, 0)
    sink.msg("ours again")
    assert log.read_text() == "ours again\n"


def test_a_log_is_bounded_and_what_others_write_to_stderr_goes_along(
    start: Callable[..., Logging], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("ab") as file:
        server = start(file.fileno(), "--log-file", log, "--log-max-bytes", 8192)
    for n in range(200):
        server.admin.SetConfig(admin_pb2.SetConfigRequest(values={"pages_to_scan": str(1000 + n)}), timeout=10)
    assert server.status().log_lines_lost == 0
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1", "server"}
    assert log.stat().st_size <= 8192
    assert Path(f"{log}.1").stat().st_size <= 8192
    stderr = os.stat(f"/proc/{server.process.pid}/fd/2")
    assert os.path.samestat(stderr, log.stat()), "it does not write on into the old one"
    assert server.end() == 0


def test_a_directory_that_forbids_to_rename_bounds_the_log_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sink = Sink()
    sink.set(log, 4096)
    Path(f"{log}.1").mkdir()
    for n in range(200):
        sink.msg(f"line {n} " + "x" * 100)
    assert log.stat().st_size <= 4096
    assert log.read_text().splitlines()[-1].startswith("line 199")
    assert sink.lost == 0
    shutil.rmtree(f"{log}.1")


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    sink = Sink()
    sink.set(log, MIB)
    write = os.write

    def little(fd: int, data: bytes) -> int:
        if len(data) > 3:
            return write(fd, data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", little)
    sink.msg("first")
    monkeypatch.undo()
    sink.msg("second")
    assert log.read_text() == "fir\nsecond\n"
    assert (sink.lost, sink.why) == (1, "No space left on device")


@pytest.mark.needs("uffd")
def test_a_closed_stderr_is_no_clients_memory(start: Callable[..., Logging], tmp_path: Path) -> None:
    """The next file that is opened gets the number: it was a frame pool's, and who writes to stderr wrote into it."""
    server = start(None, close=True)
    server.works()
    for fd in range(3):
        assert os.readlink(f"/proc/{server.process.pid}/fd/{fd}") == "/dev/null"


def test_a_line_has_no_control_characters_whatever_is_in_it(tmp_path: Path) -> None:
    sink = Sink()
    sink.set(tmp_path / "log", MIB)
    sink.msg("\x1b[1mbold\x1b[0m \x1b[2J\x1b]0;title\x07 \x9b1m caf\u00e9 \u202e \udce9 tab\tnext\nsecond\r")
    text = (tmp_path / "log").read_text()
    assert text == (
        "\x1b[1mbold\x1b[0m \\x1b[2J\\x1b]0;title\\x07 \\x9b1m caf\u00e9 \\u202e \\udce9 tab\\tnext\nsecond\\r\n"
    )
