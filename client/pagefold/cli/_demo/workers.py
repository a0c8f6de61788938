"""Worker processes of the demo: each loads the same data into its own array, and checks every byte of it.

    |  common to all  ...  | private | ...  common to all  ... | zeros |     16 stripes: 14 common, 1 private, 1 zero

The seed gives every byte again, so a worker compares all that it reads with what it wrote, and needs no second copy.
Parent and workers talk through a socket. A worker ends when its parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from pagefold_proto.limits import PAGE

import pagefold
from pagefold._launch import interpreter
from pagefold.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STRIPES: Final = 16
PRIVATE_STRIPE: Final = 7
ZERO_STRIPE: Final = 15
_CHUNK: Final = 1 << 18
_STEADY_HEAP: Final = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Has glibc give freed pieces back at once, instead of learning to keep them: the demo measures memory."""
_WARM_BYTES: Final = 1 << 20
_STOP_SECONDS: Final = 10.0


class Crew:
    """Workers, by number. None of them outlives the `with` block of its crew.

    Args:
        address: the server's.
        workers: their number.
        nbytes: size of each worker's array, a multiple of 16 pages.
        seed: the seed of the data.
    """

    def __init__(self, address: str, workers: int, nbytes: int, seed: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection[Any, Any]] = []
        for number in range(workers):
            ours, theirs = socket.socketpair()
            with theirs:
                words = (address, str(number), str(nbytes), str(seed), str(theirs.fileno()))
                self._processes.append(
                    subprocess.Popen(  # noqa: S603 - our own interpreter and module
                        [interpreter.first(), *interpreter.arguments("pagefold.cli._demo.workers", *words)],
                        pass_fds=[theirs.fileno()],
                        env=interpreter.environment({**os.environ, **_STEADY_HEAP}),
                        stdin=subprocess.DEVNULL,
                        process_group=0,  # Ctrl-C is for the parent, which ends them in order
                    )
                )
            self._connections.append(Connection(ours.detach()))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()  # which is how workers are told to end
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        """The workers' process numbers."""
        return [process.pid for process in self._processes]

    def tell(self, number: int, method: str, *args: object) -> None:
        """Calls a method of one worker; `answers` gets its result."""
        with contextlib.suppress(OSError):  # `answers` finds out that a worker is gone
            self._connections[number].send((method, args))

    def tell_all(self, method: str) -> None:
        """Calls a method of all workers."""
        for number in range(len(self)):
            self.tell(number, method)

    def answers(self, numbers: list[int], tick: float) -> Iterator[list[Any] | None]:
        """Results of workers, in the order of `numbers`; before that, None every `tick` seconds.

        Raises:
            CommandError: a worker failed; the text is the worker's.
        """
        found: dict[int, Any] = {}
        while len(found) < len(numbers):
            waiting = next(number for number in numbers if number not in found)
            if self._connections[waiting].poll(tick):
                found[waiting] = self._receive(waiting)
            else:
                yield None
        yield [found[number] for number in numbers]

    def _receive(self, number: int) -> Any:
        try:
            worked, value = self._connections[number].recv()
        except (EOFError, ConnectionError) as error:
            code = self._processes[number].wait(_STOP_SECONDS)
            raise CommandError(f"worker {number} ended with exit code {code} in the middle of its work") from error
        if not worked:
            raise CommandError(f"worker {number}: {value}", ExitCode.FAILED)
        return value


class Worker:
    """The worker's side. The parent calls methods by name, over the socket."""

    def __init__(self, address: str, number: int, nbytes: int, seed: int) -> None:
        self._client = pagefold.connect(address, autostart=False)
        self._number, self._nbytes, self._seed = number, nbytes, seed
        self._array: NDArray[np.uint64] | None = None
        self._edits: dict[int, int] = {}

    def warm_up(self) -> dict[str, str]:
        """Does everything once with little data: later the demo measures data, not the loading of modules."""
        buffer = self._client.allocate(_WARM_BYTES)
        self._client.settle(timeout=5)
        buffer.close()
        _generated(1, 0, _CHUNK // 8)
        stats = self._client.stats()
        return {"barrier": stats.barrier, "tracker": stats.tracker, "trouble": stats.trouble}

    def load(self) -> None:
        """Allocates the array and fills it, as a program that reads a table from a file."""
        self._array = self._client.empty(self._nbytes // 8, "u8")
        for start, expected in self._expected():
            self._array[start : start + len(expected)] = expected

    def verify(self) -> int:
        """Compares every byte with what was written. Returns the number that differ."""
        array, wrong = self._loaded(), 0
        for start, expected in self._expected():
            found = array[start : start + len(expected)]
            wrong += int((found.view("u1") != expected.view("u1")).sum())
        return wrong

    def write(self, pages: list[int]) -> None:
        """Overwrites pages, each with another number."""
        array, words = self._loaded(), _page_words()
        for page in pages:
            self._edits[page] = (self._number << 32) + page + 1
            array[page * words : (page + 1) * words] = self._edits[page]

    def settle(self, timeout: float) -> dict[str, Any]:
        """Waits until nothing is left to merge."""
        return self._client.settle(timeout=timeout).as_dict()

    def stats(self) -> dict[str, Any]:
        """The stats of this client, as plain values."""
        return self._client.stats().as_dict()

    def close(self) -> None:
        """Ends the session. The array is freed with the process."""
        self._array = None
        self._client.close()

    def _loaded(self) -> NDArray[np.uint64]:
        assert self._array is not None, "load comes first"
        return self._array

    def _expected(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """The content that the array has to have, piece by piece: (first element, elements)."""
        import numpy as np

        stripe, words = self._nbytes // STRIPES // 8, _page_words()
        for start in range(0, stripe * STRIPES, step := min(stripe, _CHUNK // 8)):
            kind = start // stripe
            if kind == ZERO_STRIPE:
                piece = np.zeros(step, "u8")
            else:
                owner = 1 + self._number if kind == PRIVATE_STRIPE else 0
                piece = _generated(self._seed * 1000003 + owner, start, step)
            for page, value in self._edits.items():
                if start <= page * words < start + step:
                    piece[page * words - start : (page + 1) * words - start] = value
            yield start, piece


def _generated(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    import numpy as np

    made: NDArray[np.uint64] = np.random.SFC64([seed, start]).random_raw(count)
    return made


def _page_words() -> int:
    return PAGE // 8


def main() -> None:
    """A worker's life: `python -m pagefold.cli._demo.workers ADDRESS NUMBER BYTES SEED FD`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    address, *numbers = sys.argv[1:]
    number, nbytes, seed, fd = map(int, numbers)
    connection: Connection[Any, Any] = Connection(fd)
    worker: Worker | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, args = connection.recv()
            try:
                worker = worker or Worker(address, number, nbytes, seed)
                answer = (True, getattr(worker, method)(*args))
            except Exception as error:
                answer = (False, f"{error}" if isinstance(error, pagefold.PagefoldError) else f"{error!r}")
            connection.send(answer)
    if worker is not None:
        worker.close()


if __name__ == "__main__":
    main()
