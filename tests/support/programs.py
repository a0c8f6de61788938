"""Programs of their own with a client, which end with 0 if all that they assert is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import variant
from support.server import Server

HERE = Path(__file__).parents[1]

PRELUDE = """
import ctypes, os, subprocess, sys, threading, time
import numpy as np
import pagefold
from support import kernel
from support.children import Child, child, fork
from support.waiting import until

PAGE = 4096
client = pagefold.connect(sys.argv[1], autostart=False)
space = client._session.space

def table(pages, seed=1):
    "Pages that differ from each other, and that every program has which asks for the same seed."
    array = client.empty((pages, PAGE), "u1")
    for page in range(pages):
        array[page] = (np.arange(PAGE) * 7 + page * 13 + seed) % 251
        array[page, :8] = np.frombuffer(((seed << 32) + page).to_bytes(8, "little"), "u1")
    return array

def quiet():
    "Until nothing of a fork is left."
    until(lambda: not client._session.space.shared, what="the thaw")
"""


def start(server: Server, code: str, *args: str) -> subprocess.Popen[str]:
    """A program of its own, with a client, that ends with 0 if all that it asserts is true."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, server.address, *args],
        cwd=HERE,
        # One heap for all threads: gRPC starts its threads anew at a fork, and a heap for each is two mappings more.
        env={k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
        | {"MALLOC_ARENA_MAX": "1", "PAGEFOLD_TRACKER": variant.TRACKER},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(program: subprocess.Popen[str], timeout: float = 60) -> None:
    try:
        _, errors = program.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        _, errors = program.communicate()
        raise AssertionError(f"the program hangs:\n{errors}") from None
    assert program.returncode == 0, errors


def run(server: Server, code: str, *args: str) -> None:
    finish(start(server, code, *args))
