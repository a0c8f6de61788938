"""Starts a per-user server where none answers: a process that has nothing of its starter's, with a log on disk.

It runs in the interpreter that belongs to this library (`interpreter.py`), in a session and a directory of its own,
with an environment of what it needs and descriptors of its own. It is nobody's child here: init reaps it, or this
process does where it is init. Nothing is used for that which gevent and the like replace.

Of several processes that find no server, one starts it and the others wait for that: they take turns at a file lock.
(Should two servers be started all the same, the second one sees the first one's lock and exits.)
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import importlib.util
import os
import posix
import sys
from collections.abc import Iterator
from typing import Final

import pagefold_core
from pagefold_proto import addresses
from pagefold_proto.addresses import Address
from pagefold_proto.limits import SHM

from pagefold._errors import ServerUnavailable
from pagefold._launch import boot, interpreter
from pagefold._process import threads

IDLE_EXIT_SECONDS: Final = 60
_NEEDED: Final = (
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
_FREE_FD: Final = 10  # above all numbers that a new process has a use for

# What a server gets of the environment. The rest is the program's: secrets, settings and hooks of other libraries.
_KEPT: Final = {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"}
# It is told its address; what steers this client's own memory is not meant for it.
_CLIENTS: Final = {
    *("PAGEFOLD_ADDRESS", "PAGEFOLD_AUTOSTART", "PAGEFOLD_BACKING", "PAGEFOLD_BARRIER", "PAGEFOLD_DISABLE"),
    *("PAGEFOLD_MAPPING_BUDGET", "PAGEFOLD_TOKEN", "PAGEFOLD_TRACKER"),
}


def answers(address: Address) -> bool:
    """Whether something listens at a Unix socket. For TCP: True, the first call will tell."""
    return address.scheme != "unix" or addresses.listener(address.path) is not None


def ensure_server(address: Address, timeout: float) -> None:
    """Starts a server unless one answers, and waits until it is ready.

    Raises:
        ServerUnavailable: it cannot be started, or was not ready in time. The text says why and what to do.
    """
    if answers(address):
        return
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
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
                threads.sleep(0.02)  # no event tells of another's server
        yield
    finally:
        os.close(fd)


def _start(address: Address, deadline: float) -> None:
    log, most = log_of(address)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        log_fd = os.open(log, flags | os.O_NONBLOCK, 0o600)
        os.fchmod(log_fd, 0o600)
    except OSError:  # the disk is full, say: the server does without
        log_fd = os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    words = ["--address", str(address), "--idle-exit-seconds", str(IDLE_EXIT_SECONDS)]
    words += ["--ready-fd", str(boot.TOLD_FD), "--log-file", log, "--log-max-bytes", str(most)]
    ours, theirs = _socket.socketpair()
    try:
        try:
            launched = _launch(address, words, log_fd, theirs.fileno())
        finally:
            theirs.close()
            os.close(log_fd)
        if launched != 0 or not _is_ready(ours, deadline):
            # It went without a word: broken, or another one was faster. The socket knows.
            deadline = min(deadline, threads.monotonic() + _FASTER_ONE_SECONDS)
            while not answers(address):
                if launched != 0 or threads.monotonic() > deadline:
                    raise ServerUnavailable(
                        f"a server was started for {address}, and did not get ready{_full(os.path.dirname(log))}; "
                        f"{log} ends with:\n{_tail(log)}"
                    )
                threads.sleep(0.02)  # no event tells of another's server
    finally:
        ours.close()


def _launch(address: Address, words: list[str], log_fd: int, tell: int) -> int:
    """Starts the first interpreter that is the library's. Returns the exit code of its first half, which detaches it.

    Raises:
        ServerUnavailable: there is none, or no process can be made.
    """
    variables = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith("LC_")}
    variables |= {k: v for k, v in os.environ.items() if k.startswith("PAGEFOLD_") and k not in _CLIENTS}
    environment = interpreter.environment(variables, detach=True)
    why = f"no Python interpreter belongs to this program, which runs as {sys.executable!r}"
    for python in interpreter.candidates():
        command = [python, *interpreter.arguments("pagefold_server", *words)]
        try:
            code = _spawn(command, environment, log_fd, tell)
        except OSError as error:
            why = f"{python} cannot be run ({error.strerror})"
            continue
        if code != boot.EXIT_OTHER_PYTHON:
            return code
        why = f"{python} is not the Python that this program runs in"
    raise ServerUnavailable(
        f"no server answers at {address}, and none can be started, because {why}: run "
        f"`pagefold serve --address {address}` where pagefold[server] is installed"
    )


def _spawn(command: list[str], environment: dict[str, str], log_fd: int, tell: int) -> int:
    # Numbers that are in nobody's way: the program may have closed 0, 1 and 2, so that these descriptors are there.
    log_fd = fcntl.fcntl(log_fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD)
    try:
        tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, _FREE_FD)
        try:
            given = ((posix.POSIX_SPAWN_DUP2, log_fd, 1), (posix.POSIX_SPAWN_DUP2, log_fd, 2))
            null = (posix.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
            told = (posix.POSIX_SPAWN_DUP2, tell, boot.TOLD_FD)
            pid = posix.posix_spawn(command[0], command, environment, file_actions=(*given, null, told))
        finally:
            os.close(tell)
    finally:
        os.close(log_fd)
    try:
        _, status = posix.waitpid(pid, 0)
    except ChildProcessError:  # the program has its children reaped, by SIG_IGN or by another thread
        return 0
    return posix.waitstatus_to_exitcode(status)


def log_of(address: Address) -> tuple[str, int]:
    """Where the log of a server is that is started here, and its most bytes: beside the socket, but not in memory."""
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


def _is_ready(told: _socket.socket, deadline: float) -> bool:
    """Waits for what a new server tells: its number, then that it answers."""
    text, reaped = b"", False
    while text.count(b"\n") < 2:
        told.settimeout(max(0.001, deadline - threads.monotonic()))
        try:
            more = told.recv(64)
        except OSError:  # TimeoutError is one
            return False
        if not more:
            return False
        text += more
        if b"\n" in text and not reaped:
            reaped = True
            _reap(int(text.split()[0]))
    return True


def _reap(pid: int) -> None:
    """Takes a server's end where this program is init (PID 1 of a container, or a subreaper): then it is its child."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):  # the program waits for any child itself
            posix.waitpid(pid, 0)

    if parent == os.getpid():
        with contextlib.suppress(OSError):  # no thread is to be had: then it stays a zombie
            pagefold_core.start(wait, awaited=False)  # servers outlive programs


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
