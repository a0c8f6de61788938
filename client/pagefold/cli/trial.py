"""A client that the doctor starts: a small process that connects, allocates, settles and reads back.

What keeps programs from merging keeps this one from merging, and it says so in the same words. It runs with the
doctor's environment and limits, in the domain of this user's programs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagefold_proto.limits import PAGE

PAGES: Final = 64
_SETTLE_SECONDS: Final = 10.0
_PATIENCE: Final = 40.0  # for the whole process


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the client fared.

    Attributes:
        merged: pages merged, of twice `PAGES`.
        settled: the answer of settle(), and `reason` the reason that it gave.
        trouble: from stats(), as are `barrier` and `tracker`.
        intact: the client read what it had written.
        seconds: how long settle() took.
        error: why the client could not try; empty if it could.
    """

    merged: int = 0
    settled: bool = False
    reason: str = ""
    trouble: str = ""
    barrier: str = ""
    tracker: str = ""
    intact: bool = False
    seconds: float = 0.0
    error: str = ""


def run(address: str, token_file: Path | None = None, ca: Path | None = None) -> Outcome:
    """Runs a client and returns its outcome. A client that fails is an outcome, and raises nothing."""
    environ = dict(os.environ)
    if token_file is not None:
        environ["PAGEFOLD_TOKEN"] = token_file.read_text(errors="replace").strip()
    asked = [address, *([] if ca is None else [str(ca)])]
    try:
        ran = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "pagefold.cli.trial", *asked],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(error=f"the client did not end within {_PATIENCE:.0f} s")
    try:
        return Outcome(**json.loads(ran.stdout))
    except (ValueError, TypeError):
        words = ran.stderr.strip()[-500:] or "it says nothing"
        return Outcome(error=f"the client ended with {ran.returncode}: {words}")


def _try(address: str, ca: str | None) -> Outcome:
    import pagefold

    try:
        with pagefold.connect(address, autostart=False, ca=ca) as client:
            content = os.urandom(PAGES * PAGE)
            buffers = [client.allocate(len(content)) for _ in range(2)]
            for buffer in buffers:
                buffer[:] = content
            report = client.settle(_SETTLE_SECONDS)
            stats = client.stats()
            return Outcome(
                merged=stats.merged_bytes // PAGE,
                settled=report.settled,
                reason=report.reason,
                trouble=stats.trouble,
                barrier=stats.barrier,
                tracker=stats.tracker,
                intact=all(buffer[:] == content for buffer in buffers),
                seconds=report.seconds,
            )
    except (pagefold.PagefoldError, MemoryError, ValueError, OSError) as error:
        return Outcome(error=str(error))


if __name__ == "__main__":
    import logging

    logging.getLogger("pagefold").addHandler(logging.NullHandler())  # what it logs is in the outcome too
    print(json.dumps(dataclasses.asdict(_try(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))))
