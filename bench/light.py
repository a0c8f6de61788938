"""A worker of which a machine can run hundreds: no numpy, and no copies on the way."""

from __future__ import annotations

import mmap
import zlib
from typing import Any

import wire

PAGE = mmap.PAGESIZE


class Subject:
    """The memory, and what is asked of it."""

    def __init__(self) -> None:
        self.client: Any = None
        self.memory: Any = None

    def connect(self, address: str) -> None:
        """Becomes a client, without memory yet."""
        import pagefold

        self.client = pagefold.connect(address, autostart=False, backing="shm")

    def allocate(self, size: int) -> None:
        """Takes memory: the client's, if there is one, else anonymous memory that is handed to KSM."""
        if self.client is not None:
            self.memory = self.client.allocate(size)
            return
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.memory.madvise(mmap.MADV_MERGEABLE)

    def fill(self, who: int, shared: int) -> int:
        """Writes so many pages that everybody has, and then pages of its own. Returns the checksum."""
        with memoryview(self.memory) as view:
            for page in range(len(view) // PAGE):
                number = page + 1 if page < shared else (who + 1) << 32 | page
                view[page * PAGE : (page + 1) * PAGE] = number.to_bytes(8, "little") * (PAGE // 8)
            return zlib.crc32(view)

    def checksum(self) -> int:
        """Of all bytes."""
        with memoryview(self.memory) as view:
            return zlib.crc32(view)

    def settle(self, timeout: float) -> dict[str, Any]:
        """Merges until nothing is left."""
        report: dict[str, Any] = self.client.settle(timeout=timeout).as_dict()
        return report

    def close(self) -> None:
        """Lets go of everything."""
        if self.client is not None:
            self.memory = None
            self.client.close()


if __name__ == "__main__":
    wire.serve(Subject())
