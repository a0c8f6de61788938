"""The server as a whole: its parts, how it starts, and how it ends.

    start   address taken -> pools from before listed -> calls answered, names swept -> health SERVING -> ready
    drain   health NOT_SERVING -> calls in flight finish -> pools unlinked -> socket and pid file removed

One asyncio loop owns all of it. Clients survive every end of a server: their mappings stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pagefold_proto.addresses import Address, parse
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc, memory_pb2, memory_pb2_grpc
from pagefold_proto.version import __version__

from pagefold_server import log
from pagefold_server.api.admin import AdminServicer
from pagefold_server.api.auth import TokenInterceptor, read_token
from pagefold_server.api.listen import Listener, address_of
from pagefold_server.api.memory import MAX_MESSAGE_BYTES, MemoryServicer
from pagefold_server.api.status import Observer
from pagefold_server.domains.pacing import Pacer, every
from pagefold_server.domains.registry import Domains
from pagefold_server.errors import AddressRefused, AlreadyRunning, BadConfig, StartError
from pagefold_server.sessions.registry import Sessions
from pagefold_server.sessions.sweep import sweep, sweep_gently
from pagefold_server.settings import Configuration, Settings
from pagefold_server.tenants.tenants import Tenants

_GRACE: Final = 2.0  # seconds for calls in flight
_TEND_SECONDS: Final = 0.5
_KEEP_SECONDS: Final = 0.5  # between two looks whether the addresses are still there
_STREAMS: Final = 16  # calls that a connection may carry at a time; clients make one after the other
_SERVICES: Final = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name for file, name in ((memory_pb2, "Memory"), (admin_pb2, "Admin"))
)

_log = structlog.get_logger("pagefold.service")


class _Entrance:
    """One address, and the grpc server that answers there. A new one is made if the socket is removed.

    Args:
        settings: for the address.
        address: where to listen.
        add: gives a grpc server its services.
        shared: other users are to reach it.

    Raises:
        StartError: the address cannot be had.
    """

    def __init__(
        self, settings: Settings, address: Address, add: Callable[[grpc.aio.Server], None], shared: bool = False
    ) -> None:
        self._settings = settings
        self._add = add
        self.server = _grpc_server(settings, address)
        self.listener = Listener(self.server, settings, address, shared)
        self._ending: set[asyncio.Task[None]] = set()
        self._trouble = ""
        self._stopping = False

    async def start(self) -> None:
        """Answers calls from here on."""
        self._add(self.server)
        await self.server.start()

    async def keep(self) -> None:
        """Makes the directory, the pid file and the socket again, if they were removed.

        Raises:
            AlreadyRunning: another server has the address by now.
        """
        if self._stopping:
            return
        try:
            if not self.listener.is_claimed:
                self.listener.claim()
            if not self.listener.is_reachable:
                await self._come_back()
            self.listener.touch()
            self._trouble = ""
        except AlreadyRunning:
            if not self.listener.is_reachable:
                raise
            # Another server is just finding out that this one is there.
        except (OSError, RuntimeError, AddressRefused) as error:
            if str(error) != self._trouble:
                _log.error("the address is lost, and cannot be had again yet", address=self.address, why=str(error))
            self._trouble = str(error)

    async def stop(self) -> None:
        """Takes no more calls, and waits for those in flight."""
        self._stopping = True
        await self.server.stop(_GRACE)

    async def _come_back(self) -> None:
        before, fresh = self.server, _grpc_server(self._settings, self.listener.address)
        self.listener.listen(fresh)
        self.server = fresh
        await self.start()
        _log.warning("the socket was removed, and is made again", address=self.address)
        ending = asyncio.create_task(before.stop(_GRACE))  # clients that are connected come in by the new one
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    @property
    def address(self) -> str:
        """Where it listens; over TCP, with the port that it really has."""
        return str(self.listener.address)


class Server:
    """A server in this process. Use `run`, unless you have a loop of your own.

    Args:
        settings: from `settings.load`.
    """

    def __init__(self, settings: Settings) -> None:
        self.configuration = Configuration(settings)
        self._ended = asyncio.Event()
        self._entrances: list[_Entrance] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._domains, self._tenants = Domains(), Tenants()
        self._pacer = Pacer(self._domains, self._tenants, self.configuration)
        self._sessions = Sessions(self._domains, self._tenants, self.configuration, self._pacer.wake)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        self.configuration.on_change(self._configure)

    @property
    def address(self) -> str:
        """Where it listens; with TCP, the port that it really has."""
        return self._entrances[0].address

    async def start(self) -> None:
        """Takes the address, and answers calls from then on.

        Raises:
            StartError: the address cannot be had; nothing is left behind.
        """
        settings = self.configuration.now
        _raise_descriptor_limit()
        memory = MemoryServicer(self._sessions, self._tenants, self.configuration, secrets.token_bytes(16))

        def add(server: grpc.aio.Server) -> None:
            memory_pb2_grpc.add_MemoryServicer_to_server(memory, server)  # type: ignore[no-untyped-call]
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

        def add_all(server: grpc.aio.Server) -> None:
            add(server)
            admin_pb2_grpc.add_AdminServicer_to_server(self._admin, server)  # type: ignore[no-untyped-call]
            reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

        self._entrances.append(_Entrance(settings, address_of(settings), add_all))
        self._domains.address = self.address
        observer = Observer(self.address, self._sessions, self._domains, self._tenants, self._pacer, self.configuration)
        self._admin = AdminServicer(observer, self.configuration, self._sessions, self._domains, self._pacer, self.end)
        if settings.tenants_address:  # without what is for operators, who see all users and change all settings
            self._entrances.append(_Entrance(settings, parse(settings.tenants_address), add, shared=True))
        await asyncio.to_thread(self._domains.orphans.list_names)
        for entrance in self._entrances:
            await entrance.start()
        self._tasks = [
            asyncio.create_task(every(lambda: self.configuration.now.sweep_seconds, sweep_gently, "sweep")),
            asyncio.create_task(every(lambda: _TEND_SECONDS, self._tend, "tend")),
            asyncio.create_task(every(lambda: _KEEP_SECONDS, self._keep_addresses, "addresses")),
            asyncio.create_task(self._scan()),
        ]
        for service in ("", *_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "serving", address=self.address, tenants_address=self.tenants_address, pid=os.getpid(), version=__version__
        )
        _tell_ready(settings.ready_fd)

    @property
    def tenants_address(self) -> str:
        """Where it listens for clients of other users; empty: nowhere."""
        return self._entrances[1].address if len(self._entrances) > 1 else ""

    def end(self) -> None:
        """Has `serve` return."""
        self._ended.set()

    async def serve(self) -> None:
        """Waits until the server is to end, then drains it."""
        await self._ended.wait()
        await self.stop()

    async def stop(self) -> None:
        """Drains: calls in flight finish, pools lose their names, socket and pid file go."""
        _log.info("draining", sessions=len(self._sessions))
        await self._health.enter_graceful_shutdown()
        self._sessions.closing = True
        self._admin.stop()
        for domain in self._domains:
            domain.give_up()
        await asyncio.gather(*(entrance.stop() for entrance in self._entrances))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.let_go()
        _log.info("ended")

    def let_go(self) -> None:
        """Gives back all that outlives a process. Nothing works afterwards."""
        self._sessions.close()
        self._domains.close()
        sweep()  # names that were kept for clients that are gone; it may take long, for no call is served any more
        for entrance in reversed(self._entrances):
            entrance.listener.close()

    def reload(self) -> None:
        """Reads the file and the environment again (SIGHUP)."""
        try:
            restart = self.configuration.reload()
        except BadConfig as error:
            _log.error("not reloaded: all settings stay as they are", why=str(error))
            return
        _log.info("reloaded")
        if restart:
            _log.warning("settings that changed need a restart", settings=restart)

    def _configure(self, old: Settings, new: Settings) -> None:
        changed = {key: getattr(new, key) for key in Settings.model_fields if getattr(old, key) != getattr(new, key)}
        if changed.keys() & {"log_level", "log_max_bytes"}:
            log.configure(new)
        if changed:
            _log.info("settings changed", **{key: str(value) for key, value in changed.items()})
        self._domains.configure(new)
        for domain in self._domains:
            domain.ring()
        self._pacer.wake()

    def _tend(self) -> None:
        """Does what is due about twice a second."""
        for uid, lines in log.limit.left_out().items():
            _log.warning("lines left out", uid=uid, lines=lines)
        self._sessions.reap()
        for domain in self._domains:
            if not domain.fault:
                domain.engine.flush()
        limit, since = self.configuration.now.idle_exit_seconds, self._sessions.empty_since
        if limit and since is not None and time.monotonic() - since >= limit:
            _log.info("no session for long: the server ends", seconds=limit)
            self.end()

    async def _keep_addresses(self) -> None:
        for entrance in self._entrances:
            try:
                await entrance.keep()
            except AlreadyRunning as error:
                # The other server takes over the frames, and the clients come to it, once this one is gone.
                _log.error("another server has the address: this one ends, and memory stays as it is", why=str(error))
                self.end()

    async def _scan(self) -> None:
        while True:
            try:
                await self._pacer.run()
            except Exception:  # without it nothing would be merged in any domain
                _log.exception("scanning failed, and starts again; memory stays as it is")
                await asyncio.sleep(1)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, and returns the process's exit code.

    Exit codes: 0 ended as asked, 3 another server has the address, 4 the address cannot be used.
    """
    log.claim_standard_descriptors()
    log.configure(settings)
    try:
        return asyncio.run(_main(settings))
    except StartError as error:
        log.say(str(error))
        return error.exit_code


async def _main(settings: Settings) -> int:
    server = Server(settings)
    if threading.current_thread() is threading.main_thread():
        _handle_signals(server)
    try:
        await server.start()
        await server.serve()
    finally:
        server.let_go()
    return 0


def _handle_signals(server: Server) -> None:
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def end(number: int) -> None:
        if number == signal.SIGINT and number in asked:
            server.let_go()
            os._exit(128 + number)
        asked.append(number)
        server.end()

    loop.add_signal_handler(signal.SIGTERM, end, signal.SIGTERM)
    loop.add_signal_handler(signal.SIGINT, end, signal.SIGINT)
    loop.add_signal_handler(signal.SIGHUP, server.reload)


def _grpc_server(settings: Settings, address: Address) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=_interceptors(settings, address),
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", _STREAMS),
            ("grpc.so_reuseport", 0),  # else a second server could share the TCP port unnoticed
        ),
    )


def _interceptors(settings: Settings, address: Address) -> list[TokenInterceptor]:
    if settings.token_file is None:
        return []
    if address.scheme == "unix":
        _log.warning("token_file is not used: for a Unix socket the permissions of its directory decide")
        return []
    if settings.tls_cert is None:
        _log.warning("without tls_cert the token is sent unencrypted: use that on this machine only")
    return [TokenInterceptor(read_token(settings.token_file))]


def _raise_descriptor_limit() -> None:
    """Raises the limit of descriptors as far as it may go: each segment takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tell_ready(fd: int) -> None:
    if fd < 0:
        return
    try:
        os.write(fd, b"1\n")
        os.close(fd)
    except OSError as error:
        _log.warning("ready_fd cannot be written to", fd=fd, error=str(error))
