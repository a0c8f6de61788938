"""What a client does in a campaign: it writes all the time, and knows of every byte what it wrote there last.

Each writer has buffers of its own and a model of them in ordinary memory, and holds its gate while the two may differ.
Contents come from a small set, by place, so that memory of different clients is equal most of the time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import select
import threading
import time
from pathlib import Path
from typing import Any

from support.worker import PAGE, page_of

from chaos import points

PAGES = 192
WRITERS = 2
LARGE = (65 << 20, 200 << 20)
"""Together more than any segment has room for that a client keeps in reserve: one comes for them, and goes."""


class Writer:
    """One thread's memory."""

    def __init__(self, client: Any, seed: str) -> None:
        self.rng = random.Random(seed)
        self.client = client
        self.gate = threading.Lock()
        self.memory: list[tuple[Any, bytearray]] = []
        self.written = self.verified = 0
        self.lost: list[str] = []
        self.contents = os.memfd_create("contents")
        os.write(self.contents, b"".join(page_of(1 + n) for n in range(PAGES)))
        for _ in range(2):
            self.allocate(PAGES)
            self.put(len(self.memory) - 1, 0, b"".join(page_of(1 + n) for n in range(PAGES)))

    def allocate(self, pages: int) -> None:
        self.memory.append((self.client.allocate(pages * PAGE), bytearray(pages * PAGE)))

    def put(self, index: int, offset: int, data: bytes) -> None:
        buffer, model = self.memory[index]
        with memoryview(buffer) as view:
            view[offset : offset + len(data)] = data
        model[offset : offset + len(data)] = data
        self.written += len(data)

    def pread(self, index: int, page: int) -> None:
        """The kernel writes."""
        buffer, model = self.memory[index]
        content = page % PAGES
        with memoryview(buffer) as view:
            assert os.preadv(self.contents, [view[page * PAGE : (page + 1) * PAGE]], content * PAGE) == PAGE
        model[page * PAGE : (page + 1) * PAGE] = page_of(1 + content)
        self.written += PAGE

    def verify(self) -> None:
        for number, (buffer, model) in enumerate(self.memory):
            with memoryview(buffer) as view:
                if view != model:
                    got = bytes(view)
                    wrong = [at for at in range(0, len(got), PAGE) if got[at : at + PAGE] != model[at : at + PAGE]]
                    self.lost.append(f"buffer {number}: {len(wrong)} pages of {len(got) // PAGE}, first {wrong[:4]}")
            self.verified += len(model)

    def step(self) -> None:
        rng = self.rng
        index = rng.randrange(len(self.memory))
        pages = len(self.memory[index][1]) // PAGE
        page = rng.randrange(pages)
        choice = rng.random()
        if choice < 0.45:
            count = min(rng.randrange(1, 17), pages - page)
            self.put(index, page * PAGE, b"".join(page_of(1 + n % PAGES) for n in range(page, page + count)))
        elif choice < 0.7:
            data = rng.randbytes(rng.randrange(1, 64))
            self.put(index, rng.randrange(pages * PAGE - len(data)), data)
        elif choice < 0.85:
            self.pread(index, page)
        elif choice < 0.9:
            self.put(index, page * PAGE, bytes(PAGE))
        elif choice < 0.95:
            self.memory.pop(index)[0].close()
            self.allocate(rng.choice([1, 40, PAGES]))  # and it reads as zeros
        else:
            self.verify()

    def close(self) -> None:
        for buffer, _ in self.memory:
            buffer.close()
        self.memory.clear()
        os.close(self.contents)


class Load:
    """A client's writers and children. Methods are called from the campaign."""

    def __init__(self, client: Any, address: str, seed: str) -> None:
        self.client, self.address, self.seed = client, address, seed
        self.writers = [Writer(client, f"{seed}/{n}") for n in range(WRITERS)]
        self.children: dict[int, int] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(w,), daemon=True) for w in self.writers]
        for thread in self._threads:
            thread.start()

    def _run(self, writer: Writer) -> None:
        while not self._stop.is_set():
            with writer.gate:
                try:
                    writer.step()
                except Exception as error:
                    writer.lost.append(f"a writer failed: {error!r}")
                    return
            # In between, pages have to be quiet for a while: nothing that is written all the time merges.
            self._stop.wait(0.002 if writer.rng.random() < 0.98 else 0.2)

    def large(self) -> None:
        """A segment comes and goes: AddSegment, DropSegment."""
        buffers = [self.client.allocate(size) for size in LARGE]
        for buffer in buffers:
            with memoryview(buffer) as view:
                view[:PAGE] = page_of(1)
            buffer.close()
        self.client.stats()  # takes back what was freed

    def verify(self) -> dict[str, Any]:
        """Looks at everything, with the writers standing still."""
        self._reap()
        with contextlib.ExitStack() as stack:
            for writer in self.writers:
                stack.enter_context(writer.gate)
            for writer in self.writers:
                writer.verify()
            stats = self.client.stats()
            return {
                "written": sum(w.written for w in self.writers),
                "verified": sum(w.verified for w in self.writers),
                "lost": [text for w in self.writers for text in w.lost],
                "merged": stats.merged_bytes,
                "connected": stats.connected,
                "trouble": stats.trouble,
            }

    def fork(self, directory: str, point: str, nth: int) -> int:
        """Forks a child that reads and writes on, and becomes a client of its own unless it is to die before."""
        read, write = os.pipe()
        with contextlib.ExitStack() as stack:
            for writer in self.writers:
                stack.enter_context(writer.gate)
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(write)
                    points.arm(point, nth)
                    _live(self, read, Path(directory) / f"child-{os.getpid()}")
                finally:
                    os._exit(1)
        os.close(read)
        self.children[pid] = write
        return pid

    def _reap(self) -> None:
        for pid in list(self.children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                os.close(self.children.pop(pid))

    def end_children(self) -> None:
        for pid, write in self.children.items():
            os.close(write)
            os.waitpid(pid, 0)
        self.children.clear()

    def close(self) -> list[str]:
        """Ends it all. What is left of pagefold's in this process: descriptors and mappings."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.end_children()
        for writer in self.writers:
            writer.close()
        self.client.close()
        gc.collect()  # what an exception's frames hold on to is no leak
        return remains(os.getpid())


def _live(load: Load, until: int, report: Path) -> None:
    """A child's life: the memory is a snapshot, and its own from now on."""
    client = None
    lost: list[str] = []
    verified = written = 0
    for writer in load.writers:
        writer.lost.clear()
    turn = 0
    try:
        while True:
            turn += 1
            points.hit("snapshot")
            for writer in load.writers:
                writer.verify()
                index = writer.rng.randrange(len(writer.memory))
                writer.put(index, 0, writer.rng.randbytes(200))
                lost += writer.lost
                writer.lost.clear()
            verified = sum(w.verified for w in load.writers)
            written = sum(w.written for w in load.writers)
            report.write_text(json.dumps({"lost": lost, "verified": verified, "written": written}))
            if turn == 2:
                import pagefold

                with contextlib.suppress(pagefold.ServerUnavailable):
                    client = pagefold.connect(load.address, autostart=False)
                    load.writers.append(Writer(client, f"{load.seed}/child"))
            if select.select([until], [], [], 0.05)[0]:
                break
    except BaseException as error:
        lost.append(f"a child failed: {error!r}")
        report.write_text(json.dumps({"lost": lost, "verified": verified, "written": written}))
    if client is not None:
        client.close()
    os._exit(0)


def remains(pid: int) -> list[str]:
    """pagefold's objects that a process has open or mapped."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if "pagefold-" in target and target.startswith("/dev/shm"):
                found.append(f"descriptor {fd}: {target}")
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return found + [f"mapping {line}" for line in maps if "/dev/shm/" in line and "pagefold-" in line]


_load: Load | None = None


def begin(remote: Any, address: str, seed: str) -> None:
    global _load
    _load = Load(remote.client, address, seed)


def call(remote: Any, method: str, *args: Any) -> Any:
    """Calls a method of the load, in the worker; `arm` arms a point."""
    if method == "arm":
        return points.arm(*args)
    if method == "settle":
        return remote.client.settle(*args).settled
    return getattr(_load, method)(*args)


def wait_for(pid: int, seconds: float) -> bool:
    """Whether a process that need not be a child of ours is gone, or a zombie, within a time."""
    until = time.monotonic() + seconds
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.01)  # nothing tells of the death of somebody else's child
