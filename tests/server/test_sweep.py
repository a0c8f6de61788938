"""The sweep: takes what nobody holds, and nothing else."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import posix_ipc
import pytest
from pagefold_proto import shm_names
from pagefold_server.audit import inventory
from pagefold_server.sessions import sweep as sweeping
from pagefold_server.sessions.sweep import sweep

SHM = Path("/dev/shm")
pytestmark = pytest.mark.usefixtures("no_names")


@pytest.mark.parametrize("kind", ["s", "l", "p"])
def test_what_nobody_holds_is_unlinked(kind: shm_names.LockedKind) -> None:
    made = shm_names.create_locked(kind, 0o400, 4096)
    assert made.name not in sweep()
    copy = os.dup(made.fd)  # as a forked child has it
    os.close(made.fd)
    assert made.name not in sweep()
    os.close(copy)
    sweep()
    assert not (SHM / made.name[1:]).exists()


def test_what_is_not_named_by_pagefold_is_left_alone() -> None:
    paths = [SHM / f"pagefold-x-{'0' * 32}", SHM / f"pagefold-s-{'0' * 31}", SHM / f"other-{secrets.token_hex(8)}"]
    for path in paths:
        path.touch()
    sweep()
    assert all(path.exists() for path in paths)
    for path in paths:
        path.unlink()


def test_links_fifos_and_directories_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("x")
    paths = [SHM / f"pagefold-s-{secrets.token_hex(16)}" for _ in range(3)]
    paths[0].symlink_to(target)
    os.mkfifo(paths[1])
    paths[2].mkdir()
    sweep()
    assert target.read_text() == "x"
    assert paths[0].is_symlink()
    paths[0].unlink()
    paths[1].unlink()
    paths[2].rmdir()


def test_a_doorbell_goes_with_its_lease_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = shm_names.create_locked(shm_names.LEASE, 0o600, 0)
    name = shm_names.doorbell_for(lease.name)
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
    path = SHM / f"sem.{name[1:]}"
    monkeypatch.setattr(sweeping, "YOUNG", -1.0)
    sweep()
    assert path.exists()
    os.close(lease.fd)
    monkeypatch.setattr(sweeping, "YOUNG", 60.0)
    sweep()
    assert not (SHM / lease.name[1:]).exists()
    assert path.exists()  # it is young: its client may be about to make the lease
    entry = inventory.entry(path.name)
    assert entry is not None
    assert entry.held  # and an audit says no other thing
    monkeypatch.setattr(sweeping, "YOUNG", -1.0)
    sweep()
    assert not path.exists()


@pytest.mark.needs("root")
def test_only_root_sweeps_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = shm_names.create_locked(shm_names.SEGMENT, 0o600, 0)
    os.close(made.fd)
    os.chown(SHM / made.name[1:], 65534, 65534)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1234)
        sweep()
        assert (SHM / made.name[1:]).exists()
    sweep()
    assert not (SHM / made.name[1:]).exists()
