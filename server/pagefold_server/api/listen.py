"""Taking an address, and keeping it: the directory, the lock that keeps other servers out, and the socket.

    DIR/               0700, of the server's user, no link
    DIR/server.pid     flock(LOCK_EX) by the server, whose pid it holds
    DIR/server.sock    made with umask 0077

An address for other users differs in its modes: they may search DIR (0755), which only the server's user may write to,
and connect to the socket (0666, or 0660 and a group of its own).

What holds: a server takes no socket at which another server answers. If a file is removed (cleaners of /tmp do that),
the server that had it makes it again. No server unlinks another's file: files are told apart by inode, not by name.

grpc unlinks any file at the path that it is told, when it begins and when it ends. So it is told a random name, in the
directory by its descriptor (which is short, and has nothing in it that a URI would change), and the server renames the
socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
from pagefold_proto import addresses
from pagefold_proto.addresses import Address, AddressError, make_directory, verify_directory

from pagefold_server.errors import AddressRefused, AlreadyRunning
from pagefold_server.settings import Settings

_OTHERS_WRITE: Final = 0o022
_OLD: Final = 3600.0  # seconds after which a file is touched: cleaners take what is days old


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
        self._fd = -1
        self.take(socket)

    @property
    def is_there(self) -> bool:
        """Whether the file is still there, and is this one."""
        return _is_at(self._path, os.fstat(self._fd))

    def take(self, socket: Path) -> None:
        """Makes the file and locks it; again, if it is gone. If it raises, as the class does, it keeps what it had."""
        fd = self._locked(socket)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _locked(self, socket: Path) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise _already_running(socket, pid) from error
            if _is_at(self._path, os.fstat(fd)):
                return fd
            os.close(fd)  # its last owner unlinked it between our open and our lock

    def close(self) -> None:
        """Removes the file and releases the lock. Closing twice is fine."""
        if self._fd >= 0:
            if self.is_there:
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class Listener:
    """An address that a grpc server listens on.

    Args:
        server: not yet started.
        settings: certificate, key, and who else may connect.
        address: where to listen.
        shared: other users are to reach it.

    Raises:
        AlreadyRunning: another server has it.
        AddressRefused: it cannot be had, or not safely.
    """

    def __init__(self, server: grpc.aio.Server, settings: Settings, address: Address, shared: bool = False) -> None:
        self.address = address
        self._settings = settings
        self._shared = shared
        self._pid_file: PidFile | None = None
        self._socket: os.stat_result | None = None
        self._directory = -1
        try:
            if self.address.scheme == "unix":
                self._check_free()
                self.claim()
                self._check_free()  # by a server whose pid file was removed
                self.listen(server)
            else:
                self._listen_tcp(server)
        except (OSError, RuntimeError) as error:
            self.close()
            raise AddressRefused(f"cannot listen on {self.address}: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def is_claimed(self) -> bool:
        """Whether the pid file is there, whose lock keeps other servers from the address."""
        return self._pid_file is None or self._pid_file.is_there

    @property
    def is_reachable(self) -> bool:
        """Whether the socket is there, and is this one."""
        return self._socket is None or _is_at(self._path, self._socket)

    def touch(self) -> None:
        """Keeps the files from looking old and forgotten."""
        if self._pid_file is None:
            return
        for path in (self._path, self._path.with_suffix(".pid")):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _OLD:
                    os.utime(path, follow_symlinks=False)

    def claim(self) -> None:
        """Makes the directory and the pid file, as far as they are not there.

        Raises:
            AlreadyRunning: another server has the address now.
            AddressRefused: other users may write to the directory.
            OSError: they cannot be made.
        """
        if self._shared:
            _prepare_shared_directory(self._path.parent)
        else:
            _prepare_directory(self._path.parent)
        with _umask(0o077):
            if self._pid_file is None:
                self._pid_file = PidFile(self._path)
            elif not self._pid_file.is_there:
                self._pid_file.take(self._path)

    def listen(self, server: grpc.aio.Server) -> None:
        """Makes the socket of a grpc server that has not started. Call `claim` first.

        Raises:
            AddressRefused: a file that is no socket has its name.
            OSError, RuntimeError: it cannot be made.
        """
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise AddressRefused(f"{self._path} exists and is no socket: remove it, or choose another address")
        name = f".pagefold-{secrets.token_hex(8)}"
        before, self._directory = self._directory, os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if before >= 0:
            os.close(before)
        made = Path(f"/proc/self/fd/{self._directory}/{name}")
        try:
            with _umask(0o077):
                server.add_insecure_port(f"unix:{made}")
            if self._shared:
                _open_to_others(made, self._settings.tenants_group)
            self._socket = made.lstat()
            os.rename(name, self._path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            made.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Removes the socket and then the pid file, if they are this server's. Closing twice is fine."""
        if self._socket is not None and self.is_reachable:
            self._path.unlink(missing_ok=True)
        self._socket = None
        if self._pid_file is not None:
            self._pid_file.close()
            self._pid_file = None

    @property
    def _path(self) -> Path:
        return Path(self.address.path)

    def _check_free(self) -> None:
        pid = addresses.listener(self.address.path)
        if pid is not None:
            raise _already_running(self._path, str(pid or "unknown"))

    def _listen_tcp(self, server: grpc.aio.Server) -> None:
        settings = self._settings
        if settings.tls_cert is not None and settings.tls_key is not None:
            pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            try:
                port = server.add_secure_port(self.address.grpc_target, grpc.ssl_server_credentials([pair]))
            except RuntimeError as error:
                why = _misfit(settings.tls_cert, settings.tls_key)
                if not why:
                    raise
                raise AddressRefused(why) from error
        elif settings.token_file is not None:
            port = server.add_insecure_port(self.address.grpc_target)
        else:
            raise AddressRefused(
                f"{self.address}: every program that reaches it could connect. Give tls_cert and tls_key, or a "
                "token_file, or listen on a Unix socket"
            )
        self.address = Address("tcp", host=self.address.host, port=port)


def _misfit(cert: Path, key: Path) -> str:
    """What is wrong with a certificate and its key, where gRPC says that it cannot bind; empty if nothing is."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is one
        return f"tls_cert {cert} and tls_key {key} are not a certificate and its key (both PEM, no password): {error}"
    return ""


def _already_running(socket: Path, pid: str) -> AlreadyRunning:
    return AlreadyRunning(
        f"another server (pid {pid}) listens on {socket}: stop it (pagefold stop), or choose another address"
    )


def _is_at(path: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(known, path.lstat())
    except OSError:
        return False


def address_of(settings: Settings) -> Address:
    """The operators' address.

    Raises:
        AddressRefused: it cannot be one.
    """
    try:
        return settings.listen
    except AddressError as error:
        raise AddressRefused(str(error)) from error


def _prepare_directory(directory: Path) -> None:
    """Makes the socket's directory if need be. Raises AddressRefused if other users may write to it."""
    make_directory(str(directory))
    try:
        verify_directory(str(directory))
    except AddressError as error:
        raise AddressRefused(str(error)) from error


def _prepare_shared_directory(directory: Path) -> None:
    """Makes the directory of a socket for other users if need be. Raises AddressRefused if they may write to it."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)  # umask may have narrowed it
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
        raise AddressRefused(
            f"{directory} must be a directory of uid {os.geteuid()} that no other user may write to, for a socket of "
            f"theirs could be put there: chown {os.geteuid()} {directory}; chmod 755 {directory}"
        )


def _open_to_others(path: Path, group: str) -> None:
    """Lets a group connect, or all users. Only this user writes to the directory, so the path is the socket's."""
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
