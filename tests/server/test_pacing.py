"""Pacing's arithmetic: what keeps a ceiling, and what is reported of it."""

from __future__ import annotations

import pytest
from pagefold_server.tenants.throttle import CpuMeter, Throttle


@pytest.mark.parametrize(("percent", "pause"), [(10, 0.9), (50, 0.1), (100, 0)])
def test_pauses_keep_the_ceiling(percent: float, pause: float) -> None:
    throttle = Throttle()
    throttle.spent(0.1, percent, now=5.0, least=0)
    assert throttle.free_at == pytest.approx(5 + pause)


def test_a_pause_is_never_shorter_than_asked_for() -> None:
    throttle = Throttle()
    throttle.spent(0.001, 50, now=5.0, least=0.02)
    assert throttle.free_at == pytest.approx(5.02)


def test_the_meter_forgets() -> None:
    meter = CpuMeter(now=0)
    for second in range(1, 11):
        meter.add(0.25, now=second)
    assert meter.percent(10.0) == pytest.approx(30, abs=5.1)
    assert meter.percent(12.5) == pytest.approx(15, abs=5.1)
    assert meter.percent(100) == 0


def test_the_meter_of_a_server_that_has_just_started() -> None:
    meter = CpuMeter(now=0)
    meter.add(0.1, now=1)
    assert meter.percent(1) == pytest.approx(10)
