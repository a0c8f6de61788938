"""How a command ends: its exit code, and one sentence that says what to do next."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """What scripts may rely on."""

    OK = 0
    FAILED = 1
    """It failed, or the answer is no: not settled, not verified, not able to merge."""
    USAGE = 2
    NO_SERVER = 3
    """No server answers at the address."""
    INTERRUPTED = 130


EXIT_CODES: Final = "Exit codes: 0 done; 1 it failed, or the answer is no; 2 usage; 3 no server answers; 130 Ctrl-C."


class CommandError(Exception):
    """Ends a command with a text for people. The text says what to do; nobody sees a traceback.

    Args:
        text: one sentence or two, without a name in front and without a full stop.
        code: what the process exits with.
    """

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code
