"""The first file that an interpreter of the library's runs: `python -I -S boot.py MODULE [ARGUMENT...]`.

With -I an interpreter imports nothing from its working directory and ignores $PYTHON...; with -S it finds only the
standard library. `interpreter.py` says in $PAGEFOLD_BOOT where packages are. Those directories go behind the standard
library and before site-packages, whose .pth files are read as usual. Then the module is run.

This file imports nothing of pagefold: the path is not set when it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys

VARIABLE = "PAGEFOLD_BOOT"
TOLD_FD = 3
"""Descriptor on which a detached server writes its number, and on which every server says that it answers."""
EXIT_OTHER_PYTHON = 5
"""This interpreter cannot load the extension modules of the one that started it. No server ends with this code."""


def tag() -> str:
    """Equal in two interpreters if they can load the same extension modules."""
    return f"{sys.implementation.cache_tag}{sys.abiflags}"


def main() -> None:
    """Sets the process up as $PAGEFOLD_BOOT says, and runs the module that the arguments name."""
    told = json.loads(os.environ.pop(VARIABLE))
    if told["tag"] != tag():
        sys.exit(EXIT_OTHER_PYTHON)
    if told["closes"]:
        os.closerange(TOLD_FD + 1, os.sysconf("SC_OPEN_MAX"))
    if told["detach"]:
        _detach()
    _set_path(told["path"])
    del sys.argv[0]
    import runpy

    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _detach() -> None:
    """Drops what the process inherited from its starter: session, directory, limits, signals; the parent, by a fork."""
    os.chdir("/")  # or its filesystem could not be unmounted
    os.setsid()
    os.umask(0o077)
    _lift_limits()
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python itself ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    pid = os.fork()
    if pid:
        os.write(TOLD_FD, f"{pid}\n".encode())
        os._exit(0)


def _lift_limits() -> None:
    """As far as it may: the server is there for all of the user's programs, and works on when this one has ended."""
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, most))
    with contextlib.suppress(OSError):  # of a program that may not go back from idle
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):  # where init may run: no processor that is kept for others
        os.sched_setaffinity(0, os.sched_getaffinity(1))


def _set_path(places: list[str]) -> None:
    library = sys.path[:]
    import site

    site.main()
    own = [place for place in sys.path if place not in library and place not in places]
    sys.path[:] = [*library, *(place for place in places if place not in library), *own]
    if site.getusersitepackages() in places:
        site.addsitedir(site.getusersitepackages())  # -I leaves it out, with its .pth files


if __name__ == "__main__":
    main()
