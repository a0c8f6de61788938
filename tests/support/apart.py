"""Code that runs apart from the tests: in a process of its own, with a server and a /dev/shm of its own. Root only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_HEAD = """
import os, pathlib, sys, tempfile
from support.namespace import own_shm
assert own_shm({size!r})
from support.server import Server
from support.worker import PAGE, Worker, page_of
from support.waiting import until
with tempfile.TemporaryDirectory() as d, Server(pathlib.Path(d) / "s", **{settings!r}) as server:
    exec(compile(sys.stdin.read(), "body", "exec"))
"""


def run_apart(body: str, size: str, **settings: object) -> None:
    """Runs code that finds `server`, `Worker`, `PAGE`, `page_of` and `until`; what it raises fails the test.

    Args:
        body: the code.
        size: of /dev/shm, as mount takes it.
        settings: of the server.
    """
    ran = subprocess.run(
        [sys.executable, "-c", _HEAD.format(size=size, settings=settings)],
        input=body,
        cwd=Path(__file__).parents[1],  # for `support`
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
