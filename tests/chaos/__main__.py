"""`python -m chaos`: a campaign. See docs/chaos.md.

Exit codes: 0 nothing was lost and nothing is left, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from support.namespace import own_shm


def main() -> int:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=int(env("CHAOS_ROUNDS") or 100), help="kills (CHAOS_ROUNDS)")
    parser.add_argument("--minutes", type=float, default=float(env("CHAOS_MINUTES") or 0), help="at most; 0: no limit")
    parser.add_argument("--seed", type=int, default=int(env("CHAOS_SEED") or random.randrange(1 << 32)))
    parser.add_argument("--json", action="store_true", help="the report as JSON, on standard output")
    asked = parser.parse_args()
    own_shm()  # before anything is mapped
    from chaos.campaign import Campaign

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory(prefix="pagefold-chaos-") as directory:
        report = Campaign(Path(directory), asked.seed, say).run(asked.rounds, asked.minutes)
    told = report.as_dict()
    if asked.json:
        print(json.dumps(told))
        return 0 if report.passed else 1
    print(f"{report.rounds} rounds in {report.seconds} s; {told['kinds']}; {report.not_reached} not at their point")
    for name, count in told["kills"].items():
        print(f"  {count:4}  {name}")
    print(f"{report.written >> 20} MiB written, {report.verified >> 20} MiB verified, {report.reconnected} reconnected")
    print(f"{report.audits} audits, {report.audits_partial} of them could not look everywhere")
    for title, texts in (("lost", report.losses), ("leaked", report.leaks), ("wrong", report.faults)):
        print(f"{title}: {len(texts) or 'nothing'}")
        for text in texts:
            print(f"  {text}")
    print(f"again: CHAOS_SEED={report.seed} CHAOS_ROUNDS={report.rounds} make chaos")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
