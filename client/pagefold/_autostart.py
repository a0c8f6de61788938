"""Starts a per-user server where none answers: detached, in a session of its own, with a log on disk.

Of several processes that find no server, one starts it and the others wait for that: they take turns at a file lock.
(Should two servers be started all the same, the second one sees the first one's lock and exits.)
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from pagefold import _address
from pagefold._address import Address
from pagefold._errors import ServerUnavailable

IDLE_EXIT_SECONDS: Final = 60
_NEEDED: Final = ("pagefold_server", "grpc_health", "grpc_reflection", "pydantic_settings", "structlog", "xxhash")
_LOG_TAIL: Final = 2000
_LOG_BYTES: Final = 8 << 20
_LOG_BYTES_IN_MEMORY: Final = 256 << 10
_FASTER_ONE_SECONDS: Final = 2.0

# Forks and lets its first half exit, so that the server is nobody's child here: no zombie, no surprise for os.wait().
_DETACH: Final = "import os, sys\nif not os.fork():\n    os.execv(sys.argv[1], sys.argv[1:])"


def answers(address: Address) -> bool:
    """Whether something listens at a Unix socket. For TCP: True, the first call will tell."""
    return address.scheme != "unix" or _address.listener(address.path) is not None


def ensure_server(address: Address, timeout: float) -> None:
    """Starts a server unless one answers, and waits until it is ready.

    Raises:
        ServerUnavailable: it cannot be started, or was not ready in time. The text says why and what to do.
    """
    if answers(address):
        return
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing or not sys.executable:
        what = f"{', '.join(missing)} cannot be imported here" if missing else "this program is no Python interpreter"
        raise ServerUnavailable(
            f"no server answers at {address}, and none can be started, because {what}: "
            "pip install 'pagefold[server]', or run `pagefold serve` elsewhere"
        )
    directory = os.path.dirname(address.path)
    deadline = time.monotonic() + timeout
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        _address.verify_directory(directory)
        with _turn(address, deadline):
            if not answers(address):
                _start(address, deadline)
    except ServerUnavailable:  # which is an OSError, too
        raise
    except (OSError, ValueError) as error:
        why = f"{error}{_full(directory)}"
        raise ServerUnavailable(f"no server answers at {address}, and none can be started: {why}") from error


@contextlib.contextmanager
def _turn(address: Address, deadline: float) -> Iterator[None]:
    fd = os.open(address.path + ".start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if answers(address):
                    break
                if time.monotonic() > deadline:
                    raise _late(address) from None
                time.sleep(0.02)  # no event tells of another's server
        yield
    finally:
        os.close(fd)


def _start(address: Address, deadline: float) -> None:
    log, most = log_of(address)
    ready, tell = os.pipe()
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            log_fd = os.open(log, flags | os.O_NONBLOCK, 0o600)
        except OSError:  # the disk is full, say: the server does without
            log_fd = os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            server = [sys.executable, "-m", "pagefold_server", "--address", str(address)]
            server += ["--idle-exit-seconds", str(IDLE_EXIT_SECONDS), "--ready-fd", str(tell)]
            server += ["--log-file", log, "--log-max-bytes", str(most)]
            launched = subprocess.run(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-I", "-S", "-c", _DETACH, *server],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=[tell],
                start_new_session=True,
                env=_environment(),
                check=False,
            )
        finally:
            os.close(log_fd)
            os.close(tell)
            tell = -1
        if launched.returncode != 0 or not _is_ready(ready, deadline):
            # It went without a word: broken, or another one was faster. The socket knows.
            deadline = min(deadline, time.monotonic() + _FASTER_ONE_SECONDS)
            while not answers(address):
                if launched.returncode != 0 or time.monotonic() > deadline:
                    raise ServerUnavailable(
                        f"a server was started for {address}, and did not get ready{_full(os.path.dirname(log))}; "
                        f"{log} ends with:\n{_tail(log)}"
                    )
                time.sleep(0.02)  # no event tells of another's server
    finally:
        os.close(ready)
        if tell >= 0:
            os.close(tell)


def log_of(address: Address) -> tuple[str, int]:
    """Where the log of a server is that is started here, and its most bytes: beside the socket, but not in memory."""
    beside = address.path.removesuffix(".sock") + ".log"
    if not beside.startswith(f"{_address.SHM}/"):
        return beside, _LOG_BYTES
    directory = f"/var/tmp/pagefold-{os.geteuid()}"  # noqa: S108 - checked below
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        _address.verify_directory(directory)
    except (OSError, ValueError):
        return beside, _LOG_BYTES_IN_MEMORY
    return f"{directory}/server.log", _LOG_BYTES


def _is_ready(fd: int, deadline: float) -> bool:
    left = max(0.0, deadline - time.monotonic())
    readable, _, _ = select.select([fd], [], [], left)
    return bool(readable) and os.read(fd, 1) != b""


def _environment() -> dict[str, str]:
    # The server is told its address; what steers this client's own memory is not meant for it.
    ours = (
        "PAGEFOLD_ADDRESS",
        "PAGEFOLD_AUTOSTART",
        "PAGEFOLD_BARRIER",
        "PAGEFOLD_DISABLE",
        "PAGEFOLD_MAPPING_BUDGET",
        "PAGEFOLD_TRACKER",
    )
    return {key: value for key, value in os.environ.items() if key not in ours}


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            return file.read().decode(errors="replace").strip() or "(nothing)"
    except OSError as error:
        return f"({error})"


def _full(directory: str) -> str:
    """That a directory has no room for a socket, a pid file and a log, if that is so: such a server cannot say it."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return ""
    if found.f_bavail and (found.f_favail or not found.f_files):
        return ""
    return f" ({directory} is full: free some room there, or name a place elsewhere with $PAGEFOLD_ADDRESS)"


def _late(address: Address) -> ServerUnavailable:
    return ServerUnavailable(f"another process is starting a server for {address}, and it does not get ready")
