"""The Python that belongs to this library, and how it is started so that it runs our code and nobody else's.

`sys.executable` need not be it: under uWSGI it is uwsgi, in a frozen program it is that program, which would run a
second time; a program that embeds Python has what it guessed. And `python -m` imports from the working directory,
whosever that is, with the rights of the program. So here:

* An interpreter is a file that is called python, in the place that this one says, or in `bin` of the environment that
  the library runs in. It is never looked for in $PATH.
* It runs isolated (`boot.py`), and looks for packages where this program does, but not in the working directory, nor
  beside the program's script, unless the library itself is there.

Starts nothing itself.
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
# Where the library and what it cannot do without were found: there its environment is.
_OURS: Final = ("pagefold", "pagefold_core", "pagefold_proto", "grpc", "posix_ipc")


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed
        return ""


_imported_in: Final = _here()


def candidates() -> list[str]:
    """Interpreters that may be the library's, the likeliest first. `boot` has the last word on whether they are."""
    return list(dict.fromkeys(path for path in _paths() if os.path.isfile(path) and os.access(path, os.X_OK)))


def first() -> str:
    """The likeliest one.

    Raises:
        FileNotFoundError: there is none.
    """
    found = candidates()
    if not found:
        raise FileNotFoundError(f"no Python interpreter belongs to this program, which runs as {sys.executable!r}")
    return found[0]


def arguments(module: str, *words: str) -> list[str]:
    """What an interpreter gets to run a module."""
    return ["-I", "-S", "-X", "utf8", _SCRIPT, module, *words]


def environment(
    variables: dict[str, str], *, detach: bool = False, closes: bool = False, places: Sequence[str] = ()
) -> dict[str, str]:
    """An environment for it.

    Args:
        variables: what the module gets to know.
        detach: the process leaves its starter; see `boot`.
        closes: it keeps no descriptor of its starter's, but for the first four.
        places: further directories in which packages are found.
    """
    told = {"tag": boot.tag(), "path": [*own_places(), *places], "detach": detach, "closes": closes}
    return variables | {boot.VARIABLE: json.dumps(told)}


def own_places() -> list[str]:
    """Where this program finds packages, but for the places of its own code."""
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
    """The directory of the program's script; of one that was started with -m, the directory that it was started in."""
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is None:
        yield os.path.dirname(os.path.abspath(getattr(main, "__file__", None) or "/"))
    elif not sys.flags.safe_path:
        yield sys.path[0] if sys.path else ""
