"""A short campaign of `make chaos`: kills at steps of the protocol, and not a byte is lost. docs/chaos.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import faults

TESTS = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.needs("uffd", "root"),  # root: it counts what is in a /dev/shm of its own
    pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup"),
]


def test_I7_nothing_is_lost_and_nothing_is_left_whoever_is_killed() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "chaos", "--rounds", "4", "--seed", "21", "--json"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.stdout, ended.stderr
    told = json.loads(ended.stdout)
    assert told["losses"] == []
    assert told["leaks"] == []
    assert told["faults"] == []
    assert ended.returncode == 0
    assert told["rounds"] == 4
    assert set(told["kinds"]) == {"server", "client", "child"}
    assert told["most_merged"] > 0
    assert told["audits"] == told["rounds"] + 1  # one a round, and a whole one in the end
    assert told["reconnected"] > 0
    assert told["verified"] > told["written"] > 0
