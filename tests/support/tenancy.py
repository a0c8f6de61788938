"""A server for several users: one that root runs, and a directory that the others may enter (pytest's they may not)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.server import Server

ALICE, BOB = 61001, 61002
"""Users that no file of this machine belongs to."""


@contextlib.contextmanager
def tenants_server(directory: Path, **settings: Any) -> Iterator[tuple[Server, str]]:
    """A server, and the address at which other users reach it."""
    open_to_all = Path(tempfile.mkdtemp(prefix="pagefold-test-"))
    try:
        open_to_all.chmod(0o755)
        address = f"unix:{open_to_all}/server.sock"
        with Server(directory, tenants_address=address, **settings) as server:
            yield server, address
        assert os.listdir(open_to_all) == [], "the socket for other users is left behind"
    finally:
        shutil.rmtree(open_to_all)
