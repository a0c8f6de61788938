"""The processes of a benchmark: a server, and workers that are its clients or hand their memory to KSM."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from figure import Plan, WrongResult
from machine import cpu_seconds
from pagefold._launch.launch import NotReady, launch, server_environment
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc

_HERE = Path(__file__).parent
_START_SECONDS = 60
_STOP_SECONDS = 30
_ORPHANED = 300  # seconds after which a server ends by itself, should we have been killed


class Worker:
    """`bench/worker.py`, or another program that speaks the same (wire.py), in a process of its own."""

    def __init__(self, program: str = "worker.py") -> None:
        # A process group of its own: Ctrl-C is for us, and we end the worker when everything is put back.
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
            [sys.executable, str(_HERE / program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
            process_group=0,
        )
        self.pid = self._process.pid

    def send(self, method: str, *args: Any) -> None:
        """Calls a method there, without waiting for its end."""
        assert self._process.stdin
        print(json.dumps([method, *args]), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """What the method returned."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker died: exit code {self._process.wait(10)}")
        fine, value = json.loads(line)
        if not fine:
            raise RuntimeError(f"in a worker: {value}")
        return value

    def __call__(self, method: str, *args: Any) -> Any:
        """Calls a method there."""
        self.send(method, *args)
        return self.receive()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin
        assert self._process.stdout
        if kind is not None:
            self._process.terminate()  # it may be waiting for something that will not come; this closes its client too
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        _end(self._process)
        self._process.stdout.close()


class Server:
    """A pagefold server on a socket of its own, with default settings but for those given."""

    def __init__(self, engine: str = "", **settings: object) -> None:
        settings = {"idle_exit_seconds": _ORPHANED, **settings} | ({"engine": engine} if engine else {})
        self._directory = tempfile.TemporaryDirectory(prefix="pagefold-bench-")
        self.address = f"unix:{self._directory.name}/server.sock"
        log = Path(self._directory.name, "log")
        with log.open("wb") as output:
            try:
                self._process = launch(
                    self.address, settings, server_environment(False), output.fileno(), _START_SECONDS
                )
            except NotReady:
                said = log.read_text()[-500:].strip()
                self._directory.cleanup()
                raise RuntimeError(f"the server did not start: {said}") from None
        self.pid = self._process.pid
        self._channel = grpc.insecure_channel(self.address)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)  # type: ignore[no-untyped-call]

    def status(self) -> admin_pb2.Status:
        """What the server says of itself."""
        status: admin_pb2.Status = self._stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=60)
        return status

    def booked(self) -> float:
        """CPU seconds that it has booked on its users so far, for scanning and for calls."""
        tenants = self._stub.ListDomains(admin_pb2.ListDomainsRequest(), timeout=60).tenants
        return sum(tenant.scan_cpu_seconds + tenant.call_cpu_seconds for tenant in tenants)

    def configure(self, **values: object) -> None:
        """Changes settings while it runs."""
        text = {key: str(value) for key, value in values.items()}
        self._stub.SetConfig(admin_pb2.SetConfigRequest(values=text), timeout=60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()
        self._process.end(_STOP_SECONDS)
        self._directory.cleanup()


@contextmanager
def pagefold_side(plan: Plan, count: int, size: int, **settings: object) -> Iterator[tuple[Server, list[Worker]]]:
    """A server and clients with so much memory each, not touched yet. Server first: it outlives them."""
    with Server(plan.engine, **settings) as server, workers(count) as crew:
        everybody(crew, "connect", server.address)
        if size:
            everybody(crew, "allocate", size)
        yield server, crew


@contextmanager
def kernel_side(setting: contextlib.AbstractContextManager[None], count: int, size: int) -> Iterator[list[Worker]]:
    """Workers with so much mergeable memory each. KSM, set up as told, outlives them: less to take apart."""
    with setting, workers(count) as crew:
        everybody(crew, "allocate", size)
        yield crew


@contextmanager
def workers(count: int, program: str = "worker.py") -> Iterator[list[Worker]]:
    """So many workers."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(program)) for _ in range(count)]


def everybody(crew: Sequence[Worker], method: str, *args: Any) -> list[Any]:
    """Calls a method of all at the same time."""
    for worker in crew:
        worker.send(method, *args)
    return [worker.receive() for worker in crew]


def fill(crew: Sequence[Worker], layout: str, *more: Any) -> list[Any]:
    """Has all write their pages, each as itself. Their checksums."""
    for who, worker in enumerate(crew):
        worker.send("fill", layout, who, *more)
    return [worker.receive() for worker in crew]


def verify(crew: Sequence[Worker], checksums: Sequence[Any]) -> None:
    """Every byte is what it was.

    Raises:
        WrongResult: one is not.
    """
    if everybody(crew, "checksum") != list(checksums):
        raise WrongResult("the bytes changed: the checksum is another one after merging")


def settled(report: dict[str, Any], **expected: int) -> dict[str, Any]:
    """A report of settle(), if it is as it must be.

    Raises:
        WrongResult: it is not.
    """
    wrong = {key: (report[key], value) for key, value in expected.items() if report[key] != value}
    if not report["settled"] or wrong:
        text = ", ".join(f"{key} is {is_} and not {value}" for key, (is_, value) in wrong.items())
        raise WrongResult(f"not merged as it must be: {text or report['reason']}")
    return report


def cpu(server: Server | None, crew: Sequence[Worker]) -> float:
    """CPU seconds of server and clients so far."""
    pids = [worker.pid for worker in crew] + ([server.pid] if server else [])
    return sum(map(cpu_seconds, pids))


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PAGEFOLD_")}


def _end(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
