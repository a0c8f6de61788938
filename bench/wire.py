"""The worker's end of the pipe: a JSON list a line comes in (method, arguments), a JSON pair a line goes out."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import Any


def serve(subject: Any) -> None:
    """Calls methods of `subject` until the pipe is closed or the process is told to end; then closes it."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        for line in sys.stdin:
            method, *args = json.loads(line)
            try:
                answer = [True, getattr(subject, method)(*args)]
            except Exception as error:  # whatever it is, the other end has to hear of it
                answer = [False, f"{type(error).__name__}: {error}"]
            print(json.dumps(answer), flush=True)
    finally:
        subject.close()


def _leave(signum: int, frame: FrameType | None) -> None:
    sys.exit(1)
