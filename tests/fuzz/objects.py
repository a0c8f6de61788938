"""What a fuzzer has in shared memory for one session: segments, leases, doorbells, and what it plants in their place.

Everything is the fuzzer's own, made under legal names, and removed by `close`. A fuzzer that is killed leaves regular
files, which the server sweeps, and links, FIFOs and directories, which it does not: no client makes such.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Final

from pagefold_proto import pool_slots, shm_names
from support.worker import PAGE, page_of

SHM: Final = "/dev/shm"


@dataclass
class Made:
    """A name and a descriptor. `fd` is -1 for what is no file; a memfd's name is in no filesystem."""

    name: str
    fd: int
    memfd: bool = False


class Objects:
    """Those of one session."""

    def __init__(self) -> None:
        self.lease = shm_names.create_locked(shm_names.LEASE, 0o600, 0)
        self.proof = secrets.token_bytes(shm_names.PROOF_BYTES)
        os.pwrite(self.lease.fd, self.proof, 0)
        self.doorbell = shm_names.doorbell_for(self.lease.name)
        self._bell = os.open(f"{SHM}/sem.{self.doorbell[1:]}", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(self._bell, 32)  # as large as the C library's
        self._made: list[Made] = []
        self._planted: list[str] = []  # names of what is not open here

    def segment(self, pages: int, content: str, memfd: bool) -> Made:
        if memfd:
            name = shm_names.new_name(shm_names.SEGMENT)
            first = os.memfd_create(name[1:], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(first, pages * PAGE)
            made = Made(name, os.open(f"/proc/self/fd/{first}", os.O_RDWR | os.O_CLOEXEC), True)
            os.close(first)  # the kernel gives no file lease on it
        else:
            locked = shm_names.create_locked(shm_names.SEGMENT, 0o600, pages * PAGE)
            made = Made(locked.name, locked.fd)
        self._made.append(made)
        if content == "equal":
            os.pwrite(made.fd, b"".join(page_of(1 + n % 200) for n in range(pages)), 0)
        elif content == "zeros":
            os.pwrite(made.fd, bytes(pages * PAGE), 0)
        elif content == "noise":
            os.pwrite(made.fd, secrets.token_bytes(pages * PAGE), 0)
        return made

    def spoil(self, made: Made, plant: str) -> None:
        """Puts something else where a segment was."""
        if plant in ("leased", "read-leased"):
            self.lock(made, plant == "leased")
        elif plant == "shrunk":
            os.ftruncate(made.fd, os.fstat(made.fd).st_size // 2)
        elif plant == "empty":
            os.ftruncate(made.fd, 0)
        elif plant == "sealed":
            with contextlib.suppress(OSError):  # only a memfd can be
                fcntl.fcntl(made.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        elif not made.memfd and plant in ("gone", "fifo", "link", "directory"):
            path = SHM + made.name
            os.unlink(path)
            if plant == "fifo":
                os.mkfifo(path, 0o600)
            elif plant == "link":
                os.symlink("/etc/passwd", path)
            elif plant == "directory":
                os.mkdir(path, 0o700)

    def lock(self, made: Made, exclusive: bool = True) -> None:
        """Takes a file lease: a process that opens it after that waits until it is given back, 45 s as a rule."""
        with contextlib.suppress(OSError):  # it is open elsewhere
            if exclusive:
                fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            else:
                again = os.open(
                    SHM + made.name if not made.memfd else f"/proc/self/fd/{made.fd}", os.O_RDONLY | os.O_CLOEXEC
                )
                self._made.append(Made("", again))
                fcntl.fcntl(again, fcntl.F_SETLEASE, fcntl.F_RDLCK)

    def bend(self, pick: int, how: str, to: int) -> None:
        """Something becomes of one of the objects, whichever has that number."""
        regular = [made for made in self._made if made.name]
        if not regular:
            return
        made = regular[pick % len(regular)]
        size = os.fstat(made.fd).st_size
        with contextlib.suppress(OSError):  # sealed, or gone
            if how == "shrink":
                os.ftruncate(made.fd, min(size, to * PAGE))
            elif how == "grow":
                os.ftruncate(made.fd, size + to * PAGE)
            elif how == "odd":
                os.ftruncate(made.fd, min(size, to))
            elif how == "write":
                os.pwrite(made.fd, page_of(to), to * PAGE % max(PAGE, size))
            elif how == "punch":
                os.truncate(made.fd, 0)
                os.truncate(made.fd, size)
            elif how == "unlink" and not made.memfd:
                os.unlink(SHM + made.name)
            elif how == "lease":
                self.lock(made)
            elif how == "release":
                fcntl.fcntl(made.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def resize_bell(self, size: int) -> None:
        os.ftruncate(self._bell, size)

    def plant(self, tag: str, frames: int, slots: int, leased: bool) -> None:
        """A pool that the server has not made."""
        locked = shm_names.create_locked(shm_names.POOL, 0o400, frames * PAGE, tag)
        made = Made(locked.name, locked.fd)
        self._made.append(made)
        os.pwrite(made.fd, page_of(1), (frames - 1) * PAGE)
        for slot in range(1, 2 * slots, 2):
            pool_slots.hold(made.fd, slot)
        if leased:
            self.lock(made)

    def plant_names(self, tag: str, count: int, held: bool) -> None:
        """Names of pools, and nothing behind them.

        Args:
            tag: that they end in.
            count: how many.
            held: all are names of one object whose lock is held, so that no sweep takes them; else files of their own.
        """
        if held:
            locked = shm_names.create_locked(shm_names.POOL, 0o400, 0, tag)
            self._made.append(Made(locked.name, locked.fd))
        for _ in range(count):
            name = shm_names.new_name(shm_names.POOL, tag)
            if held:
                os.link(SHM + locked.name, SHM + name)
            else:
                os.close(os.open(SHM + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400))
            self._planted.append(name)

    @staticmethod
    def write_for(made: Made, seconds: float) -> threading.Thread:
        """Writes the whole object again and again, while others go on. It ends by itself."""
        fd, size = os.dup(made.fd), os.fstat(made.fd).st_size
        equal = b"".join(page_of(1 + n % 200) for n in range(size // PAGE))

        def write() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                os.pwrite(fd, equal, 0)
            os.close(fd)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        return writer

    def close(self) -> None:
        """Removes every name and lets go of every object."""
        for made in self._made:
            if made.name and not made.memfd:
                path = SHM + made.name
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
            os.close(made.fd)
        self._made.clear()
        for name in self._planted:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(SHM + name)
        self._planted.clear()
        for path in (SHM + self.lease.name, f"{SHM}/sem.{self.doorbell[1:]}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.close(self._bell)
        os.close(self.lease.fd)
