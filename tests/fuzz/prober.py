"""Asks for the status every 20 ms, and knows the longest that an answer took: what an operator notices of a fuzzer."""

from __future__ import annotations

import threading
import time
from typing import Final

import grpc
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc

LONGEST: Final = 0.1
"""Seconds in which the status is answered, whatever clients do. What takes longer is counted and reported."""

_EVERY: Final = 0.02
_GIVES_UP: Final = 120.0  # so that a stall is measured, and not cut off


class Prober:
    """A thread that asks.

    Attributes:
        asked: answers so far.
        longest: seconds that the slowest took.
        slow: when answers took longer than `LONGEST`, in seconds after the start, and how long.
        failed: what went wrong instead of an answer.
    """

    def __init__(self, address: str) -> None:
        self.asked = 0
        self.longest = 0.0
        self.slow: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = admin_pb2_grpc.AdminStub(self._channel)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self._stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=_GIVES_UP)
            except grpc.RpcError as error:
                if not self._ended.is_set():
                    self.failed.append(f"no status: {error.code().name} {error.details()}")
                return
            took = time.monotonic() - began
            self.asked += 1
            self.longest = max(self.longest, took)
            if took > LONGEST:
                self.slow.append((round(began - self._began, 2), round(took, 3)))
            pause = max(0.0, _EVERY - took)

    def close(self) -> None:
        """Ends it; an answer that is under way is waited for."""
        self._ended.set()
        self._thread.join()
        self._channel.close()
