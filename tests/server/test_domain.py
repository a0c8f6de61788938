"""A domain's own objects: what it takes, and that nothing of it is left when it is closed."""

from __future__ import annotations

import contextlib
import os

import pytest
from pagefold_proto.v1 import memory_pb2
from pagefold_server import settings
from pagefold_server.domains.registry import Domains
from pagefold_server.tenants.tenants import Tenant


def descriptors_of(name: str) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if name[1:] in path]


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_closed_domain_has_no_descriptor_open_whoever_still_refers_to_it(engine: str, no_names: None) -> None:
    """Its pool stayed open, and so in memory, until the garbage collector came by."""
    domains = Domains()
    domain = domains.get(Tenant(os.geteuid()), "here", settings.load({"engine": engine}))
    assert descriptors_of(domain.pool.name)
    domains.drop(domain)
    assert descriptors_of(domain.pool.name) == []
    domain.close()


def test_an_engine_that_has_failed_stands_in_nobodys_way(no_names: None) -> None:
    """It refuses every call: those that waited were not told, and the rounds of the server ended at its domain."""
    domains, told = Domains(), list[memory_pb2.SettleReport]()
    domain = domains.get(Tenant(os.geteuid()), "here", settings.load({}))
    domain.settle("somebody", 1, told.append)
    engine = domain.engine
    with pytest.MonkeyPatch.context() as patch:
        for name in ("counters", "queued", "merged_pages", "left"):
            patch.setattr(engine, name, lambda *_: pytest.fail("it has failed"))
        domain.fail(RuntimeError("of a test"))
        domain.ring()
    assert [report.settled for report in told] == [False]
    assert [obstacle.kind for obstacle in told[0].obstacles] == [memory_pb2.OBSTACLE_KIND_FAULT]
    domain.close()
