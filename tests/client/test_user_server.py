"""A server that is started because none answers, and what is said when that cannot be. Real processes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pagefold
import pytest
from pagefold._launch import boot, user_server
from pagefold._launch.launch import CLIENTS, KEPT, NotReady, launch, server_environment
from pagefold_proto import addresses
from support.waiting import until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pagefold_server.__main__") is None, reason="there is no server in this tree"
)


@pytest.fixture
def address(tmp_path: Path, no_names: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("PAGEFOLD_")]:
        monkeypatch.delenv(name)
    directory = tmp_path / "run"
    yield f"unix:{directory}/server.sock"
    pid = server_pid(directory)
    if pid:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists(), what="the server's end")


def server_pid(directory: Path) -> int:
    try:
        return int((directory / "server.pid").read_text() or 0)
    except FileNotFoundError:
        return 0


def test_a_server_is_started_and_is_nobodys_child(address: str) -> None:
    directory = Path(address.removeprefix("unix:")).parent
    with pagefold.connect(address) as client:
        assert client.stats().connected
        pid = server_pid(directory)
        assert pid > 0
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        parent, session = int(stat[1]), int(stat[3])
        assert parent != os.getpid()
        assert session != os.getsid(0)
        status = Path(f"/proc/{pid}/status").read_text().split()
        assert int(status[status.index("SigBlk:") + 1], 16) == 0, "no signal reaches who started it, but all reach it"
    assert (directory / "server.log").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    with pagefold.connect(address):
        assert server_pid(directory) == pid, "the second client found the first one's"


def test_programs_that_start_at_once_share_one_server(address: str) -> None:
    code = f"import pagefold\nwith pagefold.connect({address!r}) as c: assert c.stats().connected"
    programs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for program in programs:
        assert (program.communicate(timeout=60)[1], program.returncode) == ("", 0)
    log = Path(address.removeprefix("unix:").removesuffix(".sock") + ".log").read_text()
    assert log.count('"serving"') == 1 or log.count("serving") == 1


def test_no_server_ends_as_an_interpreter_of_another_version_does() -> None:
    """One whose address another server had was told as "not the Python that this program runs in"."""
    from pagefold_server import __main__, errors

    codes = {0, 1, __main__.EXIT_BAD_CONFIG, errors.AlreadyRunning.exit_code, errors.AddressRefused.exit_code}
    assert boot.EXIT_OTHER_PYTHON not in codes


def test_a_stale_socket_is_no_server(address: str) -> None:
    path = Path(address.removeprefix("unix:"))
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert not user_server.answers(addresses.parse(address))
    with pagefold.connect(address) as client:
        assert client.stats().connected


@pytest.mark.parametrize("off", [{"autostart": False}, {}])
def test_without_autostart_the_error_names_the_command(
    address: str, off: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEFOLD_AUTOSTART", "0")
    monkeypatch.setenv("PAGEFOLD_ADDRESS", address)
    with pytest.raises(pagefold.ServerUnavailable, match="pagefold serve") as info:
        pagefold.connect(**off)
    assert address in str(info.value)


def test_no_server_is_started_for_tcp(no_names: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(pagefold.ServerUnavailable, match="pagefold serve"):
        pagefold.connect(f"tcp:127.0.0.1:{port}")


def test_without_the_servers_packages_the_error_names_the_extra(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_server, "NEEDED", ("pagefold_server", "no_such_package"))
    with pytest.raises(pagefold.ServerUnavailable, match=r"no_such_package .* pip install 'pagefold\[server\]'"):
        pagefold.connect(address)


def test_a_server_that_does_not_start_is_quoted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_server, "_FASTER_ONE_SECONDS", 0.1)
    monkeypatch.setenv("PAGEFOLD_CPU_CEILING_PERCENT", "a lot")
    with pytest.raises(pagefold.ServerUnavailable, match=r"server\.log ends with:(.|\n)*a lot"):
        pagefold.connect(address)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("options", "before", "after", "text"),
    [
        ("size=64k", lambda d: _fill(d / "fill"), [], "is full: free some room"),
        ("nr_inodes=1", lambda _: None, [], "is full: free some room"),
        ("nr_inodes=3", lambda _: None, [], "is full: free some room"),
        ("size=64k", lambda _: None, ["-o", "remount,ro"], "Read-only file system"),
    ],
)
def test_a_directory_without_room_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch, options: str, before: Any, after: list[str], text: str
) -> None:
    """A server that could write neither its pid file nor its log was quoted with "(nothing)", or as an OSError."""
    monkeypatch.setattr(user_server, "_FASTER_ONE_SECONDS", 0.1)
    directory = Path(address.removeprefix("unix:")).parent
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", directory], check=True)
    try:
        before(directory)
        if after:
            subprocess.run(["mount", *after, directory], check=True)
        with pytest.raises(pagefold.ServerUnavailable, match=text):
            pagefold.connect(address)
    finally:
        subprocess.run(["umount", directory], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_directory_that_others_can_write_to_is_refused(address: str) -> None:
    directory = Path(address.removeprefix("unix:")).parent
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(pagefold.ServerUnavailable, match="chmod 700"):
        pagefold.connect(address)


def test_a_default_directory_that_others_can_write_to_is_refused_even_with_a_server(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody could listen there."""
    monkeypatch.setattr(addresses, "default_address", lambda: address)
    directory = Path(address.removeprefix("unix:")).parent
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(ValueError, match="chmod 700"):
        pagefold.connect()


def test_no_variable_of_a_clients_reaches_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lists of them had drifted apart: a server got the client's token."""
    pages = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"^\| `(PAGEFOLD_\w+)` \|", pages, re.MULTILINE))
    assert documented == CLIENTS
    for name in CLIENTS | {"PAGEFOLD_SLEEP_MILLISECS", "SECRET"}:
        monkeypatch.setenv(name, "1")
    kept = {name for name in server_environment(with_settings=True) if name not in KEPT and not name.startswith("LC_")}
    assert kept >= {"PAGEFOLD_SLEEP_MILLISECS"}
    assert not kept & (CLIENTS | {"SECRET"})
    assert not [name for name in server_environment(with_settings=False) if name.startswith("PAGEFOLD_")]


def test_a_server_that_ends_before_it_answers_is_told_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, pytest.raises(NotReady) as caught:
        launch(f"unix:{tmp_path}/x.sock", {"no_such_setting": 1}, server_environment(False), log.fileno(), 60)
    assert caught.value.code == 2
    assert "no-such-setting" in (tmp_path / "log").read_text()
