"""Says in one line what this machine lacks to build pagefold, and how to get it. Silent if nothing is missing.

Standard library only, and in the language of very old Pythons: it has to run where pagefold does not.
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
        sys.stderr.write("pagefold: " + missing + "\n")
    return 1 if missing else 0


def python():
    """The interpreter, and the modules that distributions package apart from it."""
    found = sys.version_info
    if tuple(found[:2]) < LEAST_PYTHON:
        return (
            "needs Python 3.11 or newer, and %s is %d.%d: install a newer one (apt install python3, or pyenv), "
            "or name the one to use: make PYTHON=python3.12" % (sys.executable, found[0], found[1])
        )
    if not sys.platform.startswith("linux"):
        return "needs Linux: it rests on userfaultfd and POSIX shared memory as Linux has them"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "needs Python's venv module: apt install python%d.%d-venv" % (found[0], found[1])
    return ""


def rust():
    """Cargo, and a compiler that knows the edition."""
    if not shutil.which("cargo") or not shutil.which("rustc"):
        return "needs a Rust toolchain (cargo): install it with  " + RUSTUP
    try:
        told = subprocess.check_output(["rustc", "--version"], stderr=subprocess.STDOUT).decode()
        version = tuple(int(part) for part in told.split()[1].split("-")[0].split(".")[:2])
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return "has a Rust toolchain that does not run (rustc --version fails): rustup default stable"
    if version < LEAST_RUST:
        return "needs Rust %d.%d or newer, and this is %d.%d: rustup update stable" % (LEAST_RUST + version)
    if "--lint" in sys.argv:
        for tool in ("fmt", "clippy"):
            if subprocess.call(["cargo", tool, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
                return "needs cargo " + tool + " for this: rustup component add rustfmt clippy"
    return ""


def linker():
    """What rustc links with, and what posix_ipc is compiled with where it has no wheel."""
    if not shutil.which(os.environ.get("CC", "cc").split()[0]):
        return "needs a C compiler and linker (cc): apt install build-essential"
    return ""


if __name__ == "__main__":
    sys.exit(main())
