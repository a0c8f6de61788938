"""Writers that never rest: hot pages are left alone, cold ones beside them are merged, and no byte is lost.

    python examples/churn.py --workers 2 --mib 16 --seconds 5

Half of each worker's memory is cold and the same in all workers, the other half is written all the time: round and
round, with a number that grows. After each round a worker compares what it reads with what it wrote. Exits 1 if a
byte was lost, if the cold half was not merged, or if the hot half was merged more than now and then.
"""

import argparse
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import numpy as np
import pagefold
from pagefold.cli.admin import Admin
from pagefold.testing import embedded_server

PAGE_WORDS = 512


def work(address: str, mib: int, seconds: float, parent: Connection) -> None:
    """A worker: writes and compares until its time is up."""
    half = mib * (1 << 20) // 16
    cold = np.random.default_rng(7).integers(0, 1 << 62, half, dtype="u8")
    with pagefold.connect(address, autostart=False) as client:
        memory = client.empty(2 * half, "u8")
        memory[:half] = cold
        hot = memory[half:]
        lost = rounds = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            rounds += 1
            hot[:] = rounds  # the same in every page, and in every worker at some time: as mergeable as can be
            lost += int(np.count_nonzero(hot != rounds)) * 8
        lost += int(np.count_nonzero(memory[:half] != cold)) * 8
        parent.send((rounds, rounds * half // PAGE_WORDS, lost, client.stats()))
        parent.recv()


def main() -> int:
    """Runs the workers and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mib", type=int, default=16, help="memory of each worker, half of it hot")
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with embedded_server(cpu_ceiling_percent=100, sleep_millisecs=0) as address, Admin(address) as admin:
        pipes, processes = [], []
        for _ in range(args.workers):
            ours, theirs = spawn.Pipe()
            processes.append(spawn.Process(target=work, args=(address, args.mib, args.seconds, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        results = [pipe.recv() for pipe in pipes]
        counters = admin.status().counters
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
    written = sum(pages for _, pages, _, _ in results)
    lost = sum(bytes_lost for _, _, bytes_lost, _ in results)
    merged = sum(stats.merged_bytes for *_, stats in results) / (1 << 20)
    cold = args.workers * args.mib / 2
    longest = max(stats.window_max_micros for *_, stats in results)
    print(f"{args.workers} workers x {args.mib} MiB, half of it written all the time for {args.seconds:g} s")
    print(f"page writes              {written:12,}")
    print(f"merged pages written     {counters.pages_broken:12,}")
    print(f"merged                   {merged:12.1f} MiB, {cold:g} MiB of it cold")
    print(f"writes were held for     {longest:12.0f} us at most")
    print(f"bytes lost               {lost:12,}")
    return 0 if lost == 0 and merged >= 0.95 * cold and counters.pages_broken <= 0.05 * written else 1


if __name__ == "__main__":
    sys.exit(main())
