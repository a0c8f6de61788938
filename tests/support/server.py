"""A server in a process of its own."""

from __future__ import annotations

import signal
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final

import grpc
from pagefold._launch.launch import NotReady, ServerProcess, launch, server_environment
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc

from support import variant

TESTS: Final = str(Path(__file__).parents[1])
START_SECONDS: Final = 120.0


class Server:
    """`pagefold_server` on a socket in a directory of its own. Quick by default: tests have no time."""

    module = "pagefold_server"
    environment: ClassVar[dict[str, str]] = {}
    """What is run, and what it gets to know beside its settings."""

    def __init__(self, directory: Path, address: str | None = None, **settings: object) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = directory
        self.address = address or f"unix:{directory}/server.sock"
        self.log = directory / "server.log"
        quick = {"cpu_ceiling_percent": 100, "sleep_millisecs": 0, "log_format": "json", "engine": variant.ENGINE}
        self.settings: dict[str, object] = quick | settings
        self.process: ServerProcess | None = None
        self._channel: grpc.Channel | None = None
        self.start()

    def start(self) -> None:
        environment = server_environment(False) | self.environment
        environment |= {f"PAGEFOLD_{key.upper()}": str(value) for key, value in self.settings.items()}
        with self.log.open("ab") as log:
            try:
                self.process = launch(
                    self.address, {}, environment, log.fileno(), START_SECONDS, module=self.module, places=[TESTS]
                )
            except NotReady as error:
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}") from error

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.address)
        return admin_pb2_grpc.AdminStub(self._channel)

    def status(self) -> admin_pb2.Status:
        return self.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10, wait_for_ready=True)

    def configure(self, **values: object) -> None:
        text = {k: str(v) for k, v in values.items()}
        self.admin.SetConfig(admin_pb2.SetConfigRequest(values=text), timeout=10)

    def clients(self) -> list[admin_pb2.ClientInfo]:
        return list(self.admin.ListClients(admin_pb2.ListClientsRequest(), timeout=10).clients)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Ends it and returns its exit code."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.process is None:
            return 0
        self.process.send_signal(sig)
        code = self.process.wait(20)
        self.process = None
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
