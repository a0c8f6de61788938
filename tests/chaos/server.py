"""`python -m chaos.server`: the server, with points at which it can be killed. Takes the flags of `pagefold_server`.

On SIGUSR1 it reads a line "POINT N" from the file that CHAOS_FILE names, and arms that point.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pagefold_server import __main__ as server

from chaos import points


def _arm(*_: Any) -> None:
    point, nth = Path(os.environ["CHAOS_FILE"]).read_text().split()
    points.arm(point, int(nth))


if __name__ == "__main__":
    points.wrap_server()
    signal.signal(signal.SIGUSR1, _arm)
    sys.exit(server.main())
