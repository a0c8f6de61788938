"""What is written is true: README blocks and docstrings run, links lead somewhere, made pages are fresh."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pagefold
import pytest
from pagefold.cli.app import app
from pagefold.testing import embedded_server
from support.server import Server
from support.waiting import until
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CLIENT = ROOT / "client" / "pagefold"
MODULES = sorted(
    ".".join(path.relative_to(CLIENT.parent).with_suffix("").parts)
    for path in CLIENT.rglob("[_a-z]*.py")
    if "cli" not in path.parts and not path.stem.startswith("__")
)
MODULES += ["pagefold.testing"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


@pytest.fixture
def private_address(tmp_path: Path) -> Iterator[str]:
    """An address at which a program may start a server of its own; that is ended."""
    tmp_path.chmod(0o700)
    yield f"unix:{tmp_path}/server.sock"
    pid_file = tmp_path / "server.pid"
    if pid_file.exists():
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        until(lambda: not pid_file.exists(), what="the server's end")


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("no_names")
def test_the_readmes_program_does_what_its_comments_say(private_address: str) -> None:
    programs = blocks(ROOT / "README.md", "python")
    assert len(programs) == 1
    env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", programs[0]],
        env=env | {"PAGEFOLD_ADDRESS": private_address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    promised = re.findall(r"print\(.*#\s*(\S+)$", programs[0], re.MULTILINE)
    assert ended.stdout.split() == promised


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_of_the_library_run(name: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEFOLD_ADDRESS", server.address)
    module = importlib.import_module(name)
    with pagefold.connect() as client:
        given = {**vars(module), "client": client, "pagefold": pagefold}
        for case in doctest.DocTestFinder(exclude_empty=True).find(module, name, globs=given):
            assert doctest.DocTestRunner(verbose=False).run(case).failed == 0, case.name


def test_pages_made_from_sources_are_fresh() -> None:
    words = [sys.executable, ROOT / "tools" / "make_docs.py", "--check"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


# The design also names what is yet to come.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "design.md"], ids=lambda page: page.name)
def test_commands_that_pages_name_exist(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    text = page.read_text()
    shown = "\n".join([*blocks(page, ""), *(f"{code}\n" for code in re.findall(r"`([^`\n]+)`", text))])
    for name, rest in re.findall(r"^(?:\$ )?pagefold ([a-z]+)(?: ([a-z|]+))?", shown, re.MULTILINE):
        assert name in commands, name
        below = getattr(commands[name], "commands", None)
        if below is not None and rest:
            assert set(rest.split("|")) <= set(below), rest
    for target in re.findall(r"^(?:[A-Z]+=\S+ )?make ([a-z-]+)", shown, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_the_configuration_file_that_is_shown_is_accepted(tmp_path: Path) -> None:
    (toml,) = blocks(ROOT / "docs" / "configuration.md", "toml")
    settings = tomllib.loads(toml)
    with embedded_server(**{k: v for k, v in settings.items() if k != "log_format"}) as address:
        assert address.startswith("unix:")


def test_changelog_has_the_version_or_unreleased() -> None:
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] in ("Unreleased", pagefold.__version__)
