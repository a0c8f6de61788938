"""What most tests of engines begin with: each runs on both, but for those that reach into the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.engine_cases import ENGINES, ReferenceWorld, World


@pytest.fixture(params=ENGINES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.close()


@pytest.fixture
def reference_world() -> Iterator[ReferenceWorld]:
    made = ReferenceWorld()
    yield made
    made.close()
