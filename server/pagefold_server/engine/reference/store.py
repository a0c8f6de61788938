"""Where the reference engine keeps the bytes of frames. The native engine has this in itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class StoredFrame(NamedTuple):
    """What a store has under a number. A frame released and not yet punched is neither used nor free."""

    used: bool
    free: bool
    page: bytes | None  # None: a hole


class FrameStore(Protocol):
    """Allocates, fills and releases frames. `pool` has the real one; tests keep frames in a dict."""

    def allocate(self, near: int) -> int:
        """Takes a free frame number, `near` itself if that is free: neighbours make long runs.

        Raises:
            OSError: ENOSPC, when /dev/shm or the pool is full.
        """

    def write(self, frame: int, page: bytes | memoryview) -> None:
        """Fills a frame that was allocated and never written.

        Raises:
            OSError: ENOSPC; the frame is to be released.
        """

    def recover(self) -> Iterator[tuple[int, bytes]]:
        """Takes over what was there before, in an object of a server that is gone. Numbers and bytes, in order.

        Raises:
            OSError: it is too large, or cannot be read.
        """

    def read(self, frame: int) -> bytes:
        """A frame's bytes."""

    def inspect(self, frame: int) -> StoredFrame:
        """What there is behind a number; for audits. Numbers that were never used are free."""

    def release(self, frame: int) -> None:
        """Gives a frame up; the number may be used again when its memory has been given back."""

    def flush(self) -> None:
        """Gives the memory of released frames back.

        Raises:
            OSError: that failed; it is tried again the next time.
        """
