"""A descriptor that the library keeps for long, in a program that may close it.

Daemon libraries close every descriptor, and the number is another file's soon after. So the number is compared with the
object that it was (device, inode, kind of file) before anything is written or closed by it.
`sys/object.rs` does the same in the native half.
"""

from __future__ import annotations

import errno
import os
import stat


class Descriptor(int):
    """A number that knows what it stood for. Passes for an int wherever reading from the wrong file harms nobody."""

    _identity: tuple[int, int, int] | None

    def __new__(cls, fd: int) -> Descriptor:
        """Keeps an open descriptor."""
        kept = super().__new__(cls, fd)
        kept._identity = _identify(fd)
        return kept

    @property
    def is_there(self) -> bool:
        """Whether the number still is the object that it was."""
        return self._identity is not None and _identify(self) == self._identity

    def checked(self) -> int:
        """The number, for a call that changes what is behind it.

        Raises:
            OSError: EBADF, the program closed it.
        """
        if not self.is_there:
            raise OSError(errno.EBADF, "the program closed a descriptor of pagefold's; its number is not used any more")
        return self

    def close(self) -> None:
        """Closes it, if it still is what it was."""
        if self.is_there:
            os.close(self)


def _identify(fd: int) -> tuple[int, int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)
