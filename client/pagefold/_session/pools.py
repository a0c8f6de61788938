"""The pools whose frames a client's memory may map, and how the client holds them.

The client locks each pool twice, through the descriptor that it maps frames through. A lock on the whole file keeps its
name from being swept. A lock on one byte, the client's slot, tells a restarted server that it may map frames
(`pool_slots`). The kernel keeps both locks as long as a mapping is left, in forked children too.

Whatever names a server sends, they take MOST_POOLS descriptors and as many lines of the log, and block no call.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import stat
from collections.abc import Iterable
from typing import Final

from pagefold_proto import pool_slots, shm_names
from pagefold_proto.descriptor import Descriptor

from pagefold._process.log import log as _log
from pagefold._session.space import PoolSpace

MOST_POOLS: Final = 4
"""Most pools that a client has at a time. An honest server names one, the domain's."""


class Pools:
    """The pools of one client. Everything runs on the session's thread.

    A forked child closes its copies of the descriptors: its mappings of frames alone hold the family's slot.

    Args:
        space: the native space, or a fake.

    Attributes:
        slot: this client's byte in every pool.
        error: errno of the failure to open or use the last pool; 0: none.
    """

    def __init__(self, space: PoolSpace) -> None:
        self.slot = pool_slots.new_slot()
        self._space = space
        self.error = 0
        self._held: dict[str, tuple[int, Descriptor]] = {}  # name -> number, descriptor that it maps through
        self._owner = 0
        self._unopened: list[tuple[int, str]] = []  # announced, and to be tried again
        self._logged: set[str] = set()  # names of which something was logged, a few

    def open_announced(self, announced: Iterable[tuple[int, str]]) -> None:
        """Opens pools, and those that could not be opened before: a server announces each pool only once."""
        named = itertools.islice(itertools.chain(self._unopened, announced), MOST_POOLS)
        self._unopened = [pool for pool in named if not self.add_pool(*pool)]

    def forget_unopened(self) -> None:
        """Gives up pools that could not be opened: the server that announced them is gone."""
        self._unopened.clear()

    def add_pool(self, number: int, name: str) -> bool:
        """Makes a pool known to the space. False: it failed, and may work later; proposals of it are declined."""
        if name in self._held:
            return True
        if not shm_names.is_name(shm_names.POOL, name):
            self._log_once(name, "the server names a pool %r: its proposals will be declined", name[:80])
            self.error = errno.EINVAL
            return True
        if len(self._held) >= MOST_POOLS:
            self._log_once(
                name, "the server names more than %d pools: proposals of %s will be declined", MOST_POOLS, name
            )
            return True
        try:
            fd = _open(name, self.slot)
        except OSError as error:
            leased = isinstance(error, BlockingIOError)
            why = "there is a file lease on it (F_SETLEASE): release that" if leased else error
            self._log_once(name, "nothing merges until the pool %s can be opened: %s", name, why)
            self.error = error.errno or errno.EIO
            return False
        try:
            self._space.add_pool(number, fd)
        except OSError as error:
            fd.close()
            self._log_once(name, "nothing merges until the pool %s can be used: %s", name, error)
            self.error = error.errno or errno.EIO
            return False
        except (ValueError, OverflowError) as error:
            fd.close()
            self._log_once(name, "the pool %s cannot be used, so nothing will merge: %s", name, error)
            self.error = errno.EINVAL
            return True
        self._held[name] = number, fd
        self.error = 0
        self._logged.discard(name)
        self.expect(name)
        return True

    def _log_once(self, name: str, text: str, *values: object) -> None:
        """Logs a text once as an error, and for the first MOST_POOLS names only: a server can name any number."""
        loud = name not in self._logged and len(self._logged) < MOST_POOLS
        if loud:
            self._logged.add(name)
        _log.log(logging.ERROR if loud else logging.DEBUG, text, *values)

    def has_pool(self, name: str) -> bool:
        """Whether a pool is open, so that frames of it may be mapped."""
        return name in self._held

    def keep_only(self, name: str) -> bool:
        """Closes all pools but one. False if frames of another one are still mapped."""
        for other in [held for held in self._held if held != name]:
            number, fd = self._held[other]
            if not self._space.drop_pool(number):
                return False
            del self._held[other]
            _discard(other, fd)
        return True

    def expect(self, name: str) -> None:
        """Remembers which server owns a pool: the one that this client talks to now."""
        held = self._held.get(name)
        self._owner = 0 if held is None else pool_slots.owner(held[1])

    def is_deserted(self) -> bool:
        """Whether the server that answered last is gone, or has a successor."""
        if not self._owner:
            return False
        return all(pool_slots.owner(fd) != self._owner for _, fd in self._held.values())

    def close(self) -> None:
        """Closes all pools. The last holder of a pool whose server is gone removes its name."""
        while self._held:
            name, (_, fd) = self._held.popitem()
            _discard(name, fd)


def _discard(name: str, fd: Descriptor) -> None:
    fd.close()
    with contextlib.suppress(OSError):
        look = shm_names.look(name)
        try:
            shm_names.remove_garbage(name, look)
        finally:
            os.close(look)


def _open(name: str, slot: int) -> Descriptor:
    fd = shm_names.look(name)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused while a process removes it
        pool_slots.hold(fd, slot)
        found = os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise
    if not stat.S_ISREG(found.st_mode) or not found.st_nlink:
        os.close(fd)
        raise OSError(errno.ENOENT, "it has just been removed, or is no shared-memory object", name)
    return Descriptor(fd)
