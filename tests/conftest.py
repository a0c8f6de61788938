"""Fixtures of all tests: features by name, a server, workers, and no name left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support import kernel
from support.namespace import own_shm
from support.server import Server
from support.worker import Worker

# A state machine over real processes has no use for a deadline a step, and a machine with two cores is slow at times.
settings.register_profile("pagefold", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pagefold")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is mapped: figures of /dev/shm are of these tests alone, where that can be had."""
    own_shm()


def _has(feature: str) -> bool:
    from pagefold_core import probe

    features = probe()
    return {
        "uffd": lambda: features.userfaultfd == "full" and features.wp_shmem,
        "user-uffd": lambda: features.userfaultfd != "none" and features.wp_shmem,
        "pagemap_scan": lambda: features.pagemap_scan,
        "wp_async": lambda: features.wp_async and features.pagemap_scan,
        "root": lambda: os.geteuid() == 0,
        "ksm": lambda: Path("/sys/kernel/mm/ksm/run").exists(),
    }[feature]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for feature in marker.args:
            if not _has(feature):
                pytest.skip(f"this kernel or this user has no {feature}")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a name in /dev/shm."""
    before = kernel.names()
    yield
    assert kernel.names() - before == set()


@pytest.fixture
def no_names() -> Iterator[None]:
    """This test leaves none, and says so itself."""
    before = kernel.names()
    yield
    assert kernel.names() - before == set()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers; ends them after the test."""
    started: list[Server] = []

    def start(**options: Any) -> Server:
        server = Server(tmp_path / f"server{len(started)}", **options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture
def work(server: Server) -> Iterator[Callable[..., Worker]]:
    """Starts workers that are clients of `server`; ends them after the test."""
    started: list[Worker] = []

    def start(**options: Any) -> Worker:
        worker = Worker(options.pop("address", server.address), **options)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.close()
