"""How a command ends: with an exit code, and with a sentence that says what to do next."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """Exit codes, which scripts may rely on."""

    OK = 0
    FAILED = 1
    """The command failed, or the answer is no: not settled, not verified, not able to merge."""
    USAGE = 2
    NO_SERVER = 3
    """No server answers at the address."""
    INTERRUPTED = 130


EXIT_CODES: Final = "Exit codes: 0 done; 1 failed, or the answer is no; 2 usage; 3 no server answers; 130 Ctrl-C."


class CommandError(Exception):
    """Ends a command with a text for people, which says what to do, and without a traceback.

    Args:
        text: one or two sentences, without a name in front and without a full stop.
        code: the process's exit code.
    """

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code
