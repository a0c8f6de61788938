"""Addresses: their two forms, the default, and directories in which somebody else could listen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pagefold_proto import addresses
from pagefold_proto.addresses import Address, AddressError, default_address, grpc_target, parse, verify_directory


@pytest.mark.parametrize(
    ("text", "address", "target"),
    [
        ("unix:/run/x.sock", Address("unix", path="/run/x.sock"), "unix:/run/x.sock"),
        ("unix:///run/x.sock", Address("unix", path="/run/x.sock"), "unix:/run/x.sock"),
        ("tcp:localhost:7", Address("tcp", host="localhost", port=7), "localhost:7"),
        ("tcp:[::1]:7", Address("tcp", host="::1", port=7), "[::1]:7"),
    ],
)
def test_forms(text: str, address: Address, target: str) -> None:
    assert parse(text) == address
    assert grpc_target(text) == grpc_target(address) == address.grpc_target == target
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/x.sock",
        "unix:",
        "unix:x.sock",
        "unix:/run/",
        "unix:/run/\0",
        "unix:/" + "x" * 107,
        "unix:/" + "é" * 54,
        "unix:/run/a,b",
        "unix:/run/server.pid",
        "tcp:",
        "tcp:localhost",
        "tcp:localhost:",
        "tcp:localhost:x",
        "tcp:localhost:65536",
        "tcp:localhost:-1",
        "tcp:::1:7",
        "http://localhost:7",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressError):
        parse(text)


def test_the_longest_path() -> None:
    assert parse("unix:/" + "x" * 106)


def test_the_default_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Programs of one user with and without XDG_RUNTIME_DIR (a login, cron) had a server each and shared nothing."""
    monkeypatch.setattr(addresses, "SHM", str(tmp_path))
    ours = f"unix:{tmp_path}/pagefold-{os.geteuid()}/server.sock"
    assert default_address() == ours
    for name in ("XDG_RUNTIME_DIR", "HOME", "TMPDIR", "USER"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
        assert default_address() == ours
        monkeypatch.delenv(name)
        assert default_address() == ours


@pytest.mark.needs("root")
def test_nobody_can_take_the_default_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(addresses, "SHM", str(tmp_path))
    taken = tmp_path / f"pagefold-{os.geteuid()}"
    taken.mkdir()
    os.chown(taken, 65534, 65534)
    with pytest.raises(AddressError, match="belongs to uid 65534"):
        verify_directory(str(taken))
    assert default_address() != default_address(), "it cannot be guessed"
    for stranger in ("0", "f"):
        (tmp_path / f"pagefold-{os.geteuid()}-{stranger}").mkdir()
        os.chown(tmp_path / f"pagefold-{os.geteuid()}-{stranger}", 65534, 65534)
    made = Path(default_address().removeprefix("unix:")).parent
    made.mkdir()
    assert default_address() == f"unix:{made}/server.sock", "once it is made, all find it"


def test_directories(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    verify_directory(str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for bad in ("link", "file"):
        with pytest.raises(AddressError):
            verify_directory(str(tmp_path / bad))
    with pytest.raises(FileNotFoundError):
        verify_directory(str(tmp_path / "none"))
    tmp_path.chmod(0o701)
    with pytest.raises(AddressError, match="chmod 700"):
        verify_directory(str(tmp_path))
