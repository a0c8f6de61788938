"""`pagefold fsck` as scripts and people see it: texts, JSON, and exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pagefold_proto import shm_names
from pagefold_proto.v1 import admin_pb2 as pb
from support.audit import word
from support.raw import Raw, noise
from support.server import Server
from support.worker import PAGE, Worker

pytestmark = pytest.mark.usefixtures("no_names")

CLI = [sys.executable, "-m", "pagefold.cli", "fsck"]
Work = Callable[..., Worker]


def run(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")} | {"PAGEFOLD_ADDRESS": address}
    ended = subprocess.run([*CLI, *words], env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ended.stderr
    return ended


def told(address: str, code: int, *words: str) -> Any:
    ended = run(address, "--json", *words)
    assert ended.returncode == code, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.needs("uffd")
def test_a_clean_system_is_0(server: Server, work: Work) -> None:
    workers = [work(), work()]
    for worker in workers:
        worker.call("allocate", "a", 64 * PAGE)
        worker.call("fill_pages", "a", [*range(32), *range(32)])
    workers[0].call("settle")
    found = told(server.address, 0, "--thorough", "--names")
    assert (found["clean"], found["findings"], found["tallies"]) == (True, [], [])
    assert (found["clients"], found["references"], found["frames"]) == (2, 128, 31)
    assert sum(f"pid {workers[0].pid}" in holder for holder in found["names_held"].values()) == 3
    text = run(server.address).stdout
    assert "128 references" in text
    assert text.rstrip().endswith("clean")


def test_a_difference_is_1(server: Server) -> None:
    server.status()  # answers after the sweep with which it begins
    made = shm_names.create_locked(shm_names.LEASE, 0o600, 0)
    os.close(made.fd)
    try:
        found = told(server.address, 1)
        assert not found["clean"]
        (finding,) = found["findings"]
        assert (finding["name"], finding["count"]) == (made.name, 1)
        ended = run(server.address, "--names")
        assert ended.returncode == 1
        assert f"garbage: {made.name}" in ended.stdout
        assert "different: 1 garbage" in ended.stdout
    finally:
        shm_names.remove(made.name)


def test_what_could_not_be_looked_at_is_2(server: Server) -> None:
    with Raw(server.address) as raw:
        raw.hello()
        raw.give(noise(1))
        (finding,) = told(server.address, 2)["findings"]
        assert "cannot be read" in finding["text"]
        ended = run(server.address)
        assert ended.returncode == 2
        assert "could not look: 1 unreadable" in ended.stdout


def test_no_server_is_3_and_a_wrong_option_is_2(server: Server) -> None:
    assert run(f"unix:{server.directory}/nobody.sock").returncode == 3
    assert run(server.address, "--patience", "0").returncode == 2


def test_progress_is_shown_on_a_terminal(server: Server) -> None:
    screen, terminal = pty.openpty()
    env = os.environ | {"PAGEFOLD_ADDRESS": server.address, "TERM": "xterm"}
    with subprocess.Popen(CLI, env=env, stdout=subprocess.PIPE, stderr=terminal, text=True) as running:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # EIO: the other end is closed
                break
            shown += piece
        assert running.stdout is not None
        assert running.stdout.read().rstrip().endswith("clean")
    os.close(screen)
    assert b"looking at" in shown
    assert running.returncode == 0


def test_every_kind_has_a_place_in_the_documentation() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    with open(os.path.join(root, "docs", "fsck.md")) as page:
        text = page.read()
    for kind in pb.FindingKind.values():
        if kind:
            assert f"| {word(kind).lower().replace('_', ' ')} |" in text
