"""The steps at which a process can be killed, and how: at the n-th time that it comes there, by its own SIGKILL.

Steps of the protocol are wrapped here, around the classes of the product, so that the product knows nothing of it.
Those inside of native code are fault points (native/src/faults.rs).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Final

from support import faults

CLIENT: Final = (
    "Hello.before",
    "Hello.after",
    "AddSegment.before",
    "AddSegment.after",
    "Exchange.before",
    "Exchange.after",
    "merges.begin",
    "merges.done",
    "adopts.done",
    "DropSegment.before",
    "DropSegment.after",
    "Bye.before",
    "Bye.after",
)
CLIENT_NATIVE: Final = (
    "tracker.let_go",
    "window.protect",
    "merge.held",
    "merge.map",
    "merge.mapped",
    "window.end",
    "window.wake",
    "view.punch",
    "adopt.held",
    "adopt.map",
    "adopt.mapped",
    "discard.punch",
    "harvest.looked",
    "freeze.mapped",
)
SERVER: Final = (
    "hello.received",
    "hello.applied",
    "add_segment.received",
    "add_segment.applied",
    "exchange.received",
    "exchange.booked",
    "exchange.taken",
    "exchange.applied",
    "drop_segment.received",
    "drop_segment.applied",
    "bye.received",
    "bye.applied",
    "scan.begin",
    "scan.proposed",
    "reap.begin",
    "reap.done",
    "sweep.done",
)
SERVER_NATIVE: Final = ("engine.founded",)
CHILD: Final = ("snapshot", "Hello.after", "Exchange.before", "Exchange.after", "merges.done", "merge.mapped")

_armed: dict[str, int] = {}


def known(points: tuple[str, ...], native: tuple[str, ...]) -> tuple[str, ...]:
    """Those that can be had in this build."""
    return (*points, *(point for point in native if point in faults.POINTS))


def arm(point: str, nth: int | str) -> None:
    """Has this process killed when it comes to a point for the n-th time from now on."""
    if point in faults.POINTS:
        faults.arm(point, f"kill@{nth}")
    else:
        _armed[point] = int(nth)


def hit(point: str) -> None:
    """This process is at a point."""
    left = _armed.get(point, 0)
    if left == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if left:
        _armed[point] = left - 1


def _around(owner: Any, name: str, before: str, after: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            hit(before)
        result = original(*args, **kwargs)
        if after:
            hit(after)
        return result

    setattr(owner, name, wrapped)


def wrap_client() -> None:
    """Puts the client's points into the library, once in a process."""
    from pagefold._session import instructions, transport

    call = transport.GrpcTransport.call

    def called(self: Any, method: Any, request: Any, timeout: float) -> Any:
        hit(f"{method.name}.before")
        reply = call(self, method, request, timeout)
        hit(f"{method.name}.after")
        return reply

    carry_out = instructions.Instructions.carry_out

    def carried_out(self: Any, reply: Any) -> Any:
        if reply.merges.count:
            hit("merges.begin")
        result = carry_out(self, reply)
        if reply.merges.count:
            hit("merges.done")
        if reply.adopts.count:
            hit("adopts.done")
        return result

    transport.GrpcTransport.call = called  # type: ignore[method-assign]
    instructions.Instructions.carry_out = carried_out  # type: ignore[method-assign]


def wrap_server() -> None:
    """Puts the server's points into it, once in a process."""
    from pagefold_server import service
    from pagefold_server.domains import domain
    from pagefold_server.engine import native
    from pagefold_server.engine.reference import engine as reference
    from pagefold_server.sessions import registry

    for name in ("hello", "add_segment", "exchange", "drop_segment", "bye"):
        _around(registry.Sessions, name, f"{name}.received", f"{name}.applied")
    for engine in (native.NativeEngine, reference.ReferenceEngine):
        _around(engine, "apply", "", "exchange.booked")
        _around(engine, "take", "", "exchange.taken")
    _around(registry.Sessions, "reap", "reap.begin", "reap.done")
    gently = service.sweep_gently
    scan = domain.Domain.scan

    async def swept() -> None:
        await gently()
        hit("sweep.done")

    def scanned(self: Any, *args: Any, **kwargs: Any) -> Any:
        hit("scan.begin")
        step = scan(self, *args, **kwargs)
        if self.engine.queued():
            hit("scan.proposed")
        return step

    service.sweep_gently = swept
    domain.Domain.scan = scanned  # type: ignore[method-assign]
