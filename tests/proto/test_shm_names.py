"""Names, and the lock that says whose they are."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest
from pagefold_proto import shm_names

SHM = Path("/dev/shm")


@pytest.fixture
def segment() -> Iterator[shm_names.LockedObject]:
    made = shm_names.create_locked(shm_names.SEGMENT, 0o600, 8192)
    yield made
    shm_names.remove(made.name)
    os.close(made.fd)


def open_again(name: str) -> int:
    return os.open(SHM / name[1:], os.O_RDONLY | os.O_CLOEXEC)


@pytest.mark.parametrize("kind", ["s", "l", "p", "d"])
def test_a_new_name_is_a_name_of_its_kind_only(kind: shm_names.Kind) -> None:
    name = shm_names.new_name(kind)
    assert [k for k in ("s", "l", "p", "d") if shm_names.is_name(k, name)] == [kind]
    assert shm_names.new_name(kind) != name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/pagefold-s-",
        "/pagefold-s-" + "0" * 31,
        "/pagefold-s-" + "0" * 33,
        "/pagefold-s-" + "0" * 32 + "\n",
        "/pagefold-s-" + "A" * 32,
        "/pagefold-s-" + "\N{FULLWIDTH DIGIT ONE}" * 32,
        "/pagefold-x-" + "0" * 32,
        "pagefold-s-" + "0" * 32,
        "/../pagefold-s-" + "0" * 32,
        "/pagefold-s-" + "0" * 30 + "/.",
        "/pagefold-s-" + "0" * 32 + "\0",
    ],
)
def test_what_is_almost_a_name_is_none(text: str) -> None:
    assert not shm_names.is_name("s", text)


def test_a_doorbell_has_the_digits_of_its_lease() -> None:
    lease = shm_names.new_name("l")
    doorbell = shm_names.doorbell_for(lease)
    assert shm_names.is_name("d", doorbell)
    assert doorbell[-32:] == lease[-32:]
    with pytest.raises(ValueError, match="not the name of a lease"):
        shm_names.doorbell_for(shm_names.new_name("s"))


def test_an_object_has_size_and_mode_whatever_the_umask() -> None:
    before = os.umask(0o277)
    try:
        made = shm_names.create_locked(shm_names.SEGMENT, 0o640, 12345)
    finally:
        os.umask(before)
    status = os.stat(SHM / made.name[1:])
    assert (status.st_size, status.st_mode & 0o777) == (12345, 0o640)
    assert os.get_inheritable(made.fd) is False
    os.pwrite(made.fd, b"x", 0)
    shm_names.remove(made.name)
    shm_names.remove(made.name)  # gone already: fine
    os.close(made.fd)


def test_an_object_is_garbage_once_its_creator_lets_go(segment: shm_names.LockedObject) -> None:
    fd = open_again(segment.name)
    assert not shm_names.is_garbage(fd)
    assert not shm_names.remove_garbage(segment.name, fd)
    fcntl.flock(segment.fd, fcntl.LOCK_UN)
    assert shm_names.is_garbage(fd)
    fcntl.flock(segment.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the question left no lock behind
    os.close(fd)


def test_I3_a_forked_child_keeps_an_object_alive(segment: shm_names.LockedObject) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent says so
        os._exit(0)
    os.close(read)
    os.close(segment.fd)
    fd = open_again(segment.name)
    try:
        assert not shm_names.is_garbage(fd), "the child has the lock"
        os.close(write)
        os.waitpid(child, 0)
        assert shm_names.is_garbage(fd)
    finally:
        os.close(fd)
        object.__setattr__(segment, "fd", os.open(os.devnull, os.O_RDONLY))  # for the fixture to close


def test_a_killed_creator_leaves_garbage_that_is_removed() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        made = shm_names.create_locked(shm_names.LEASE, 0o600, 0)
        os.write(write, made.name.encode())
        signal.pause()
    os.close(write)
    name = os.read(read, 100).decode()
    os.close(read)
    fd = open_again(name)
    assert not shm_names.remove_garbage(name, fd)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert shm_names.remove_garbage(name, fd)
    assert not (SHM / name[1:]).exists()
    os.close(fd)


def test_creating_starts_over_when_a_sweep_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[str] = []
    create = posix_ipc.SharedMemory

    def create_and_be_swept(name: str, *args: object, **options: object) -> object:
        made = create(name, *args, **options)
        if len(swept) < 3:
            fd = open_again(name)
            assert shm_names.remove_garbage(name, fd)
            os.close(fd)
            swept.append(name)
        return made

    monkeypatch.setattr(posix_ipc, "SharedMemory", create_and_be_swept)
    descriptors = len(os.listdir("/proc/self/fd"))
    made = shm_names.create_locked(shm_names.SEGMENT, 0o600, 4096)
    assert len(swept) == 3
    assert made.name not in swept
    assert os.fstat(made.fd).st_nlink == 1
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    shm_names.remove(made.name)
    os.close(made.fd)


def test_creating_fails_without_leaving_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir(SHM))
    with pytest.raises(OSError, match="Invalid argument"):
        shm_names.create_locked(shm_names.SEGMENT, 0o600, -1)
    assert set(os.listdir(SHM)) == before


def test_too_many_files_is_an_errno_whatever_posix_ipc_says() -> None:
    # Its error has a text and no number, so the remedy was not found.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="maximum number of files") as info:
            shm_names.create_locked(shm_names.SEGMENT, 0o600, 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert info.value.errno == errno.EMFILE
    assert shm_names.with_number(posix_ipc.PermissionsError("no")).errno == errno.EACCES
    assert shm_names.with_number(posix_ipc.ExistentialError("none")).errno == errno.ENOENT
    assert shm_names.with_number(posix_ipc.Error("what")).errno == errno.EINVAL
    assert shm_names.with_number(OSError("The system limit on open files")).errno == errno.ENFILE
    numbered = OSError(errno.ENOSPC, "full")
    assert shm_names.with_number(numbered) is numbered
