"""Exceptions at every step, and signals for long: what tests/integration/test_interrupts.py samples."""

from __future__ import annotations

import os

import pytest
from integration.test_interrupts import STORM, strike_all
from support.programs import finish, start
from support.server import Server
from support.strikes import CALLS, IN_CHILDREN

pytestmark = [pytest.mark.stress, pytest.mark.needs("uffd")]

MINUTES = float(os.environ.get("PAGEFOLD_STRESS_MINUTES", "3"))


@pytest.mark.parametrize("call", [*CALLS, *IN_CHILDREN])
def test_an_exception_at_every_step(server: Server, call: str) -> None:
    strike_all(server, call, 1, timeout=3000)


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_signals_for_long(server: Server, seed: int) -> None:
    seconds = MINUTES * 15
    finish(start(server, STORM, str(seconds), str(100 + seed)), timeout=2 * seconds + 120)
