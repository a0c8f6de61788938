"""The library's log: the logger "pagefold", whose handlers are the program's.

Where threads are greenlets, a handler may switch to another greenlet: it writes to a socket, or waits for a lock of the
program's. The library often logs with locks held, or on the session's thread. So there a real thread that holds no lock
calls the handlers.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any, Final

import pagefold_core

from pagefold._process import threads

_logger: Final = logging.getLogger("pagefold")


class Log:
    """The methods of a `logging.Logger` that the library uses."""

    def log(self, level: int, text: str, *args: object, **options: Any) -> None:
        """Logs a text at a level."""
        if not threads.are_greenlets():
            _logger.log(level, text, *args, stacklevel=3, **options)
            return
        if options.get("exc_info") is True:
            options["exc_info"] = sys.exc_info()  # the other thread has none
        try:
            pagefold_core.start(functools.partial(_logger.log, level, text, *args, **options))
        except OSError:  # no thread can be started: the line is lost, and the program goes on
            return

    def debug(self, text: str, *args: object) -> None:
        """Logs details for debugging."""
        self.log(logging.DEBUG, text, *args)

    def info(self, text: str, *args: object) -> None:
        """Logs an event of normal operation."""
        self.log(logging.INFO, text, *args)

    def warning(self, text: str, *args: object) -> None:
        """Logs that memory is not merged that should be."""
        self.log(logging.WARNING, text, *args)

    def error(self, text: str, *args: object) -> None:
        """Logs a failure."""
        self.log(logging.ERROR, text, *args)

    def exception(self, text: str, *args: object) -> None:
        """Logs a failure, with the exception that is being handled."""
        self.log(logging.ERROR, text, *args, exc_info=True)


log: Final = Log()
