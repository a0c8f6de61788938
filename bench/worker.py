"""A process whose memory is merged: by pagefold (an allocation of the client) or by the kernel (MADV_MERGEABLE)."""

from __future__ import annotations

import ctypes
import gc
import mmap
import threading
import time
from typing import Any

import content
import numpy as np
import wire
import xxhash
from figure import TIMEOUT

PAGE = mmap.PAGESIZE


class Subject:
    """The memory, and what is asked of it."""

    def __init__(self) -> None:
        self.client: Any = None
        self.words: Any = None
        self.numbers: Any = None

    def connect(self, address: str, tracker: str | None = None) -> None:
        """Becomes a client, without memory yet."""
        import pagefold

        self.client = pagefold.connect(address, autostart=False, tracker=tracker, backing="shm")

    def allocate(self, size: int) -> None:
        """Takes memory: the client's, if there is one, else anonymous memory that is handed to KSM."""
        self.words = None
        if self.client is not None:
            self.words = self.client.zeros(size // 8, np.uint64)
            return
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.madvise(mmap.MADV_MERGEABLE)
        self.words = np.frombuffer(memory, np.uint64)

    def fill(self, layout: str, who: int, *more: int) -> str:
        """Writes all pages; see content.py. Returns the checksum."""
        self.numbers = content.LAYOUTS[layout](len(self.words) * 8 // PAGE, who, *more)
        content.fill(self.words, self.numbers)
        return self.checksum()

    def checksum(self) -> str:
        """Of all bytes that were ever written: to read a hole would allocate it."""
        digest, pages = xxhash.xxh3_64(), self._pages
        for first, end in content.runs(self.numbers == content.HOLE):
            if self.numbers[first] != content.HOLE:
                digest.update(pages[first:end])
        return str(digest.hexdigest())

    def settle(self, timeout: float) -> dict[str, Any]:
        """Merges until nothing is left."""
        report: dict[str, Any] = self.client.settle(timeout=timeout).as_dict()
        return report

    def settle_often(self, times: int, seconds: float) -> int:
        """Settles again and again, so often or so long. Returns how often."""
        until, done = time.monotonic() + seconds, 0
        while done < times and time.monotonic() < until:
            if not self.client.settle(timeout=TIMEOUT).settled:
                raise RuntimeError("not settled")
            done += 1
        return done

    def stats(self) -> dict[str, Any]:
        """The client's own word."""
        stats: dict[str, Any] = self.client.stats().as_dict()
        return stats

    def first_writes(self, count: int) -> float:
        """Microseconds for the first write to each of so many pages, on average."""
        pages = self._pages[:count]
        pages[:, 1].sum()  # so that the reading fault is not measured too
        start = time.perf_counter()
        pages[:, 0] = 7
        return (time.perf_counter() - start) * 1e6 / count

    def tracked_writes(self, count: int, value: int) -> tuple[float, float]:
        """Microseconds for the first write to each page since the last settle(), and for one to untracked memory."""
        with mmap.mmap(-1, count * PAGE) as memory:  # anonymous and shared: shmem, as segments are
            plain = np.frombuffer(memory, np.uint64).reshape(-1, content.WORDS)
            plain[:] = 1
            took = []
            for pages in (plain, self._pages[:count]):
                start = time.perf_counter()
                pages[:, 0] = value
                took.append((time.perf_counter() - start) * 1e6 / count)
            del plain, pages
        return took[1], took[0]

    def scatter(self, count: int, seed: int) -> float:
        """Writes a word to pages at random. CPU seconds of the writes themselves, their faults included."""
        chosen = np.random.default_rng(seed).choice(len(self.numbers), count, replace=False)
        pages = self._pages
        start = time.thread_time()
        pages[chosen, 3] = seed
        return time.thread_time() - start

    def rewrite(self, seconds: float) -> float:
        """Writes a word to every page, again and again. Pages written a second of the processor's time."""
        pages, rounds = self._pages, 0
        until, start = time.monotonic() + seconds, time.thread_time()
        while time.monotonic() < until:
            pages[:, 5] = rounds
            rounds += 1
        return rounds * len(pages) / (time.thread_time() - start)

    def churn(self, seconds: float, seed: int, rest: float) -> int:
        """A thread keeps writing: a while to one stretch, the bytes that are there already, then to another.

        So the stretches that it has left merge, and those that it comes to break. Returns how many pages it wrote.

        Args:
            seconds: how long.
            seed: for its choice of stretches.
            rest: seconds between any two megabytes.
        """
        stop, written = threading.Event(), [0]
        pages, image = self._pages, self._pages.copy()
        chance = np.random.default_rng(seed)

        def write() -> None:
            while not stop.is_set():
                first = int(chance.integers(0, len(pages) - 255))
                until = time.monotonic() + 0.02
                while time.monotonic() < until:
                    np.copyto(pages[first : first + 256], image[first : first + 256])  # a megabyte, without the GIL
                    written[0] += 256
                    if rest:
                        stop.wait(rest)

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(seconds)  # that is the measurement: nothing is waited for
        stop.set()
        thread.join()
        return written[0]

    def trim(self) -> None:
        """Forgets what only the worker needs, and gives freed memory back, so that what is left is what is in use."""
        self.numbers = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    def close(self) -> None:
        """Lets go of everything."""
        self.words = None
        if self.client is not None:
            self.client.close()

    @property
    def _pages(self) -> Any:
        return self.words.reshape(-1, content.WORDS)


if __name__ == "__main__":
    wire.serve(Subject())
