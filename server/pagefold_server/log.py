"""The server's log: which lines are written, how many about each user, and where to. Nothing depends on a line.

    line --level--> Limit, for each user --form: people on a terminal, else JSON--> Sink: a file, or stderr

Lines are for people and machines. Names that clients chose are escaped in both forms.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from pagefold_proto import addresses
from pagefold_proto.text import printable
from structlog.typing import EventDict, Processor, WrappedLogger

from pagefold_server.settings import Settings

_OTHERS: Final = -1  # as `STRANGERS` in `tenants`
_STDERR: Final = 2
_STANDARD: Final = (0, 1, _STDERR)
_KEPT: Final = re.compile(r"(\x1b\[[0-9;]*m|\n)")  # in a line: colours, and the breaks of a traceback
_OTHERS_WRITE: Final = 0o022
_AT_ONCE: Final = select.PIPE_BUF  # bytes that a pipe with room for any takes without waiting


class Limit:
    """Bounds the lines about each user: a user can cause any number of them, and they fill the operator's disk.

    A line is about a user if it has a `uid`; in a call, `turns` gives it one. Each user has a bound of its own, so that
    no flood hides what is told of another user. Lines left out are counted; `left_out` returns the counts.

    Args:
        most: lines in a second.
        users: with a bound of their own. All users beyond that number share one.
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
        """Lines left out since the last call, by user, of seconds that are over."""
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


class Sink:
    """Where lines go: a file, or stderr.

    Writing neither raises nor waits. A line that cannot be written (the disk is full, the reader of a pipe is gone, or
    does not read) is lost, and counted. The file is bounded: beyond `most` bytes it becomes FILE.1, in place of the one
    before. It may be renamed or removed at any time, as logrotate does: the next line goes into a new one.

    Attributes:
        lost: lines.
        why: the reason for which the last one was lost.
    """

    def __init__(self) -> None:
        self.lost, self.why = 0, ""
        self._path: Path | None = None
        self._most = 0
        self._fd = _STDERR  # -1: it is closed
        self._opened: os.stat_result | None = None  # the file
        self._cut = False  # the last line is not whole

    def __str__(self) -> str:
        return "stderr" if self._path is None else printable(str(self._path))

    def set(self, path: Path | None, most: int) -> None:
        """Says where lines go (None: to stderr), and tries it."""
        self._path, self._most = path, most
        try:
            self._ready(0)
        except OSError as error:
            say(f"the log {self} cannot be opened, and lines are lost until it can: {error.strerror}")

    def closed(self) -> None:
        """There is no stderr."""
        self._fd = -1

    def msg(self, line: str) -> None:
        """Writes a line. Of control characters a terminal gets those for colours only."""
        parts = _KEPT.split(("\n" if self._cut else "") + line)
        text = "".join(part if n % 2 else printable(part) for n, part in enumerate(parts)) + "\n"
        data = text.encode(errors="backslashreplace")
        size = len(data)
        try:
            self._ready(size)
            while data:
                self._check_room()
                data = data[os.write(self._fd, data[:_AT_ONCE]) :]
            self._cut = False
        except OSError as error:
            self.lost += 1
            self.why = error.strerror or str(error)
            self._cut |= len(data) < size

    debug = info = warning = error = critical = msg

    def _ready(self, more: int) -> None:
        """Opens the file; the next one, if it is gone or full."""
        if self._path is None:
            return
        before, old = self._opened, self._fd
        if before is not None and self._is_at(self._path, before):
            if not stat.S_ISREG(before.st_mode) or os.fstat(old).st_size + more <= self._most:
                return
            try:
                os.replace(self._path, f"{self._path}.1")
            except OSError:
                os.ftruncate(old, 0)
                return
        self._fd = _opened(self._path, make_directory=before is not None)
        self._opened = os.fstat(self._fd)
        if before is not None:
            # stderr and stdout go along (grpc writes messages of its own there), or the old file would grow.
            for fd in (1, _STDERR):
                if os.path.samestat(before, os.fstat(fd)):
                    os.dup2(self._fd, fd)
            os.close(old)

    @staticmethod
    def _is_at(path: Path, known: os.stat_result) -> bool:
        try:
            return os.path.samestat(known, path.stat())
        except FileNotFoundError:
            return False

    def _check_room(self) -> None:
        """Whether a pipe, socket or terminal takes a short line now. Raises OSError: it does not."""
        if self._fd < 0:
            raise OSError(errno.EBADF, "stderr is closed")
        if self._opened is None or not stat.S_ISREG(self._opened.st_mode):
            waiting = select.poll()
            waiting.register(self._fd, select.POLLOUT)
            if not waiting.poll(0):
                raise BlockingIOError(errno.EAGAIN, "its reader does not read")


def _opened(path: Path, make_directory: bool) -> int:
    """Opens a log, to append to it, through no link of another user's.

    Args:
        path: of the file.
        make_directory: it was there, and cleaners of /var/tmp may have taken it.

    Raises:
        OSError: it cannot be opened, or its directory is another user's, who could have put anything in its place.
    """
    if make_directory:
        addresses.make_directory(str(path.parent))
    place = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"its directory belongs to uid {found.st_uid}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        if found.st_mode & _OTHERS_WRITE:
            flags |= os.O_NOFOLLOW
        return os.open(path.name, flags | os.O_NONBLOCK, 0o600, dir_fd=place)
    finally:
        os.close(place)


limit: Final = Limit()
sink: Final = Sink()


def claim_standard_descriptors() -> None:
    """Opens 0, 1 and 2 onto nothing, if they are closed.

    Else the next file gets such a number, a frame pool's say, and what is written to stderr is written into it.
    """
    for fd in _STANDARD:
        try:
            os.fstat(fd)
        except OSError:
            if fd == _STDERR:
                sink.closed()
            opened = os.open(os.devnull, os.O_RDWR | os.O_NONBLOCK)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)


def say(text: str) -> None:
    """Writes a line to stderr, for the user that started the server; without stderr it is lost."""
    with contextlib.suppress(OSError):
        os.write(_STDERR, f"pagefold: {printable(text)}\n".encode(errors="backslashreplace"))


def configure(settings: Settings) -> None:
    """Sets level, form and place. Called again when settings change."""
    sink.set(settings.log_file, settings.log_max_bytes)
    terminal = settings.log_file is None and _is_terminal()
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        limit,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "console" or (settings.log_format == "auto" and terminal):
        processors += [_escaped, structlog.dev.ConsoleRenderer(colors=terminal)]
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )


def _escaped(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Escapes names, which JSON does by itself."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _is_terminal() -> bool:
    try:
        return os.isatty(_STDERR)
    except OSError:
        return False
