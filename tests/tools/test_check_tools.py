"""What `make` says on a machine that lacks something: one line that names it, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "tools" / "check_tools.py"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with tools that answer as they should."""
    for name, answer in (("cargo", "cargo 1.90.0"), ("rustc", "rustc 1.90.0 (abc 2025-01-01)"), ("cc", "cc")):
        tool(tmp_path, name, f"echo '{answer}'")
    return tmp_path


def tool(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def check(tools: Path, *flags: str) -> tuple[int, str]:
    env = {"PATH": str(tools)}
    ended = subprocess.run([sys.executable, CHECK, *flags], env=env, capture_output=True, text=True, timeout=60)
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == ended.returncode
    return ended.returncode, ended.stderr


def test_nothing_missing_is_silence(tools: Path) -> None:
    assert check(tools) == (0, "")
    assert check(tools, "--lint") == (0, "")


@pytest.mark.parametrize(
    ("name", "remedy"), [("cargo", "sh.rustup.rs"), ("rustc", "sh.rustup.rs"), ("cc", "build-essential")]
)
def test_a_missing_tool(tools: Path, name: str, remedy: str) -> None:
    (tools / name).unlink()
    code, said = check(tools)
    assert code == 1
    assert remedy in said


def test_an_old_compiler(tools: Path) -> None:
    tool(tools, "rustc", "echo 'rustc 1.70.0 (abc 2023-01-01)'")
    assert "needs Rust 1.85 or newer, and this is 1.70.0: rustup update" in check(tools)[1]


def test_a_toolchain_that_does_not_run(tools: Path) -> None:
    tool(tools, "rustc", "exit 1")
    assert "rustup default stable" in check(tools)[1]


def test_lint_needs_components(tools: Path) -> None:
    tool(tools, "cargo", '[ "$1" != clippy ]')
    assert check(tools)[0] == 0
    assert "rustup component add" in check(tools, "--lint")[1]


@pytest.mark.parametrize(
    ("version", "module", "words"),
    [((3, 9), "", "needs Python 3.11 or newer"), ((3, 12), "ensurepip", "apt install python3.12-venv")],
)
def test_python(tools: Path, version: tuple[int, int], module: str, words: str) -> None:
    code = f"import sys; sys.version_info = {(*version, 0)}; sys.path.insert(0, {str(CHECK.parent)!r})\n"
    code += f"sys.modules[{module!r}] = None\n" if module else ""
    code += "import check_tools; print(check_tools.python())"
    env = {"PATH": str(tools), "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.check_output([sys.executable, "-c", code], env=env, text=True, timeout=60)
    assert words in told


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_without_python_says_so_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "native/Cargo.toml", "native/Cargo.lock", "tools/cargo_with_faults"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    words = ["make", "-s", "setup", "PYTHON=no-such-python"]
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "needs Python 3.11 or newer (no-such-python is not there)" in ended.stderr
