"""A worker: a process of its own that uses pagefold, told over a pipe what to do.

In the worker, `Remote` holds arrays by name; in the test, `Worker` calls its methods and gets what they return, or the
exception that they raised.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from support import identity, seccomp, variant

PAGE = mmap.PAGESIZE


class Worker:
    """The test's end. With a `uid` it is another user, who can hold writes all the same; for root.

    $DENY in `env` names system calls that it may not make, from before it connects.
    """

    def __init__(self, address: str, env: dict[str, str] | None = None, uid: int | None = None, **connect: Any) -> None:
        mine, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.worker", str(theirs.fileno()), *([] if uid is None else [str(uid)])],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=os.path.dirname(os.path.dirname(__file__)),
            env={k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")} | (env or {}),
        )
        theirs.close()
        self.connection = Connection(mine.detach())
        try:
            asked = {} if not variant.TRACKER or "PAGEFOLD_TRACKER" in (env or {}) else {"tracker": variant.TRACKER}
            self.call("connect", address, asked | connect)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, method: str, *args: Any) -> None:
        self.connection.send((method, args))

    def receive(self) -> Any:
        ok, value = self.connection.recv()
        if not ok:
            raise value
        return value

    def call(self, method: str, *args: Any) -> Any:
        self.send(method, *args)
        return self.receive()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.connection.close()

    def close(self) -> None:
        """Ends the worker politely; it is killed if it does not go."""
        try:
            if self.process.poll() is None:
                self.connection.send(("exit", ()))
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()
            raise
        finally:
            self.connection.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.close()


class Remote:
    """The worker's end. Buffers have names; offsets and lengths are bytes."""

    def __init__(self) -> None:
        self.client: Any = None
        self.buffers: dict[str, Any] = {}
        self.pins: dict[str, Any] = {}

    def connect(self, address: str, options: dict[str, Any]) -> int:
        import pagefold

        if "CHAOS_POINT" in os.environ:  # of a campaign, which kills at points of its own
            from chaos import points

            points.wrap_client()
            points.arm(*os.environ["CHAOS_POINT"].split("@"))
        self.client = pagefold.connect(address, autostart=False, **options)
        return os.getpid()

    def allocate(self, name: str, size: int) -> None:
        self.buffers[name] = self.client.allocate(size)

    def fill_pages(self, name: str, seeds: list[int], first: int = 0) -> None:
        """Gives page first+i the content number seeds[i]; content 0 is zeros."""
        view = memoryview(self.buffers[name])
        for i, seed in enumerate(seeds):
            at = (first + i) * PAGE
            view[at : at + PAGE] = page_of(seed)

    def write(self, name: str, offset: int, data: bytes, how: str = "store") -> None:
        with memoryview(self.buffers[name]) as whole, whole[offset : offset + len(data)] as view:
            if how == "store":
                view[:] = data
            elif how == "numpy":
                import numpy as np

                np.copyto(np.frombuffer(view, dtype=np.uint8), np.frombuffer(data, dtype=np.uint8))
            elif how == "readinto":
                read, write = os.pipe()
                feeder = threading.Thread(target=_feed, args=(write, data))
                feeder.start()
                with open(read, "rb", buffering=0) as pipe:
                    got = 0
                    while got < len(data):
                        got += pipe.readinto(view[got:])
                feeder.join()
            elif how == "recv_into":
                a, b = socket.socketpair()
                feeder = threading.Thread(target=_feed, args=(b.detach(), data))
                feeder.start()
                with a:
                    got = 0
                    while got < len(data):
                        got += a.recv_into(view[got:])
                feeder.join()
            else:
                raise ValueError(how)

    def read(self, name: str, offset: int, size: int) -> bytes:
        return bytes(memoryview(self.buffers[name])[offset : offset + size])

    def digest(self, name: str) -> str:
        return hashlib.blake2b(memoryview(self.buffers[name])).hexdigest()

    def free(self, name: str) -> None:
        self.buffers.pop(name).close()

    def advise(self, name: str, mergeable: bool) -> None:
        self.client.advise(self.buffers[name], mergeable=mergeable)

    def pin(self, name: str) -> None:
        context = self.client.pinned(self.buffers[name])
        context.__enter__()
        self.pins[name] = context

    def unpin(self, name: str) -> None:
        self.pins.pop(name).__exit__(None, None, None)

    def settle(self, timeout: float = 30) -> Any:
        return self.client.settle(timeout=timeout)

    def stats(self) -> Any:
        return self.client.stats()

    def evaluate(self, expression: str) -> Any:
        """For the odd question; `client` and `buffers` are at hand."""
        return eval(expression, {"client": self.client, "buffers": self.buffers, "os": os})

    def execute(self, code: str, *args: Any) -> Any:
        """Runs code that defines `run(remote, *args)`, and returns what that returns."""
        scope: dict[str, Any] = {}
        exec(code, scope)
        return scope["run"](self, *args)

    def close_client(self) -> None:
        self.client.close()


def page_of(seed: int) -> bytes:
    """The page content number `seed`. 0 is zeros; others differ in their first bytes and share the rest by pairs."""
    if seed == 0:
        return bytes(PAGE)
    return (seed.to_bytes(8, "little") + (seed // 2).to_bytes(8, "big")) * (PAGE // 16)


def _feed(fd: int, data: bytes) -> None:
    with open(fd, "wb", buffering=0) as pipe:
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    if len(sys.argv) > 2:
        import pagefold  # noqa: F401 - before it cannot be read any more

        identity.become(int(sys.argv[2]))
    if denied := os.environ.get("DENY"):
        seccomp.deny(*denied.split(","))
    remote = Remote()
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            break
        if method == "exit":
            break
        try:
            answer = (True, getattr(remote, method)(*args))
        except Exception as error:
            answer = (False, error)
        connection.send(answer)
    if remote.client is not None:
        remote.buffers.clear()
        remote.client.close()


if __name__ == "__main__":
    main()
