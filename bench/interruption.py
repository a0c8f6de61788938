"""Being told to stop: once is enough, and what puts things back is not cut short by it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def watch() -> None:
    """From now on Ctrl-C, SIGTERM and a lost terminal raise KeyboardInterrupt, the first time."""
    for signum in _SIGNALS:
        signal.signal(signum, _interrupt)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, no interruption arrives; afterwards it does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(
            each, signal.SIG_IGN
        )  # from here on everything is being put back: a second Ctrl-C must not stop that
    raise KeyboardInterrupt
