"""A descriptor that the library keeps open, in a program that may close it.

Daemon libraries close every descriptor, and soon the number is another file's. So before anything is written or closed
by the number, the object behind it (device, inode, kind of file) is compared with the one that it stood for.
`sys/object.rs` does the same in the native half.
"""

from __future__ import annotations

import errno
import os
import stat


class Descriptor(int):
    """A descriptor's number, and the object that it stood for. It is an int where a wrong file does no harm."""

    _identity: tuple[int, int, int] | None

    def __new__(cls, fd: int) -> Descriptor:
        """Remembers the object behind an open descriptor."""
        kept = super().__new__(cls, fd)
        kept._identity = _identify(fd)
        return kept

    @property
    def is_there(self) -> bool:
        """Whether the number still stands for that object."""
        return self._identity is not None and _identify(self) == self._identity

    def checked(self) -> int:
        """The number, for a call that changes the object.

        Raises:
            OSError: EBADF: the program closed it.
        """
        if not self.is_there:
            raise OSError(errno.EBADF, "the program closed a descriptor of pagefold's, which uses its number no more")
        return self

    def close(self) -> None:
        """Closes the descriptor, if it still stands for that object."""
        if self.is_there:
            os.close(self)


def _identify(fd: int) -> tuple[int, int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)
