"""Says in one line what this machine lacks to build pagefold, and how to get it. Silent if nothing is missing.

Standard library only, and no syntax newer than Python 3.6: it has to run where pagefold does not.
"""

import os
import shutil
import subprocess
import sys

LEAST_PYTHON = (3, 11)
LEAST_RUST = (1, 85)
RUSTUP = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"


def main():
    """Looks at everything that `make setup` needs; the first thing missing is the one that is told."""
    missing = python() or rust() or linker()
    if missing:
        sys.stderr.write(f"pagefold: {missing}\n")
    return 1 if missing else 0


def python():
    """The interpreter, and the modules that distributions package apart from it."""
    found = sys.version_info
    if tuple(found[:2]) < LEAST_PYTHON:
        return (
            f"needs Python 3.11 or newer, and {sys.executable} is {found[0]}.{found[1]}: install a newer one "
            "(apt install python3, or pyenv), or name the one to use: make PYTHON=python3.12"
        )
    if not sys.platform.startswith("linux"):
        return "needs Linux: it rests on userfaultfd and POSIX shared memory as Linux has them"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return f"needs Python's venv module: apt install python{found[0]}.{found[1]}-venv"
    return ""


def rust():
    """Cargo, and a compiler that knows the edition."""
    if not shutil.which("cargo") or not shutil.which("rustc"):
        return f"needs a Rust toolchain (cargo): install it with  {RUSTUP}"
    try:
        told = subprocess.check_output(["rustc", "--version"], stderr=subprocess.STDOUT).decode()  # noqa: S607
        version = tuple(int(part) for part in told.split()[1].split("-")[0].split(".")[:2])
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return "has a Rust toolchain that does not run (rustc --version fails): rustup default stable"
    if version < LEAST_RUST:
        return (
            f"needs Rust {LEAST_RUST[0]}.{LEAST_RUST[1]} or newer, and this is {told.split()[1]}: rustup update stable"
        )
    if "--lint" in sys.argv:
        for tool in ("fmt", "clippy"):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            if subprocess.call(["cargo", tool, "--version"], **quiet):  # noqa: S603, S607
                return f"needs cargo {tool} for this: rustup component add rustfmt clippy"
    return ""


def linker():
    """What rustc links with, and what posix_ipc is compiled with where it has no wheel."""
    if not shutil.which(os.environ.get("CC", "cc").split()[0]):
        return "needs a C compiler and linker (cc): apt install build-essential"
    return ""


if __name__ == "__main__":
    sys.exit(main())
