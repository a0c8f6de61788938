"""Workers that start from the same lookup table and edit a little of it: each pays for its edits, and no more.

    python examples/lookup_tables.py --workers 4 --mib 32

A table of floats is loaded by every worker, merged, and edited: worker n sets some rows to values of its own. Every
worker then compares all of its table with what it must be. Exits 1 if a row is wrong or memory was not saved.
"""

import argparse
import multiprocessing
import sys
from multiprocessing.connection import Connection

import numpy as np
import pagefold
from pagefold.testing import embedded_server

COLUMNS = 256


def base_table(mib: int) -> np.ndarray:
    """What all workers load: in real life, from a file."""
    rows = mib * (1 << 20) // (8 * COLUMNS)
    return np.random.default_rng(20).random((rows, COLUMNS))


def edited_rows(worker: int, rows: int, edits: int) -> np.ndarray:
    """Which rows a worker makes its own: others than anybody else's."""
    return np.random.default_rng([21, worker]).choice(rows, edits, replace=False)


def work(address: str, worker: int, mib: int, edits: int, parent: Connection) -> None:
    """A worker: loads, waits, edits, checks."""
    with pagefold.connect(address, autostart=False) as client:
        table = client.array(base_table(mib))
        parent.send("loaded")
        parent.recv()
        mine = edited_rows(worker, len(table), edits)
        table[mine] = worker + 0.5  # the kernel copies these pages, and no others
        expected = base_table(mib)
        expected[mine] = worker + 0.5
        report = client.settle(timeout=60)  # reports what was written, too
        parent.send((report.settled, bool(np.array_equal(table, expected))))
        parent.recv()  # hold on to the table until all have been counted


def main() -> int:
    """Runs the workers and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mib", type=int, default=32, help="size of the table")
    parser.add_argument("--edits", type=int, default=200, help="rows that each worker sets")
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with embedded_server(cpu_ceiling_percent=100) as address, pagefold.connect(address) as watcher:
        pipes, processes = [], []
        for number in range(args.workers):
            ours, theirs = spawn.Pipe()
            job = (address, number, args.mib, args.edits, theirs)
            processes.append(spawn.Process(target=work, args=job, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        merged = watcher.settle(timeout=60)
        for pipe in pipes:
            pipe.send("edit")
        results = [pipe.recv() for pipe in pipes]
        edited = watcher.settle(timeout=60)
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
    mib = 1 << 20
    possible = (args.workers - 1) * args.mib
    print(f"{args.workers} workers x {args.mib} MiB, {args.edits} rows edited by each")
    print(f"saved before the edits   {merged.saved_bytes / mib:8.1f} MiB of {possible} possible")
    print(f"saved after the edits    {edited.saved_bytes / mib:8.1f} MiB")
    print(f"tables right             {sum(right for _, right in results)} of {args.workers}")
    saved = merged.settled and merged.saved_bytes >= 0.95 * possible * mib
    return 0 if saved and all(settled and right for settled, right in results) else 1


if __name__ == "__main__":
    sys.exit(main())
