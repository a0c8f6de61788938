"""The Python that belongs to this library, and the command that has it run the library's code only.

`sys.executable` may be another program: uwsgi under uWSGI, the program itself if it is frozen, a guess where Python is
embedded. And `python -m` imports from the working directory, which may be another user's. So:

* An interpreter is a file named python, either `sys.executable` or in `bin` of the environment that the library runs
  in. $PATH is never searched.
* It runs isolated (`boot.py`). It finds packages where this program does, except in the working directory and beside
  the program's script, unless the library itself is there.

This file starts nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from pagefold._launch import boot

_NAME: Final = re.compile(r"python[0-9.]*[a-z]*")
_SCRIPT: Final = os.path.abspath(boot.__file__)
# The directories of these packages are the library's environment.
_OURS: Final = ("pagefold", "pagefold_core", "pagefold_proto", "grpc", "posix_ipc")


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed
        return ""


_imported_in: Final = _here()


def candidates() -> list[str]:
    """Interpreters that may be the library's, the likeliest first. `boot` refuses one of another version."""
    return list(dict.fromkeys(path for path in _paths() if os.path.isfile(path) and os.access(path, os.X_OK)))


def first() -> str:
    """The likeliest of the candidates.

    Raises:
        FileNotFoundError: there is none.
    """
    found = candidates()
    if not found:
        raise FileNotFoundError(f"no Python interpreter belongs to this program, which runs as {sys.executable!r}")
    return found[0]


def arguments(module: str, *words: str) -> list[str]:
    """Arguments with which an interpreter runs a module."""
    return ["-I", "-S", "-X", "utf8", _SCRIPT, module, *words]


def environment(
    variables: dict[str, str], *, detach: bool = False, closes: bool = False, places: Sequence[str] = ()
) -> dict[str, str]:
    """The environment for these arguments.

    Args:
        variables: what the module finds in its environment.
        detach: the process leaves its starter; see `boot`.
        closes: the process closes all descriptors but the first four.
        places: further directories with packages.
    """
    told = {"tag": boot.tag(), "path": [*own_places(), *places], "detach": detach, "closes": closes}
    return variables | {boot.VARIABLE: json.dumps(told)}


def own_places() -> list[str]:
    """Directories in which this program finds packages, except those of the program's own code."""
    ours = {os.path.realpath(place) for place in _found_in()}
    theirs = {os.path.realpath(place) for place in (_here(), _imported_in, *_of_the_program()) if place} - ours
    return [
        place
        for place in dict.fromkeys(sys.path)
        if os.path.isabs(place) and os.path.exists(place) and os.path.realpath(place) not in theirs
    ]


def _paths() -> Iterator[str]:
    main = sys.modules.get("__main__")
    frozen = getattr(sys, "frozen", False) or hasattr(main, "__compiled__")
    if sys.executable and not frozen and _NAME.fullmatch(os.path.basename(sys.executable)):
        yield sys.executable
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        yield from (f"{prefix}/bin/{name}" for name in (version + sys.abiflags, version, "python3", "python"))


def _found_in() -> Iterator[str]:
    for name in _OURS:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file:
            yield os.path.dirname(os.path.dirname(file) if hasattr(module, "__path__") else file)


def _of_the_program() -> Iterator[str]:
    """The directory of the program's script; of a program started with -m, the directory in which it was started."""
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is None:
        yield os.path.dirname(os.path.abspath(getattr(main, "__file__", None) or "/"))
    elif not sys.flags.safe_path:
        yield sys.path[0] if sys.path else ""
