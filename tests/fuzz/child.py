"""A process of a campaign: it tells what it has done in lines of JSON, the last of which counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_TAIL: Final = 1 << 16
"""Bytes at the end of what it said, in which the last line is."""


class Child:
    """`python -m MODULE ARGS`. It ends when its standard input does.

    Args:
        module: that is run.
        told: file that gets its lines.
    """

    def __init__(self, module: str, told: Path, *args: object) -> None:
        self._told = told
        with told.open("ab") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, args)],
                stdin=subprocess.PIPE,
                stdout=lines,
                stderr=lines,
                cwd=Path(__file__).resolve().parents[1],
                env={k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")},
            )

    def told(self) -> dict[str, Any]:
        """The last thing that it said; nothing if that was not yet."""
        with self._told.open("rb") as file:
            file.seek(max(0, self._told.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        return dict(json.loads(lines[-1])) if lines else {}

    def ended(self, seconds: float) -> bool:
        """Waits so long for its end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self, seconds: float) -> str:
        """Asks it to end. What went wrong with that, if anything."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if not self.ended(seconds):
            self.kill()
            return f"{self.process.args} did not end:\n{self._told.read_text()[-4000:]}"
        if self.process.returncode:
            return f"{self.process.args} ended with {self.process.returncode}:\n{self._told.read_text()[-4000:]}"
        return ""

    def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)
        if self.process.stdin is not None:
            self.process.stdin.close()
