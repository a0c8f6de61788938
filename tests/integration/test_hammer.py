"""Writers that never rest against a server that merges and adopts as fast as it can: no byte is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import variant
from support.server import Server
from support.worker import Worker

pytestmark = pytest.mark.needs("uffd")

SECONDS = 15

# Runs in the worker. Pages hold one of four contents, so that there is always something to merge; each writer has pages
# of its own, knows what it wrote there last, and looks at all of it before it writes again.
HAMMER = """
import os, random, socket, threading, time
import numpy as np
from support.worker import PAGE

PAGES, CONTENTS, WRITERS = 96, 4, 6

def run(remote, seconds, seed, rest):
    client = remote.client
    buffer = client.allocate(PAGES * PAGE)
    bytes_ = memoryview(buffer)
    words = np.frombuffer(buffer, dtype=np.uint64).reshape(PAGES, -1)
    contents = [np.full(PAGE // 8, c, np.uint64) for c in range(CONTENTS)]
    source = os.memfd_create("contents")
    os.write(source, b"".join(c.tobytes() for c in contents))
    for page in range(PAGES):
        words[page] = contents[page % CONTENTS]
    stop, written, lost = threading.Event(), [0] * WRITERS, []

    def store(page, c):            # with the GIL
        bytes_[page * PAGE : (page + 1) * PAGE] = contents[c].tobytes()
    def copy(page, c):             # NumPy, which lets the GIL go in larger copies
        np.copyto(words[page], contents[c])
    def multiply(page, c):         # an ufunc: lets the GIL go
        np.multiply(contents[c], 1, out=words[page])
    def pread(page, c):            # the kernel writes, without the GIL
        assert os.preadv(source, [bytes_[page * PAGE : (page + 1) * PAGE]], c * PAGE) == PAGE
    def recv(page, c):             # the network stack writes
        a, b = socket.socketpair()
        with a, b:
            a.sendall(contents[c].tobytes())
            view, got = bytes_[page * PAGE : (page + 1) * PAGE], 0
            while got < PAGE:
                got += b.recv_into(view[got:])

    def write(number):
        rng = random.Random(seed * 100 + number)
        mine = range(number, PAGES, WRITERS)
        last = {page: page % CONTENTS for page in mine}
        ways = [store, copy, multiply, pread, recv]
        while not stop.is_set():
            # With `rest`, half of the pages are left alone in turns: the tracker "pagemap" takes no others.
            turn = int(time.monotonic() / rest) % 2 if rest else 0
            page = rng.choice(mine[turn * len(mine) // 2 :][: len(mine) // 2] if rest else mine)
            if not (words[page] == last[page]).all():
                lost.append((page, last[page], sorted(set(words[page].tolist()))))
                return
            if rng.random() < 0.2:
                stop.wait(0.0005)
                continue
            c = rng.randrange(CONTENTS)
            rng.choice(ways)(page, c)
            last[page] = c
            written[number] += 1

    threads = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
    for t in threads: t.start()
    time.sleep(seconds)
    stop.set()
    for t in threads: t.join()
    stats = client.stats().as_dict()
    del words, bytes_
    return sum(written), lost, stats
"""


# The tracker "pagemap" takes pages that have rested between two passes, and those of the reference engine take longer.
@pytest.mark.parametrize(
    ("tracker", "rest"), [("checksum", 0), ("pagemap", 0.08 if variant.ENGINE == "native" else 0.4)]
)
def test_no_byte_is_lost_to_writers_that_hammer_merging_pages(
    serve: Callable[..., Server], capsys: pytest.CaptureFixture[str], tracker: str, rest: float
) -> None:
    server = serve(cpu_ceiling_percent=100, sleep_millisecs=0, poll_millisecs=10, smart_scan=False)
    with Worker(server.address, tracker=tracker) as one, Worker(server.address, tracker=tracker) as two:
        for number, worker in enumerate((one, two)):
            worker.send("execute", HAMMER, SECONDS, number, rest)
        results = [worker.receive() for worker in (one, two)]
        counters = server.status().counters
        with capsys.disabled():
            for written, _, stats in results:
                print(
                    f"\n  {written} writes, {counters.pages_merged} merges, {counters.pages_broken} breaks, "
                    f"{stats['windows']} windows: p99 {stats['window_p99_micros']:.0f} us, "
                    f"max {stats['window_max_micros']:.0f} us",
                    end="",
                )
        for written, lost, stats in results:
            assert lost == []
            assert written > 1000
            assert stats["windows"] > 100
            # Preemption can stretch a window, with two cores and a dozen threads; a window that hangs is another thing.
            assert stats["window_max_micros"] < 1_000_000
        assert counters.pages_merged > 300
        assert counters.pages_broken > 200
