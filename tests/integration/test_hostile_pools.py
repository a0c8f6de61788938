"""A tenant that makes pools up, for the next server to take over."""

from __future__ import annotations

import ast
import os
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pagefold_proto import pool_slots, shm_names
from pagefold_server import settings
from pagefold_server.domains.registry import Domains
from pagefold_server.engine import factory, pool_file
from pagefold_server.engine.interface import EngineOptions
from pagefold_server.tenants.tenants import Tenant
from support.hostile import ROOT, found, sources
from support.raw import PAGE
from support.tenancy import ALICE, BOB


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(("frames", "taken"), [(1 << 26, False), (1 << 12, True)])
def test_a_pool_that_is_nearly_all_hole_is_not_believed(
    planted: Callable[..., shm_names.LockedObject], frames: int, taken: bool, engine: str
) -> None:
    tag = shm_names.tag_of("here", os.geteuid(), "sparse")
    pool = planted(tag, frames * PAGE, at=(frames - 1) * PAGE)
    pool_slots.hold(pool.fd, 7)
    made, _, inherited = factory.make(engine, os.geteuid(), EngineOptions(), tag, found(os.geteuid(), tag))
    assert inherited is taken
    made.close(unlink=not taken)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_bytes_behind_the_last_whole_page_of_a_pool_are_passed_over(
    planted: Callable[..., shm_names.LockedObject], engine: str
) -> None:
    """The native engine looked for ever at data that lies behind the frames which the size makes."""
    tag = shm_names.tag_of("here", os.geteuid(), "tail")
    pool = planted(tag, 4 * PAGE + 100, data=b"tail", at=4 * PAGE + 50)
    os.pwrite(pool.fd, b"x" * PAGE, PAGE)
    pool_slots.hold(pool.fd, 7)
    code = (
        "import os, sys; from pagefold_server.engine import factory;"
        "from pagefold_server.engine.interface import EngineOptions;"
        "from pagefold_server.engine.pool_file import Orphans; orphans = Orphans(); orphans.list_names();"
        "orphan = orphans.find(os.geteuid(), sys.argv[2]);"
        "made, engine, taken = factory.make(sys.argv[1], os.geteuid(), EngineOptions(), sys.argv[2], orphan);"
        "assert taken; made.close(unlink=False)"
    )
    subprocess.run([sys.executable, "-c", code, engine, tag], check=True, timeout=30)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be two users")
def test_pools_of_another_user_hide_nobodys(planted: Callable[..., shm_names.LockedObject]) -> None:
    """Names were counted before their owners were looked at, and a tag is no secret."""
    tag = shm_names.tag_of("here", 65534, "hidden")
    for _ in range(200):
        planted(tag)
    real = planted(tag)
    os.fchown(real.fd, 65534, -1)
    for _ in range(200):
        planted(tag)
    pool_slots.hold(real.fd, 7)
    orphan = found(65534, tag)
    assert orphan is not None
    assert orphan.name == real.name
    os.close(orphan.fd)


def test_of_many_pools_with_one_tag_few_are_opened(
    planted: Callable[..., shm_names.LockedObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = shm_names.tag_of("here", os.geteuid(), "many")
    for _ in range(100):
        planted(tag)
    looked: list[str] = []
    monkeypatch.setattr(pool_file, "_claim", lambda name, uid: looked.append(name))
    assert found(os.geteuid(), tag) is None
    assert len(looked) == 64


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something is listed, or looked at by its path."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(os, name)

        def counting(*args: Any, **more: Any) -> Any:
            counted[name] += 1
            return real(*args, **more)

        monkeypatch.setattr(os, name, counting)

    for name in ("listdir", "scandir", "lstat", "stat", "open"):
        count(name)
    return counted


def test_names_that_are_planted_while_a_server_runs_are_not_looked_at_by_any_hello(
    planted: Callable[..., shm_names.LockedObject], looks: Counter[str]
) -> None:
    """200,000 of them, with a victim's tag, made its Hello take 2 s, and everybody wait for that long."""
    domains = Domains()
    uid, label = os.geteuid(), "victim"
    for _ in range(300):
        planted(shm_names.tag_of(domains.address, uid, label))
    looks.clear()
    domain = domains.get(Tenant(uid), label, settings.load({}))
    assert looks["listdir"] == looks["scandir"] == 0
    assert looks["lstat"] + looks["stat"] + looks["open"] < 20
    domains.drop(domain)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be two users")
def test_names_that_were_planted_before_a_server_began_are_looked_at_once(
    planted: Callable[..., shm_names.LockedObject], looks: Counter[str]
) -> None:
    domains, uid, label = Domains(), BOB, "victim"
    tag = shm_names.tag_of(domains.address, uid, label)
    for n in range(300):
        os.fchown(planted(tag if n % 2 else secrets.token_hex(8)).fd, ALICE, -1)
    real = planted(tag)
    os.fchown(real.fd, BOB, -1)
    pool_slots.hold(real.fd, 7)
    looks.clear()
    domains.orphans.list_names()
    assert looks["scandir"] + looks["listdir"] == 1
    looks.clear()
    for again in (label, "another", "a third"):
        domain = domains.get(Tenant(uid), again, settings.load({}))
        assert domain.awaiting_resume is (again == label)
        domains.drop(domain)
    assert looks["listdir"] == looks["scandir"] == 0
    assert looks["lstat"] + looks["stat"] + looks["open"] < 60


def test_a_user_with_very_many_pools_takes_little_of_the_servers_memory(
    planted: Callable[..., shm_names.LockedObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_file, "_LISTED", 10)
    for _ in range(50):
        planted(secrets.token_hex(8))
    orphans = pool_file.Orphans()
    orphans.list_names()
    assert sum(map(len, orphans._names.values())) == 10


def test_a_pool_that_is_left_while_clients_map_it_is_found_again_by_the_same_server(
    planted: Callable[..., shm_names.LockedObject],
) -> None:
    domains, uid = Domains(), os.geteuid()
    pool = planted(shm_names.tag_of(domains.address, uid, "again"))
    pool_slots.hold(pool.fd, 7)
    domains.orphans.list_names()
    for _ in range(3):
        domain = domains.get(Tenant(uid), "again", settings.load({}))
        assert domain.awaiting_resume
        assert domain.pool.name == pool.name
        domains.drop(domain)


def test_nobody_lists_shared_memory_where_others_wait_for_it() -> None:
    """Anybody may have as many names there as he likes. Who lists them says here why nobody waits for that."""
    known = {
        ("pool_file.py", "list_names"): "once, in a thread, before the first call is answered",
        ("inventory.py", "entries"): "in a thread",
        ("sweep.py", "_steps"): "a millisecond at a time; and at the end, when nobody is served any more",
        ("addresses.py", "default_address"): "by the program that connects, where somebody has taken its directory",
        ("processes.py", "pids"): "/proc, in a thread",
        ("checks.py", "_removes"): "/etc, by doctor",
    }
    told = set()
    for path in sources():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.unparse(function)
                if any(listing in words for listing in ("listdir(", "scandir(", "os.walk(", "iterdir(", "glob(")):
                    told.add((path.name, function.name))
    assert told == known.keys()
    calls = re.compile(r"(?<!def )\b(entries|lock_takers|pids|orphans\.list_names)\(\)")
    assert not [path.name for path in (ROOT / "server").rglob("*.py") if calls.search(path.read_text())]
