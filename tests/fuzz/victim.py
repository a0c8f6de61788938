"""`python -m fuzz.victim ADDRESS SEED UID`: a program that uses pagefold as it should, and compares every byte.

It writes, settles, changes and verifies all the time, with the writer that campaigns of `make chaos` use, which keeps a
model of its memory in ordinary memory. Victims of the same seed hold the same bytes, so their pages are merged.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

import pagefold
from chaos.load import Writer
from support import identity

_STEPS = 40
"""Between two settles; then everything is verified, once merged and once written again."""


def tell(writer: Writer, **more: Any) -> None:
    told = {"written": writer.written, "verified": writer.verified, "lost": writer.lost, "pid": os.getpid()}
    print(json.dumps(told | more), flush=True)


def main() -> int:
    address, seed, uid = sys.argv[1:]
    identity.become(int(uid))
    most = rounds = 0
    with pagefold.connect(address, autostart=False) as client:
        writer = Writer(client, seed)
        ended = False
        while not ended and not writer.lost:
            for _ in range(_STEPS):
                writer.step()
            writer.verify()
            client.settle(timeout=1)
            stats = client.stats()
            most = max(most, stats.merged_bytes)
            writer.verify()
            rounds += 1
            tell(writer, rounds=rounds, most_merged=most, connected=stats.connected, trouble=stats.trouble)
            ended = bool(select.select([sys.stdin], [], [], 0)[0])
        writer.close()
    return 1 if writer.lost else 0


if __name__ == "__main__":
    sys.exit(main())
