"""The server's log: structlog to stderr, for people on a terminal, as JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from pagefold_server.settings import Settings

_OTHERS: Final = -1  # as the strangers in `tenants`


class Limit:
    """Bounds the lines about each user: users can make as many as they like, and a log is somebody's disk.

    A line is about a user if it has a `uid`; in a call, `gate` gives it one. Each user has a bound of his own: nobody's
    flood hides what is told of another. What is left out is counted; `left_out` tells it.

    Args:
        most: lines in a second.
        users: that are told apart. Those who come when there are so many share one bound.
        clock: the time in seconds.
    """

    def __init__(self, most: int = 10, users: int = 1024, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._users, self._clock = most, users, clock
        self._told: dict[int, _Told] = {}

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Lets a line pass, or raises DropEvent."""
        if "uid" in event:
            told = self._of(event["uid"])
            if told.lines >= self._most:
                told.left_out += 1
                raise structlog.DropEvent
            told.lines += 1
        return event

    def left_out(self) -> dict[int, int]:
        """How many lines of whom were left out since this was asked last, in seconds that are over."""
        second = int(self._clock())
        found = {uid: told.left_out for uid, told in self._told.items() if told.second != second and told.left_out}
        for uid in found:
            self._told[uid].left_out = 0
        return found

    def _of(self, uid: int) -> _Told:
        second = int(self._clock())
        if uid not in self._told and len(self._told) >= self._users:
            self._told = {uid: told for uid, told in self._told.items() if told.second == second or told.left_out}
            uid = uid if len(self._told) < self._users else _OTHERS
        told = self._told.setdefault(uid, _Told(second))
        if told.second != second:
            told.second, told.lines = second, 0
        return told


@dataclass(slots=True)
class _Told:
    second: int
    lines: int = 0
    left_out: int = 0


limit: Final = Limit()


def configure(settings: Settings) -> None:
    """Sets level and form. Called again when the level changes."""
    for_people = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        limit,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if for_people:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
