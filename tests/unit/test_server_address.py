"""Addresses: their two forms, the default, and directories in which somebody else could listen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pagefold._address import Address, AddressError, default_address, grpc_target, parse, verify_directory


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


def test_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_address() == f"unix:{tmp_path}/pagefold/server.sock"
    fallback = f"unix:/tmp/pagefold-{os.geteuid()}/server.sock"
    for useless in ("", "relative", str(tmp_path / "none")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", useless)
        assert default_address() == fallback
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_address() == fallback


@pytest.mark.needs("root")
def test_another_users_runtime_directory_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_address().startswith("unix:/tmp/")
    with pytest.raises(AddressError, match="belongs to uid 65534"):
        verify_directory(str(tmp_path))


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
