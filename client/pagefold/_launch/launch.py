"""Starts a server in an interpreter that belongs to this library, and waits until it answers. Everybody starts it here.

    program --spawn--> server                        attached: a child, in a process group of its own
    program --spawn--> first half --fork--> server   detached: init's child, with a session and a directory of its own
       `<--- [the server's number,] a line once it answers ---'   through a socket; its end means that the server ended

It uses no module that gevent and the like replace.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import math
import os
import posix
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import pagefold_core

from pagefold._launch import boot, interpreter
from pagefold._process import threads

_FREE_FD: Final = 10
"""Above all numbers that a new process has a use for."""
_TICK: Final = 0.01
_GRACE_SECONDS: Final = 5.0
"""Time for a server to clean up that did not get ready."""
_SIGTERM: Final = 15  # as everywhere: `signal` is one of the modules that are replaced
_SIGKILL: Final = 9

KEPT: Final = {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"}
"""Variables that a server inherits, beside LC_*. The rest is the program's: secrets, settings of other libraries."""
CLIENTS: Final = {
    *("PAGEFOLD_ADDRESS", "PAGEFOLD_AUTOSTART", "PAGEFOLD_BACKING", "PAGEFOLD_BARRIER", "PAGEFOLD_DISABLE"),
    *("PAGEFOLD_MAPPING_BUDGET", "PAGEFOLD_TOKEN", "PAGEFOLD_TRACKER"),
}
"""Variables that steer a client. A server inherits none of them; it gets its address as a flag."""


class NotLaunched(Exception):
    """No interpreter belongs to this program, or none can be run. The text says which one failed, and how."""


class NotReady(Exception):
    """A server was started, and ended or took too long before it answered.

    Attributes:
        code: exit code of a detached server's first half; 0: it left a server behind.
    """

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


class ServerProcess:
    """A started server, or the first half of a detached one.

    Attributes:
        pid: the process's number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it lives."""
        return self._reap(posix.WNOHANG)

    def wait(self, seconds: float = math.inf) -> int:
        """Waits for its end. Returns what `poll` does.

        Raises:
            TimeoutError: it lives on.
        """
        if seconds == math.inf:
            self._reap(0)
        elif not threads.wait_until(lambda: self.poll() is not None, seconds, _TICK):
            raise TimeoutError(f"process {self.pid} has not ended in {seconds:g} s")
        assert self._code is not None, "it has ended"
        return self._code

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self, seconds: float) -> None:
        """Has it end, with SIGKILL if it takes longer than that."""
        self.send_signal(_SIGTERM)
        try:
            self.wait(seconds)
        except TimeoutError:
            self.send_signal(_SIGKILL)
            self.wait()

    def _reap(self, flags: int) -> int | None:
        if self._code is None:
            try:
                pid, status = posix.waitpid(self.pid, flags)
            except ChildProcessError:  # the program has its children reaped, by SIG_IGN or by another thread
                self._code = 0
            else:
                self._code = posix.waitstatus_to_exitcode(status) if pid else None
        return self._code


def server_environment(with_settings: bool) -> dict[str, str]:
    """The part of this process's environment that a server inherits.

    Args:
        with_settings: include the settings of servers: the PAGEFOLD_ variables that do not steer clients.
    """
    kept = {key: value for key, value in os.environ.items() if key in KEPT or key.startswith("LC_")}
    if with_settings:
        kept |= {k: v for k, v in os.environ.items() if k.startswith("PAGEFOLD_") and k not in CLIENTS}
    return kept


def launch(
    address: str,
    settings: Mapping[str, object],
    environment: Mapping[str, str],
    log_fd: int,
    seconds: float,
    *,
    detach: bool = False,
    module: str = "pagefold_server",
    places: Sequence[str] = (),
) -> ServerProcess:
    """Starts a server, and waits until it answers.

    Args:
        address: where it is to listen.
        settings: by name, given as flags.
        environment: all of it; see `server_environment`.
        log_fd: gets the server's output.
        seconds: longest time to wait for it.
        detach: the server outlives this program.
        module: the module to run.
        places: directories with packages, beside those of this library.

    Raises:
        NotLaunched: no process could be started.
        NotReady: one was started and did not answer. It has ended, unless it is detached.
    """
    words = ["--address", address, "--ready-fd", str(boot.TOLD_FD)]
    for key, value in settings.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    command = interpreter.arguments(module, *words)
    variables = interpreter.environment(dict(environment), detach=detach, places=places, closes=True)
    until = threads.monotonic() + seconds
    why = f"no Python interpreter belongs to this program, which runs as {sys.executable!r}"
    for python in interpreter.candidates():
        ours, theirs = _socket.socketpair()
        try:
            try:
                process = ServerProcess(_spawn([python, *command], variables, log_fd, theirs.fileno(), not detach))
            except OSError as error:
                why = f"{python} cannot be run ({error.strerror})"
                continue
            finally:
                theirs.close()
            code = _hear(process, ours, until, detach)
        finally:
            ours.close()
        if code is None:
            return process
        if code != boot.EXIT_OTHER_PYTHON:
            raise NotReady(code)
        why = f"{python} is not the Python that this program runs in"
    raise NotLaunched(why)


def _spawn(command: list[str], environment: dict[str, str], log_fd: int, told_fd: int, own_group: bool) -> int:
    # Numbers that no action below overwrites: the program may have closed 0, 1 and 2, and these descriptors got them.
    log_fd = fcntl.fcntl(log_fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD)
    try:
        told_fd = fcntl.fcntl(told_fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD)
        try:
            actions = (
                (posix.POSIX_SPAWN_DUP2, log_fd, 1),
                (posix.POSIX_SPAWN_DUP2, log_fd, 2),
                (posix.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (posix.POSIX_SPAWN_DUP2, told_fd, boot.TOLD_FD),
            )
            if own_group:  # Ctrl-C at the terminal is the program's, which ends its server in its own time
                return posix.posix_spawn(command[0], command, environment, file_actions=actions, setpgroup=0)
            return posix.posix_spawn(command[0], command, environment, file_actions=actions)
        finally:
            os.close(told_fd)
    finally:
        os.close(log_fd)


def _hear(process: ServerProcess, told: _socket.socket, until: float, detach: bool) -> int | None:
    """None once a server answers; else the code with which the process ended."""
    if detach:
        code = process.wait()  # of the first half, which is quick
        return None if code == 0 and _is_ready(told, until, 2) else code
    try:
        ready = _is_ready(told, until, 1)
    except BaseException:  # else the server would live on, unused
        process.end(_GRACE_SECONDS)
        raise
    if ready:
        return None
    with contextlib.suppress(TimeoutError):  # it closed the socket, so it is about to end
        return process.wait(min(1.0, max(0.0, until - threads.monotonic())))
    process.end(_GRACE_SECONDS)
    return process.wait()


def _is_ready(told: _socket.socket, until: float, lines: int) -> bool:
    """Waits for a new server's lines: its number (detached servers only), then one that says that it answers."""
    text, reaped = b"", lines == 1
    while text.count(b"\n") < lines:
        told.settimeout(max(0.001, until - threads.monotonic()))
        try:
            more = told.recv(64)
        except OSError:  # TimeoutError is one
            return False
        if not more:
            return False
        text += more
        if b"\n" in text and not reaped:
            reaped = True
            _reap_later(int(text.split()[0]))
    return True


def _reap_later(pid: int) -> None:
    """Reaps a detached server where this program is init (PID 1 of a container, or a subreaper), and so its parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return
    if parent == os.getpid():
        with contextlib.suppress(OSError):  # no thread can be started: the server stays a zombie
            pagefold_core.start(ServerProcess(pid).wait, awaited=False)  # servers outlive programs
