"""The library's log: the logger "pagefold", which the program directs or does not hear of.

Where threads are greenlets, a handler may switch to another one (it writes to a socket, or waits for a lock of the
program's), and much of what is logged is logged with locks held, or by the session's thread. There a real thread that
holds nothing hands it to the handlers.
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
        """Says something."""
        if not threads.are_greenlets():
            _logger.log(level, text, *args, stacklevel=3, **options)
            return
        if options.get("exc_info") is True:
            options["exc_info"] = sys.exc_info()  # the other thread has none
        try:
            pagefold_core.start(functools.partial(_logger.log, level, text, *args, **options))
        except OSError:  # no thread is to be had: nobody hears of it, and the program goes on
            return

    def debug(self, text: str, *args: object) -> None:
        """For those who look for a fault."""
        self.log(logging.DEBUG, text, *args)

    def info(self, text: str, *args: object) -> None:
        """What goes on."""
        self.log(logging.INFO, text, *args)

    def warning(self, text: str, *args: object) -> None:
        """Something is not merged that should be."""
        self.log(logging.WARNING, text, *args)

    def error(self, text: str, *args: object) -> None:
        """Something failed."""
        self.log(logging.ERROR, text, *args)

    def exception(self, text: str, *args: object) -> None:
        """Something failed, with the exception that is being handled."""
        self.log(logging.ERROR, text, *args, exc_info=True)


log: Final = Log()
