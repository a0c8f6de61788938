"""Taking an address: the directory, the lock that makes this the only server there, the socket.

grpc would take a Unix socket's path away from a server that lives. So a server first locks the pid file beside
the socket, and holds that lock for as long as the socket is there:

    DIR/               0700, ours, no link
    DIR/server.pid     flock(LOCK_EX) by the server, whose pid it holds
    DIR/server.sock    made with umask 0077

An address for other users is the same, but for what they need to come in: they may search DIR (0755), which nobody but
us may write to, and connect to the socket (0666, or 0660 and a group of its own).
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
from pagefold._address import Address, AddressError, verify_directory

from pagefold_server.errors import AddressRefused, AlreadyRunning
from pagefold_server.settings import Settings

_OTHERS_WRITE = 0o022


class PidFile:
    """A server's claim to a socket.

    Args:
        socket: its path; the pid file has the same name, with .pid at the end.

    Raises:
        AlreadyRunning: another server has it.
        OSError: the file cannot be made.
    """

    def __init__(self, socket: Path) -> None:
        self._path = socket.with_suffix(".pid")
        self._fd = self._locked(socket)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _locked(self, socket: Path) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise AlreadyRunning(
                    f"another server (pid {pid}) listens on {socket}: stop it, or choose another address"
                ) from error
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(self._path)):
                    return fd
            os.close(fd)  # its last owner unlinked it between our open and our lock

    def close(self) -> None:
        """Removes the file and lets the lock go. Closing twice is fine."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class Listener:
    """An address that a grpc server listens on.

    Args:
        server: not yet started.
        settings: certificate, key, and who else may connect.
        address: where to listen. None: `settings.address`.
        shared: users other than ours are to reach it.

    Raises:
        AlreadyRunning: another server has it.
        AddressRefused: it cannot be had, or only at the price of safety.
    """

    def __init__(
        self, server: grpc.aio.Server, settings: Settings, address: Address | None = None, shared: bool = False
    ) -> None:
        self.address = address or _address_of(settings)
        self._shared = shared
        self._pid_file: PidFile | None = None
        try:
            if self.address.scheme == "unix":
                self._listen_unix(server, settings)
            else:
                self._listen_tcp(server, settings)
        except (OSError, RuntimeError) as error:
            self.close()
            raise AddressRefused(f"cannot listen on {self.address}: {error}") from error

    def close(self) -> None:
        """Removes socket and pid file, in this order. Closing twice is fine."""
        if self._pid_file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address.path)
            self._pid_file.close()
            self._pid_file = None

    def _listen_unix(self, server: grpc.aio.Server, settings: Settings) -> None:
        path = Path(self.address.path)
        if self._shared:
            _prepare_shared_directory(path.parent)
        else:
            _prepare_directory(path.parent)
        with _umask(0o077):
            self._pid_file = PidFile(path)
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    self._pid_file.close()
                    self._pid_file = None
                    raise AddressRefused(f"{path} exists and is no socket: remove it, or choose another address")
                path.unlink()  # of a server that died: the lock is ours
            server.add_insecure_port(self.address.grpc_target)
        if self._shared:
            _open_to_others(path, settings.tenants_group)

    def _listen_tcp(self, server: grpc.aio.Server, settings: Settings) -> None:
        if settings.tls_cert is not None and settings.tls_key is not None:
            pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            port = server.add_secure_port(self.address.grpc_target, grpc.ssl_server_credentials([pair]))
        elif settings.token_file is not None:
            port = server.add_insecure_port(self.address.grpc_target)
        else:
            raise AddressRefused(
                f"{self.address}: anybody could connect. Give tls_cert and tls_key, or a token_file, "
                "or listen on a Unix socket"
            )
        self.address = Address("tcp", host=self.address.host, port=port)


def _address_of(settings: Settings) -> Address:
    try:
        return settings.listen
    except AddressError as error:
        raise AddressRefused(str(error)) from error


def _prepare_directory(directory: Path) -> None:
    """Makes the socket's directory if need be, and makes sure that it is ours alone."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    try:
        verify_directory(str(directory))
    except AddressError as error:
        raise AddressRefused(str(error)) from error


def _prepare_shared_directory(directory: Path) -> None:
    """Makes the directory of a socket for others if need be, and makes sure that nobody else can put one there."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)  # whatever the umask
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
        raise AddressRefused(
            f"{directory} must be a directory of uid {os.geteuid()} that nobody else may write to, or others could put "
            f"a socket of theirs there: chown {os.geteuid()} {directory}; chmod 755 {directory}"
        )


def _open_to_others(path: Path, group: str) -> None:
    """Lets the members of a group connect, or everybody. The directory is ours, so the path is the socket's."""
    if not group:
        path.chmod(0o666)
        return
    try:
        number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise AddressRefused(f"tenants_group: there is no group {group}: groupadd {group}") from error
    os.chown(path, -1, number)
    path.chmod(0o660)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
