"""Programs out of threads, of another user than they were, forked by C code, or on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pagefold
import pytest

pytestmark = pytest.mark.usefixtures("no_names")

USER = 62000 + os.getpid() % 10000
"""A user of this test process's own, whose processes nobody else counts."""


def run(code: str, *args: str, timeout: float = 120, **more: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEFOLD_", "GRPC_"))} | more
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        cwd=Path(__file__).parents[1],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.needs("root")
@pytest.mark.parametrize("dumpable", [False, True])
def test_a_process_that_changed_its_user_is_told_what_opens_its_pages(dumpable: bool) -> None:
    """gunicorn --user: the tracker said that it takes Linux 6.7, the barrier "permission denied"."""
    told = run(
        """
import ctypes, os, sys
import pagefold
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(sys.argv[2]), 0, 0, 0)
for asked in ({"barrier": "user"}, {"barrier": "user", "tracker": "pagemap"}):
    try:
        pagefold.connect("unix:/nowhere/server.sock", autostart=False, **asked)
    except pagefold.PagefoldError as error:
        print(type(error).__name__, error)
from pagefold.cli.checks import own_pages
print([check.state for check in own_pages()])
""",
        str(USER),
        str(int(dumpable)),
    ).splitlines()
    if dumpable:
        assert not [line for line in told if "PR_SET_DUMPABLE" in line]
        assert told[-1] == "[]"
        return
    assert [line.split(" ")[0] for line in told[:2]] == ["BarrierUnavailable", "TrackerUnavailable"]
    for line in told[:2]:
        assert "prctl(PR_SET_DUMPABLE, 1)" in line
        assert "ambient" in line
    assert told[2] == "['fail']"


def test_under_uwsgi_a_child_is_told_which_option_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from pagefold import _fork

    monkeypatch.setattr(_fork, "_past_hooks", True)
    assert "os.fork()" in _fork.why_not_attach()
    monkeypatch.setitem(sys.modules, "uwsgi", pagefold)
    assert "py-call-uwsgi-fork-hooks" in _fork.why_not_attach()
