"""Numbers that both engines have by themselves, for no .proto has them: states of pages, and faults of frames."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path

from pagefold_server.engine import states
from pagefold_server.engine.interface import FrameFault

RUST = Path(__file__).parents[2] / "native/src/engine"
NO_STATES = {"STATES", "ZERO_FRAME", "NO_FRAME"}


def native(enum: str, member: str) -> dict[str, int]:
    """The members of an enum in the engine's Rust sources: names as in Python, and numbers."""
    texts = (path.read_text() for path in RUST.rglob("*.rs"))
    bodies = [body for text in texts for body in re.findall(rf"^pub enum {enum} {{\n(.*?)^}}", text, re.M | re.S)]
    (body,) = (body for body in bodies if re.search(rf"\b{member}\b", body))
    numbers = re.findall(r"^    (\w+) = (\d+),$", body, re.M)
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper(): int(number) for name, number in numbers}


def named(enum: type[IntEnum]) -> dict[str, int]:
    return {member.name: member.value for member in enum}


def test_states_of_pages_have_the_same_numbers_in_both_engines() -> None:
    python = {name: value for name, value in vars(states).items() if name.isupper() and isinstance(value, int)}
    python = {name: value for name, value in python.items() if name not in NO_STATES}
    assert native("State", "OverBudget") == python
    assert sorted(python.values()) == list(range(states.STATES))


def test_faults_of_frames_have_the_same_numbers_in_both_engines() -> None:
    assert native("Fault", "Unlisted") == named(FrameFault)
