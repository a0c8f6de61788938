"""Where a server listens: the two forms of an address, and the default one.

    unix:/run/pagefold/server.sock     a Unix socket
    tcp:HOST:PORT                      TCP; an IPv6 host goes in brackets, tcp:[::1]:7000

Client, server and command line read addresses here and nowhere else. This file imports the standard library only.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import secrets
import stat
import struct
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from pagefold_proto.limits import SHM

MAX_SOCKET_PATH = 107
"""Most bytes in the path of a Unix socket: sun_path has 108, and the last is a zero."""


class AddressError(ValueError):
    """An address, or its socket's directory, cannot be used. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, taken apart.

    Attributes:
        scheme: "unix" or "tcp".
        path: the socket's; empty for TCP.
        host: name or number, without brackets; empty for a Unix socket.
        port: 0 for a Unix socket; with TCP, 0 lets the kernel choose (servers only).
    """

    scheme: Literal["unix", "tcp"]
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        return f"tcp:{self._hostport}"

    @property
    def _hostport(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def grpc_target(self) -> str:
        """The address in grpc's form, where the path of a socket is a part of a URI."""
        return f"unix:{quote(os.fsencode(self.path))}" if self.scheme == "unix" else self._hostport


def parse(address: str) -> Address:
    """Parses an address and checks its form.

    Args:
        address: `unix:/path` or `tcp:HOST:PORT`.

    Raises:
        AddressError: it has another form, or its path is relative or too long for a socket.

    Example:
        >>> parse("tcp:localhost:7000").grpc_target
        'localhost:7000'
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return Address("unix", path=_checked_path(rest))
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise AddressError(f"{address!r}: put an IPv6 host in brackets, as in tcp:[::1]:7000")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise AddressError(f"{address!r} has no host or no port: write tcp:HOST:PORT, as in tcp:localhost:7000")
        return Address("tcp", host=host, port=int(port))
    raise AddressError(f"{address!r} is not an address: write unix:/path/server.sock or tcp:HOST:PORT")


def grpc_target(address: str | Address) -> str:
    """The address in grpc's form."""
    return (parse(address) if isinstance(address, str) else address).grpc_target


def listener(path: str) -> int | None:
    """The number of the process that listens at a Unix socket; 0: it is not visible here; None: no process listens."""
    # Not `socket`, which gevent and the like replace: it would let other greenlets run in the middle of a connect().
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except BlockingIOError:
            return 0  # its queue is full: a process listens, and is busy
        except OSError:
            return None
        pid, _, _ = struct.unpack("iII", probe.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
        return int(pid)
    finally:
        probe.close()


def stuck(address: Address) -> str:
    """Who listens at an address and gave no answer; empty: nobody does, as far as can be told from here."""
    try:
        pid = listener(address.path) if address.scheme == "unix" else None
    except OSError:  # no descriptor is left to look with
        return ""
    if pid is None:
        return ""
    who = f"process {pid}" if pid else "a process that is not visible here"
    return f"{who} listens at {address}, and does not answer: it is stopped, or has very much to do"


def default_address() -> str:
    """The address of this user's own server. Creates nothing.

    It is in /dev/shm, where frames are. All processes of a user that can share memory find the same server there,
    whatever their environment says. A sandbox with its own /dev/shm has its own server.
    """
    plain = f"pagefold-{os.geteuid()}"
    if not _is_anothers(f"{SHM}/{plain}"):
        return f"unix:{SHM}/{plain}/server.sock"
    # Another user has taken the name, to keep this user from having a server. So take one that cannot be guessed.
    like = (name for name in os.listdir(SHM) if name.startswith(f"{plain}-"))
    ours = min((name for name in like if not _is_anothers(f"{SHM}/{name}")), default=f"{plain}-{secrets.token_hex(8)}")
    return f"unix:{SHM}/{ours}/server.sock"


def make_directory(directory: str) -> None:
    """Makes a directory that is ours alone, whatever the umask. One that is there is left as it is."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
        os.chmod(directory, 0o700)


def verify_directory(directory: str) -> None:
    """Makes sure that no other user can put a socket into a directory. Clients and servers both check.

    Raises:
        FileNotFoundError: there is no such directory.
        AddressError: it is not this user's alone, so another user may listen there.
    """
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode):
        raise AddressError(f"{directory} is a symbolic link; give the address of the directory itself")
    if not stat.S_ISDIR(found.st_mode):
        raise AddressError(f"{directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise AddressError(
            f"{directory} belongs to uid {found.st_uid}, and this process is uid {os.geteuid()}: choose another address"
        )
    if found.st_mode & 0o077:
        raise AddressError(
            f"{directory} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 {directory}"
        )


def _is_anothers(path: str) -> bool:
    try:
        return os.lstat(path).st_uid != os.geteuid()
    except OSError:
        return False


def _checked_path(path: str) -> str:
    if path.startswith("///"):  # unix:///path is grpc's other way to write an absolute path
        path = path[2:]
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise AddressError(f"unix:{path}: the path of a socket is absolute, as in unix:/run/pagefold/server.sock")
    if "," in path:
        raise AddressError(
            f"{path} has a comma, and gRPC takes what follows it for another address: choose another path"
        )
    if path.endswith(".pid"):
        raise AddressError(f"{path}: so the file is called that says whose a socket is: choose another name")
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise AddressError(
            f"{path} has {length} bytes, and the kernel takes at most {MAX_SOCKET_PATH} for a socket: "
            "choose a shorter path"
        )
    return path
