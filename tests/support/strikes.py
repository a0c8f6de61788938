"""Exceptions at every step of Python: what a signal handler that raises may do to a program that uses pagefold.

`python -m support.strikes ADDRESS CALL STRIDE` makes one public call again and again. Each time an exception comes in
pagefold's own frames, one step (opcode) further on; with STRIDE 5 at every fifth step. Afterwards nothing is left of a
call that has not happened, and the client works. Prints how many steps there were, and ends with 0 if all is well.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import numpy as np
import pagefold
import pagefold_core
import pagefold_proto

from support import kernel
from support.children import fork
from support.waiting import until

PACKAGES: Final = tuple(str(Path(package.__path__[0])) for package in (pagefold, pagefold_core, pagefold_proto))
PAGE: Final = 4096
PATIENCE: Final = 30.0
"""Seconds after which a call hangs."""


class Strike(BaseException):
    """What comes."""


class Striker:
    """Raises when pagefold's frames have made so many steps, in this thread."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.where or not frame.f_code.co_filename.startswith(PACKAGES):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and not self.where:
            self._left -= 1
            if self._left == 0:
                code = frame.f_code
                self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname} +{frame.f_lasti}"
                raise Strike
        return self._step


class World:
    """A program: a client with two arrays that are merged."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = pagefold.connect(address, autostart=False)
        self.want = np.arange(4 * PAGE // 8)
        self.first, self.second = self.client.array(self.want), self.client.array(self.want)
        self.buffer = self.client.allocate(3 * PAGE)
        self.other: pagefold.Client | None = None
        for _ in range(2):  # so that whatever grpc starts once is there
            pagefold.connect(address, autostart=False).close()
        self.work()
        self.levels = self.measure()

    def measure(self) -> tuple[int, int, int, int, frozenset[str]]:
        """Pages in use, descriptors, threads, mappings that are pinned to us, names."""
        session = self.client._session
        assert session is not None
        session.arena.sweep()
        session.arena.check()
        files = len(os.listdir("/proc/self/fd"))
        threads = len(os.listdir("/proc/self/task"))
        pins = sum("/pagefold-l-" in line for line in Path("/proc/self/maps").read_text().splitlines())
        return session.arena.pages_in_use, files, threads, pins, frozenset(kernel.names())

    def is_level(self) -> bool:
        """Whether nothing has been left since the beginning. gRPC's threads come and go."""
        now, before = self.measure(), self.levels
        return now[0] == before[0] and now[1] <= before[1] and now[2] <= before[2] and now[3:] == before[3:]

    def work(self) -> None:
        """A round of it: what is equal merges, what is written is read."""
        again = self.client.array(self.want)
        self.second[0] += 1
        assert (again == self.want).all()
        assert self.second[0] == self.want[0] + 1
        self.second[0] -= 1
        assert self.client.settle(PATIENCE).settled, self.client.stats()
        assert (self.first == self.want).all()
        assert self.client.stats().merged_bytes >= self.first.nbytes

    def check(self, full: bool) -> None:
        """What must be true after a call that was interrupted."""
        if self.other is not None:
            self.other.close()  # whether or not it is closed already
            self.other = None
        gc.collect()
        until(self.is_level, PATIENCE, f"{self.levels}")
        assert self.client.allocate(PAGE)[:] == bytes(PAGE)
        if full:
            self.work()


def pinned(world: World) -> None:
    with world.client.pinned(world.buffer), world.client.pinned(memoryview(world.first)):
        pass


def advised(world: World) -> None:
    world.client.advise(world.second, mergeable=False)
    world.client.advise(world.second, mergeable=True)


def connected(world: World) -> None:
    world.other = pagefold.connect(world.address, autostart=False)


def dropped(world: World) -> None:
    client: pagefold.Client | None = pagefold.connect(world.address, autostart=False)
    assert client is not None
    del client


def closed(world: World) -> None:
    with pagefold.connect(world.address, autostart=False) as world.other:
        world.other.allocate(PAGE)


def copied(world: World) -> None:
    world.buffer[5:9] = world.buffer[1:5]
    world.buffer[0] = world.buffer[4]
    repr(world.buffer), repr(world.client)


CALLS: Final[dict[str, Callable[[World], object]]] = {
    "allocate": lambda world: world.client.allocate(5 * PAGE),
    "grow": lambda world: world.client.allocate(200 << 20),
    "with": lambda world: world.client.allocate(PAGE).__enter__().close(),
    "empty": lambda world: world.client.empty((3, 1000)),
    "zeros": lambda world: world.client.zeros(5000, "i4"),
    "full": lambda world: world.client.full((7, 9), 3),
    "array": lambda world: world.client.array(world.want),
    "empty_like": lambda world: world.client.empty_like(world.want),
    "zeros_like": lambda world: world.client.zeros_like(world.want, order="F"),
    "full_like": lambda world: world.client.full_like(world.want, 3),
    "settle": lambda world: world.client.settle(PATIENCE),
    "stats": lambda world: world.client.stats().as_dict(),
    "pinned": pinned,
    "advise": advised,
    "buffer": copied,
    "connect": connected,
    "close": closed,
    "drop": dropped,
}
IN_CHILDREN: Final = ("fork", "reattach")
"""What is done in children, one for each step: the hooks of a fork, and what a child connects by."""


def strike(steps: int, act: Callable[[], object], keep: list[BaseException]) -> str:
    """Does something, with an exception after so many steps. Where that came; empty: it was over before."""
    striker = Striker(steps)
    try:
        sys.settrace(striker)
        try:
            act()
        finally:
            sys.settrace(None)
    except Strike as error:
        keep[:] = [error]  # as Jupyter and the interactive interpreter do: the frames live on for a while
    return striker.where


def strike_all(world: World, call: str, stride: int) -> int:
    """How many steps the call has."""
    act = CALLS[call]
    keep: list[BaseException] = []
    steps = 1
    while True:
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
        where = strike(steps, lambda: act(world), keep)
        try:
            if steps // stride % 2:
                keep.clear()
            world.client.allocate(PAGE).close()  # the frames of the interrupted call may still be there
            keep.clear()
            world.check(full=not where or steps // stride % 20 == 0)
        except BaseException as error:
            error.add_note(f"after an exception at step {steps} of {call}: {where or 'none'}")
            raise
        if not where:
            return steps
        steps += stride


def strike_children(world: World, call: str, stride: int) -> int:
    """The same for `IN_CHILDREN`."""
    steps = 1
    while True:
        reader, writer = os.pipe()
        striker = Striker(steps)
        faulthandler.cancel_dump_traceback_later()  # a child would wait for its thread, which does not exist there
        if call == "fork":
            sys.settrace(striker)
        try:
            pid = fork()
        finally:
            sys.settrace(None)
        if pid == 0:
            be_child(world, striker if call == "fork" else None, steps, writer)
        assert striker.where == "", "nothing of the parent's is Python"
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"after an exception at step {steps} of {call}"
        over = os.read(reader, 1) == b"-"
        os.close(reader)
        os.close(writer)
        if over or steps // stride % 10 == 0:
            until(lambda: not world.client.stats().trouble, PATIENCE, "the thaw")
            world.check(full=True)
            # The next child would hold up what the parent has not reported yet, and would not settle.
            assert world.client.settle(PATIENCE).settled, world.client.stats()
        if over:
            return steps
        steps += stride


def be_child(world: World, striker: Striker | None, steps: int, writer: int) -> NoReturn:
    """A round of work by a client that was inherited, after an exception: in the hooks that came, or in `reattach`."""
    code = 1
    try:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        where = strike(steps, world.client.reattach, []) if striker is None else striker.where
        mine = world.client.array(world.want)
        assert (mine == world.first).all()
        report = world.client.settle(PATIENCE)
        # A page that the parent had not merged before the fork stays so while this child shares it.
        assert report.settled or "a forked child shares" in report.reason, report.reason
        assert world.client.stats().merged_bytes >= mine.nbytes
        world.client.close()
        os.write(writer, b"x" if where else b"-")
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    address, call, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.unraisablehook = lambda told: None if told.exc_type is Strike else sys.__unraisablehook__(told)
    logging.getLogger("pagefold").setLevel(logging.ERROR)  # that memory is left unmerged is what is wanted here
    world = World(address)
    steps = (strike_children if call in IN_CHILDREN else strike_all)(world, call, stride)
    world.client.close()
    until(lambda: threading.active_count() == 1, PATIENCE, "its threads ending")
    faulthandler.cancel_dump_traceback_later()
    print(steps)


if __name__ == "__main__":
    main()
