"""Starts a per-user server where none answers: a detached process, with a log on disk. `launch.py` has the mechanism.

Of several processes that find no server, one starts it and the others wait: they take turns at a file lock. If two
servers are started all the same, the second one sees the first one's lock and exits.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
from collections.abc import Iterator
from typing import Final

from pagefold_proto import addresses
from pagefold_proto.addresses import Address
from pagefold_proto.limits import SHM

from pagefold._errors import ServerUnavailable
from pagefold._launch.launch import NotLaunched, NotReady, launch, server_environment
from pagefold._process import threads

IDLE_EXIT_SECONDS: Final = 60
NEEDED: Final = (
    "pagefold_server",
    "grpc_health",
    "grpc_reflection",
    "pydantic_settings",
    "sortedcontainers",
    "structlog",
    "xxhash",
)
_LOG_TAIL: Final = 2000
_LOG_BYTES: Final = 8 << 20
_LOG_BYTES_IN_MEMORY: Final = 256 << 10
_FASTER_ONE_SECONDS: Final = 2.0


def answers(address: Address) -> bool:
    """Whether a process listens at a Unix socket. For TCP always True: the first call finds out."""
    return address.scheme != "unix" or addresses.listener(address.path) is not None


def ensure_server(address: Address, timeout: float) -> None:
    """Starts a server unless one answers, and waits until it is ready.

    Raises:
        ServerUnavailable: none can be started, or it was not ready in time. The text says why and what to do.
    """
    if answers(address):
        return
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ServerUnavailable(
            f"no server answers at {address}, and none can be started, because {', '.join(missing)} cannot be imported "
            "here: pip install 'pagefold[server]', or run `pagefold serve` elsewhere"
        )
    directory = os.path.dirname(address.path)
    deadline = threads.monotonic() + timeout
    try:
        addresses.make_directory(directory)
        addresses.verify_directory(directory)
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
        os.fchmod(fd, 0o600)  # whatever the umask: the next one opens it, too
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if answers(address):
                    break
                if threads.monotonic() > deadline:
                    raise _late(address) from None
                threads.sleep(0.02)  # no event says that another process's server is ready
        yield
    finally:
        os.close(fd)


def _start(address: Address, deadline: float) -> None:
    log, most = log_of(address)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        log_fd = os.open(log, flags | os.O_NONBLOCK, 0o600)
    except OSError:  # the disk is full, for example: the server has no log then
        log_fd = os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    else:
        with contextlib.suppress(OSError):  # it may be root's
            os.fchmod(log_fd, 0o600)
    settings = {"idle_exit_seconds": IDLE_EXIT_SECONDS, "log_file": log, "log_max_bytes": most}
    try:
        launch(str(address), settings, server_environment(True), log_fd, deadline - threads.monotonic(), detach=True)
    except NotLaunched as error:
        raise ServerUnavailable(
            f"no server answers at {address}, and none can be started, because {error}: run "
            f"`pagefold serve --address {address}` where pagefold[server] is installed"
        ) from None
    except NotReady as error:
        # The server failed, or another one was faster, which answers soon. No event says so.
        seconds = 0.0 if error.code else min(deadline - threads.monotonic(), _FASTER_ONE_SECONDS)
        if not threads.wait_until(lambda: answers(address), seconds, 0.02):
            raise ServerUnavailable(
                f"a server was started for {address}, and did not get ready{_full(os.path.dirname(log))}; "
                f"{log} ends with:\n{tail(log)}"
            ) from None
    finally:
        os.close(log_fd)


def log_of(address: Address) -> tuple[str, int]:
    """Path and most bytes of the log of a server started here: beside the socket, unless that is in /dev/shm."""
    beside = address.path.removesuffix(".sock") + ".log"
    if not beside.startswith(f"{SHM}/"):
        return beside, _LOG_BYTES
    directory = f"/var/tmp/pagefold-{os.geteuid()}"  # noqa: S108 - checked below
    try:
        addresses.make_directory(directory)
        addresses.verify_directory(directory)
    except (OSError, ValueError):
        return beside, _LOG_BYTES_IN_MEMORY
    return f"{directory}/server.log", _LOG_BYTES


def tail(path: str) -> str:
    """The end of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            return file.read().decode(errors="replace").strip() or "(nothing)"
    except OSError as error:
        return f"({error})"


def _full(directory: str) -> str:
    """Words for a directory that is full, so that a server can write neither socket, pid file nor log; else empty."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return ""
    if found.f_bavail and (found.f_favail or not found.f_files):
        return ""
    return f" ({directory} is full: free some room there, or name a place elsewhere with $PAGEFOLD_ADDRESS)"


def _late(address: Address) -> ServerUnavailable:
    return ServerUnavailable(f"another process is starting a server for {address}, which does not get ready: try again")
