"""What a Python runs first that the library starts: `python -I -S _boot.py MODULE [ARGUMENT...]`.

Isolated (-I), an interpreter imports nothing from where it stands and heeds no $PYTHON...; without site (-S), it has
nothing but its own library. `interpreter.py` tells, in $PAGEFOLD_BOOT, in which places its packages are: they come
behind its own library and before its site-packages, whose .pth files are read as usual. Then it runs the module.

It is a program of its own, and imports nothing of pagefold: the path is not set when it starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys

VARIABLE = "PAGEFOLD_BOOT"
TOLD_FD = 3
"""Where a detached one tells its number, and where each tells that it answers."""
EXIT_OTHER_PYTHON = 3
"""This interpreter cannot load the extension modules of the one that started it."""


def tag() -> str:
    """What two interpreters have in common that can load the same extension modules."""
    return f"{sys.implementation.cache_tag}{sys.abiflags}"


def main() -> None:
    """See the head of this file."""
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
    """Leaves everything behind that is the starter's: its session, directory, signals, descriptors, and itself."""
    os.chdir("/")  # or its filesystem could not be unmounted
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python itself ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    pid = os.fork()
    if pid:
        os.write(TOLD_FD, f"{pid}\n".encode())
        os._exit(0)


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
