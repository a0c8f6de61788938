"""A server for one program: a process of its own, on a socket in a private temporary directory, gone with the block.

For demonstrations, examples and tests, which must neither find nor leave anything. If the program is killed, the
server ends by itself soon after its last client.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pagefold_proto.addresses import MAX_SOCKET_PATH

from pagefold._errors import ServerUnavailable
from pagefold._launch import interpreter

_SHORT: Final = "/tmp"  # noqa: S108 - the directory that is made there is private
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0
_IDLE_EXIT_SECONDS: Final = 20


@contextlib.contextmanager
def embedded_server(**settings: object) -> Iterator[str]:
    """Runs a server for the time of a `with` block, and gives its address.

    Args:
        settings: the server's, by name; see docs/configuration.md. What the environment says is not used.

    Raises:
        ServerUnavailable: it does not start; the text has the end of its log.

    Example:
        >>> with embedded_server(cpu_ceiling_percent=100) as address:
        ...     with pagefold.connect(address) as client:
        ...         buf = client.allocate(1 << 20)
    """
    with tempfile.TemporaryDirectory(prefix="pagefold-", dir=_parent()) as directory:
        address = f"unix:{directory}/server.sock"
        process = _start(address, Path(directory) / "server.log", settings)
        try:
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _parent() -> str | None:
    """Where the directory is made; None: where temporary files go. A long $TMPDIR leaves a socket's path no room."""
    longest = len("/pagefold-12345678/server.sock")
    return None if len(os.fsencode(tempfile.gettempdir())) + longest <= MAX_SOCKET_PATH else _SHORT


def _start(address: str, log: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    flags = {"idle_exit_seconds": _IDLE_EXIT_SECONDS, "log_format": "json", "log_file": log, **settings}
    # Settings come from here alone, and what steers clients in this environment is not meant for the server.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PAGEFOLD_")}
    ready, tell = os.pipe()
    try:
        with log.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    interpreter.first(),
                    *interpreter.arguments("pagefold_server", "--address", address, "--ready-fd", str(tell)),
                    *(word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", str(value))),
                ],
                env=interpreter.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=[tell],
                process_group=0,  # Ctrl-C at the terminal is the program's, which ends its server in its own time
            )
        os.close(tell)
        tell = -1
        readable, _, _ = select.select([ready], [], [], _START_SECONDS)
        if not readable or not os.read(ready, 1):
            process.kill()
            process.wait()
            words = log.read_text(errors="replace").strip()[-2000:]
            raise ServerUnavailable(f"the embedded server does not start: {words or 'it says nothing'}")
        return process
    finally:
        os.close(ready)
        if tell >= 0:
            os.close(tell)
