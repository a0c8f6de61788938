"""Numbers of the protocol that native code and Python must agree on, by their names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pagefold_proto.v1 import memory_pb2 as pb

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native" / "src"


def numbers(file: str, enum: str) -> dict[str, int]:
    """The variants of a Rust enum, in capitals, and their numbers."""
    text = (NATIVE / file).read_text()
    body = re.search(rf"^pub enum {enum} {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
    assert body is not None, f"{file} has no enum {enum}"
    found = re.findall(r"^    (\w+) = (\d+),", body[1], re.MULTILINE)
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper(): int(number) for name, number in found}


def test_the_protocols_are_made_from_the_proto():
    made = subprocess.run([sys.executable, ROOT / "tools" / "make_wire.py", "--check"], check=False)
    assert made.returncode == 0
    kinds = {name.removeprefix("EVENT_KIND_"): number for name, number in pb.EventKind.items() if number > 0}
    reasons = {name.removeprefix("DECLINE_REASON_"): number for name, number in pb.DeclineReason.items() if number > 0}
    assert numbers("wire/numbers.rs", "EventKind") == kinds
    assert numbers("wire/numbers.rs", "DeclineReason") == reasons
