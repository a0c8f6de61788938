"""A slice of `make fuzz`: a tenant says anything, and its neighbours read what they wrote. docs/fuzz.md."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from fuzz.calls import Script
from fuzz.campaign import CALLS, Campaign

pytestmark = [pytest.mark.needs("uffd", "root")]  # root: fuzzer and victims are users of their own

SECONDS = 12
SEED = 20
HANGS = 5.0
"""Seconds after which a status call counts as hanging. How fast it is, no test asserts; `make fuzz` reports it."""


def test_I7_a_tenant_says_anything_and_its_neighbours_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Campaign(tmp_path, SEED).run(SECONDS)
    with capsys.disabled():
        print(f"\n  {report}")
    assert report.losses == []
    assert report.leaks == []
    assert report.faults == []
    assert report.longest < HANGS, report.slow
    assert report.verified > report.written > 0
    assert report.most_merged > 0, "nothing was merged: that nothing was lost says nothing"
    assert report.rounds >= 2
    assert report.killed >= 1
    assert report.answers["exchange OK"] > 0
    assert report.answers["exchange PROTOCOL_VIOLATION"] > 0
    said = hashlib.blake2b(digest_size=8)
    for call in itertools.islice(Script(f"{SEED}/2"), CALLS):
        said.update(repr(call).encode())
    assert report.digests[0] == said.hexdigest(), "the calls were not those of the seed"
