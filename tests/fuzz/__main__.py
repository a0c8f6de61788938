"""`python -m fuzz`: a campaign. See docs/fuzz.md.

Exit codes: 0 nothing was lost, nothing is left and no fault was found, 1 otherwise.
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

from fuzz.calls import COSTLY


def main() -> int:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(env("FUZZ_MINUTES") or 1))
    parser.add_argument("--rounds", type=int, default=0, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=int(env("FUZZ_SEED") or random.randrange(1 << 32)))
    parser.add_argument("--without", default="", help=f"left out, with commas between: {', '.join(COSTLY)}")
    parser.add_argument("--json", action="store_true", help="the report as JSON, on standard output")
    asked = parser.parse_args()
    without = tuple(filter(None, asked.without.split(",")))
    if wrong := set(without) - set(COSTLY):
        parser.error(f"--without {', '.join(sorted(wrong))}: known are {', '.join(COSTLY)}")
    if not own_shm():  # before anything is mapped
        parser.error("fuzzers are users without rights: run it as root")
    from fuzz.campaign import Campaign

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory(prefix="pagefold-fuzz-") as directory:
        report = Campaign(Path(directory), asked.seed, say, without).run(asked.minutes * 60, asked.rounds)
    if asked.json:
        print(json.dumps(report.as_dict()))
        return 0 if report.passed else 1
    print(report)
    print(f"calls: {dict(report.kinds.most_common())}")
    print(f"answers: {dict(report.answers.most_common())}")
    print(f"slowest call of a fuzzer: {report.longest_call_was}")
    for at, took in report.slow[:20]:
        print(f"status took {took} s, {at} s after the start")
    for title, texts in (("lost", report.losses), ("left", report.leaks), ("wrong", report.faults)):
        print(f"{title}: {len(texts) or 'nothing'}")
        for text in texts:
            print(f"  {text}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
