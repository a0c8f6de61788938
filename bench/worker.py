"""A process whose memory is merged: by pagefold (an allocation of the client) or by the kernel (MADV_MERGEABLE).

Told over standard input what to do, a JSON list a line; answers with a JSON value a line.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE


class Subject:
    """The memory, and what is asked of it."""

    def __init__(self) -> None:
        self.client: Any = None
        self.words: Any = None

    def pagefold(self, address: str, size: int) -> None:
        """Allocates from a client."""
        import pagefold

        self.client = pagefold.connect(address, autostart=False)
        self.words = self.client.zeros(size // 8, np.uint64)

    def kernel(self, size: int) -> None:
        """Maps anonymous memory and hands it to KSM."""
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.madvise(mmap.MADV_MERGEABLE)
        self.words = np.frombuffer(memory, np.uint64)

    def fill(self, seed: int) -> None:
        """Writes pages that are all different; the same seed writes the same."""
        pages = self.words.reshape(-1, PAGE // 8)
        numbers = np.arange(len(pages), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 40)
        row = np.arange(PAGE // 8, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        for begin in range(0, len(pages), 4096):
            np.add(numbers[begin : begin + 4096, None], row, out=pages[begin : begin + 4096])

    def settle(self, timeout: float) -> dict[str, Any]:
        """Merges until nothing is left."""
        report: dict[str, Any] = self.client.settle(timeout=timeout).as_dict()
        return report

    def first_writes(self, count: int) -> float:
        """Microseconds for the first write to each of so many pages, on average."""
        pages = self.words.reshape(-1, PAGE // 8)[:count]
        pages[:, 1].sum()  # so that the reading fault is not measured too
        start = time.perf_counter()
        pages[:, 0] = 7
        return (time.perf_counter() - start) * 1e6 / count

    def checksum(self) -> int:
        """Of all bytes."""
        return int(np.bitwise_xor.reduce(self.words)) ^ int(self.words.sum())


def main() -> None:
    """Serves one request after the other."""
    subject = Subject()
    for line in sys.stdin:
        method, *args = json.loads(line)
        print(json.dumps(getattr(subject, method)(*args)), flush=True)
    if subject.client is not None:
        subject.words = None
        subject.client.close()


if __name__ == "__main__":
    main()
