"""The processes of a benchmark, and what the kernel says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc

_TICK = os.sysconf("SC_CLK_TCK")
_HERE = Path(__file__).parent


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_bytes(pid: int) -> int:
    """Private memory of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0


class Worker:
    """`bench/worker.py` in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
            [sys.executable, str(_HERE / "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def __call__(self, method: str, *args: Any) -> Any:
        """Calls a method there."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([method, *args]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker died in {method}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


class Server:
    """A pagefold server on a socket of its own, with default settings."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pagefold-bench-")
        self.address = f"unix:{self._directory.name}/server.sock"
        ready, tell = os.pipe()
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", "pagefold_server", "--address", self.address, "--ready-fd", str(tell)],
            pass_fds=[tell],
            stderr=subprocess.DEVNULL,
        )
        os.close(tell)
        with os.fdopen(ready, "rb") as pipe:
            if not pipe.read(1):
                raise RuntimeError("the server did not start")
        self.pid = self._process.pid
        self._channel = grpc.insecure_channel(self.address)

    def status(self) -> admin_pb2.Status:
        """What the server says of itself."""
        stub = admin_pb2_grpc.AdminStub(self._channel)  # type: ignore[no-untyped-call]
        status: admin_pb2.Status = stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=30)
        return status

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()
