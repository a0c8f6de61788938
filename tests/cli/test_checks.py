"""The doctor's checks, on machines that are made up: each tells the truth about what it finds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from pagefold.cli import checks
from pagefold.cli.checks import Machine
from pagefold_core import probe


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(root=tmp_path, shm=tmp_path, environ={}, uid=1000)


def put(machine: Machine, path: str, text: str) -> None:
    file = machine.root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("asked", "possible", "state"),
    [
        ("", True, "ok"),
        ("shm", True, "ok"),
        ("memfd", True, "ok"),
        ("hugetlb", True, "fail"),
        ("", False, "warn"),
        ("shm", False, "warn"),
        ("memfd", False, "fail"),
    ],
)
def test_backing_says_where_memory_comes_from(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, asked: str, possible: bool, state: str
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    if not possible:
        monkeypatch.setattr(checks, "make_object", refuse)
    check = checks.backing(dataclasses.replace(machine, environ={"PAGEFOLD_BACKING": asked} if asked else {}))
    assert check.state == state
    assert (asked or "auto") in check.found
    assert bool(check.remedy) == (state != "ok")


def test_every_check_of_this_machine_says_what_it_means() -> None:
    for check in checks.machine_checks(Machine()):
        assert check.state in ("ok", "warn", "fail")
        assert check.found
        assert check.meaning
        assert check.state == "ok" or check.remedy, check


def test_barrier_off_fails_with_the_remedy(machine: Machine) -> None:
    check = checks.barrier(machine, probe(["uffd", "user"]))
    assert (check.state, check.found) == ("fail", "off")
    assert "nothing is merged" in check.meaning
    for way in ("/etc/sysctl.d/", "udev rule", "PAGEFOLD_BARRIER=user", "EFAULT", "docs/machine.md"):
        assert way in check.remedy


def test_features_are_less_those_that_are_disabled(machine: Machine) -> None:
    disabled = Machine(root=machine.root, environ={"PAGEFOLD_DISABLE": "uffd, user,"})
    assert disabled.features().userfaultfd == "none"
    assert not Machine(environ={"PAGEFOLD_DISABLE": "pagemap_scan"}).features().pagemap_scan


@pytest.mark.needs("user-uffd")
def test_barrier_user_warns_of_efault() -> None:
    machine = Machine(environ={"PAGEFOLD_BARRIER": "user"})
    check = checks.barrier(machine, probe(["uffd"]))
    assert check.state == "warn"
    assert "EFAULT" in check.meaning


@pytest.mark.parametrize("barrier", ["uffd", "nonsense"])
def test_a_barrier_that_cannot_be_had_fails(barrier: str) -> None:
    check = checks.barrier(Machine(environ={"PAGEFOLD_BARRIER": barrier}), probe(["uffd", "user"]))
    assert check.state == "fail"
    assert check.remedy == "unset PAGEFOLD_BARRIER"


def test_asking_for_off_is_not_blamed_on_the_kernel() -> None:
    check = checks.barrier(Machine(environ={"PAGEFOLD_BARRIER": "off"}), probe())
    assert check.state == "fail"
    assert check.remedy == "unset PAGEFOLD_BARRIER"


def test_tracker_is_the_one_that_clients_use() -> None:
    # It said "checksum", and that a later version would have another, where every client used that other one.
    probed = probe()
    if probed.pagemap_scan and probed.wp_async:
        assert (checks.tracker(Machine(environ={}), probed).found) == "pagemap"
        asked = checks.tracker(Machine(environ={"PAGEFOLD_TRACKER": "checksum"}), probed)
        assert (asked.state, asked.found) == ("warn", "checksum")
        assert "PAGEFOLD_TRACKER" in asked.remedy
    older = checks.tracker(Machine(environ={}), probe(["pagemap_scan"]))
    assert (older.state, older.found) == ("warn", "checksum")
    assert "6.7" in older.remedy
    idle = checks.tracker(Machine(environ={}), probed, used="checksum")
    assert idle.found == "checksum", "a client knows better"
    assert "PAGEFOLD_TRACKER" not in idle.remedy, "nobody has set it: it is so where nothing merges"
    for asked_for in ("pagemap", "nonsense"):
        refused = checks.tracker(Machine(environ={"PAGEFOLD_TRACKER": asked_for}), probe(["wp_async"]))
        assert refused.state == "fail"
    assert "6.4" in checks.tracker(Machine(environ={}), probe(["wp_unpopulated"])).meaning


class Filesystem:
    def __init__(self, size: int, free: int) -> None:
        self.f_frsize, self.f_blocks, self.f_bavail = 4096, size // 4096, free // 4096


@pytest.mark.parametrize(
    ("size", "free", "state"),
    [(64 << 20, 64 << 20, "warn"), (8 << 30, 4 << 30, "ok"), (8 << 30, 1 << 20, "warn"), (0, 0, "ok")],
)
def test_shared_memory_by_size(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, size: int, free: int, state: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Filesystem(size, free))
    assert checks.shared_memory(machine).state == state


def test_shared_memory_that_is_not_there_fails(tmp_path: Path) -> None:
    check = checks.shared_memory(Machine(shm=tmp_path / "none"))
    assert check.state == "fail"
    assert "mount" in check.remedy


def test_shared_memory_that_cannot_be_written_fails(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refuse)
    check = checks.shared_memory(machine)
    assert check.state == "fail"
    assert "not writable" in check.found


def test_map_count() -> None:
    assert checks.map_count(65530, 4096).state == "ok"
    low = checks.map_count(1000, 4096)
    assert low.state == "warn"
    assert "1,000" in low.found


@pytest.mark.parametrize(
    ("chosen", "state"), [("never", "ok"), ("advise", "ok"), ("always", "warn"), ("force", "warn")]
)
def test_huge_pages_of_shared_memory(machine: Machine, chosen: str, state: str) -> None:
    put(machine, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", f"deny [{chosen}] other")
    put(machine, "/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never")
    check = checks.huge_pages(machine)
    assert check.state == state
    assert chosen in check.found


@pytest.mark.parametrize(
    ("option", "state"), [("", "ok"), (",huge=advise", "ok"), (",huge=always", "warn"), (",huge=within_size", "warn")]
)
def test_huge_pages_of_dev_shm_are_a_matter_of_its_mount(machine: Machine, option: str, state: str) -> None:
    """doctor looked at shmem_enabled, which says nothing of what is mounted."""
    put(machine, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always [never] deny")
    put(machine, "/proc/self/mounts", f"tmpfs / tmpfs rw 0 0\ntmpfs {machine.shm} tmpfs rw,nosuid{option} 0 0")
    check = checks.huge_pages(machine)
    assert check.state == state
    assert (option.rpartition("=")[2] or "never") in check.found


@pytest.mark.parametrize(("mode", "state"), [("0", "ok"), ("1", "ok"), ("2", "warn")])
def test_overcommit(machine: Machine, mode: str, state: str) -> None:
    put(machine, "/proc/sys/vm/overcommit_memory", f"{mode}\n")
    assert checks.overcommit(machine).state == state


@pytest.mark.parametrize(("run", "found"), [("0", "off"), ("1", "on, 12 pages sharing"), ("2", "unmerging")])
def test_kernel_ksm_does_no_harm(machine: Machine, run: str, found: str) -> None:
    put(machine, "/sys/kernel/mm/ksm/run", run)
    put(machine, "/sys/kernel/mm/ksm/pages_sharing", "12")
    assert (checks.kernel_ksm(machine).state, checks.kernel_ksm(machine).found) == ("ok", found)


def test_kernel_without_ksm(machine: Machine) -> None:
    assert checks.kernel_ksm(machine).found == "not in this kernel"


def test_remove_ipc_is_no_matter_without_systemd_or_for_system_users(machine: Machine) -> None:
    assert checks.remove_ipc(machine) == []
    put(machine, "/run/systemd/system/x", "")
    assert checks.remove_ipc(Machine(root=machine.root, uid=0)) == []


def test_remove_ipc_defaults_to_yes_and_the_last_file_wins(machine: Machine) -> None:
    put(machine, "/run/systemd/system/x", "")
    assert [check.state for check in checks.remove_ipc(machine)] == ["warn"]
    put(machine, "/etc/systemd/logind.conf", "[Login]\n#RemoveIPC=yes\nRemoveIPC=no\n")
    assert [check.state for check in checks.remove_ipc(machine)] == ["ok"]
    put(machine, "/etc/systemd/logind.conf.d/50.conf", "[Login]\nRemoveIPC=yes\n")
    assert [check.state for check in checks.remove_ipc(machine)] == ["warn"]
    put(machine, "/var/lib/systemd/linger/me", "")
    lingering = Machine(root=machine.root, environ={"USER": "me"}, uid=1000)
    assert [check.found for check in checks.remove_ipc(lingering)] == ["this user lingers"]
