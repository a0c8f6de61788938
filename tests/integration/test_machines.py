"""Machines and limits as people have them: what a program is told there, and what its memory does."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from support.server import Server

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "machine.md").read_text()


def run(code: str, *words: str) -> str:
    """Runs a program, where `support` is found; what it raises fails the test."""
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.needs("root")
def test_a_server_with_another_dev_shm_says_so(server: Server) -> None:
    """It said "No such file or directory" of an object that was there."""
    code = """
import sys
from support.namespace import own_shm
assert own_shm("64m")
import pagefold
try:
    pagefold.connect(sys.argv[1], autostart=False)
except pagefold.ServerRefused as error:
    print(error)
"""
    said = run(code, server.address)
    assert "in its /dev/shm" in said
    assert "different containers or mount namespaces" in said
    assert "--ipc=" in said


def test_the_manual_silences_pythons_warning_of_forks() -> None:
    """Python 3.12 warns at every fork of a program with threads, and README says that programs may fork."""
    (pattern,) = re.findall(r'"ignore", r"(.*?)", DeprecationWarning', MANUAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", pattern, DeprecationWarning)
        for call in ("fork", "forkpty"):
            text = f"This process (pid=1) is multi-threaded, use of {call}() may lead to deadlocks in the child."
            warnings.warn(text, DeprecationWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning):
            warnings.warn("another one", DeprecationWarning, stacklevel=1)


@pytest.mark.parametrize("setting", re.findall(r"\b(vm\.\w+)=\d", MANUAL))
def test_settings_that_the_manual_names_exist(setting: str) -> None:
    assert Path("/proc/sys", setting.replace(".", "/")).exists()
