"""The shared-memory object behind a domain's frames: made, measured and let go of here. What is in it, engines say.

Clients open it by name, read-only (mode 0400). It never shrinks.
"""

from __future__ import annotations

import os

from pagefold import _names


class PoolFile:
    """A POSIX shared-memory object that this process creates and holds.

    Args:
        uid: of the domain, whose processes must be able to open the pool. A server that is root gives it to them.

    Attributes:
        name: with its leading slash.
        fd: open for reading and writing; -1 once it is closed.

    Raises:
        OSError: the object cannot be made.
    """

    def __init__(self, uid: int) -> None:
        made = _names.create_locked(_names.POOL, 0o400, 0)
        try:
            if uid != os.geteuid():
                os.fchown(made.fd, uid, -1)
        except BaseException:
            _names.remove(made.name)
            os.close(made.fd)
            raise
        self.name, self.fd = made.name, made.fd

    def bytes_allocated(self) -> int:
        """What the kernel has allocated to this pool, released frames that were not given back yet included."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self, unlink: bool) -> None:
        """Lets the pool go. Views that map its frames keep them; unlinked, it cannot be opened any more."""
        if self.fd < 0:
            return
        if unlink:
            _names.remove(self.name)
        os.close(self.fd)
        self.fd = -1
