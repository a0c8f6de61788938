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
from dataclasses import dataclass
from pathlib import Path

import pagefold
import pytest
from pagefold.cli.app import app
from pagefold.testing import embedded_server
from support.server import Server
from support.waiting import until
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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


@dataclass(frozen=True)
class Link:
    """`[text](target#anchor)`, or `[text][label]` and `[text]` with the target at the foot of the page."""

    text: str
    path: Path
    anchor: str


def links(page: Path) -> list[Link]:
    """Of a page, those to files of this repository. A label without a target is an error."""
    text = BLOCK.sub("", page.read_text())
    at_foot = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
    text = re.sub(r"^\[[^\]]+\]: \S+$", "", text, flags=re.MULTILINE)
    found = re.findall(r"\[([^\[\]]+)\]\(([^)\s]+)\)", text)
    labelled = re.findall(r"\[([^\[\]]+)\]\[([^\[\]]+)\]", text)
    found += [(shown, at_foot[label]) for shown, label in labelled]
    found += [
        (label, at_foot[label]) for label in re.findall(r"(?<!\])\[([^\[\]]+)\](?![\[(])", text) if label in at_foot
    ]
    unused = at_foot.keys() - {label for _, label in labelled} - {shown for shown, _ in found}
    assert not unused, f"{page.name}: at the foot and nowhere else"
    here = [(shown, target.partition("#")) for shown, target in found if not target.startswith("http")]
    return [Link(shown, (page.parent / path).resolve() if path else page, anchor) for shown, (path, _, anchor) in here]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub makes it."""
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


DEFINED = {
    ".py": r"^\s*(?:(?:async )?def|class) {0}\b|^\s*{0}(?:: [^=\n]+)? = ",
    ".pyi": r"^\s*(?:def|class) {0}\b|^\s*{0}:",
    ".rs": r"\b(?:fn|struct|enum|trait|type|const|static|mod) {0}\b",
    ".proto": r"\b(?:rpc|message|enum|service) {0}\b",
}


def defines(path: Path, name: str) -> bool:
    return re.search(DEFINED[path.suffix].format(name), path.read_text(), re.MULTILINE) is not None


def elsewhere(file: Path, name: str = "") -> str:
    """Where a file that was moved is now, or which files define a name."""
    roots = [ROOT / root for root in ("client", "server", "protos", "native/src", "native/python", "tests", "docs")]
    found = (path for root in roots for path in root.rglob(f"*{file.suffix}" if name else file.name) if path.is_file())
    places = [os.path.relpath(path, ROOT) for path in found if not name or defines(path, name)]
    return f" (found in {', '.join(places)})" if places else ""


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    """To files, to headings, and to what the text names in a source file: [`Window`](window.rs)."""
    wrong = []
    for link in links(page):
        where = f"[{link.text}] -> {os.path.relpath(link.path, ROOT)}"
        code = re.fullmatch(r"`([A-Za-z_.]+)(?:\(\))?`", link.text) if link.path.suffix in DEFINED else None
        names = code[1].split(".") if code else []
        if not link.path.exists():
            wrong.append(f"{where}: is not there{elsewhere(link.path, *names[-1:])}")
        elif link.anchor and link.anchor not in anchors(link.path):
            wrong.append(f"{where}#{link.anchor}: no such heading")
        else:
            names = [name for name in names if not defines(link.path, name)]
            wrong += [f"{where}: does not define {name}{elsewhere(link.path, name)}" for name in names]
    assert not wrong, "\n".join(wrong)


def test_every_invariant_is_held_by_the_tests_that_its_line_names() -> None:
    page = ROOT / "docs" / "design" / "invariants.md"
    files = {link.text: link.path for link in links(page)}
    rows = re.findall(r"^\| (I\d) \|.*\| ([^|]+) \|$", page.read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [f"I{number}" for number in range(1, 9)]
    for number, cell in rows:
        named = [re.findall(r"`(\w+_)\*`|\[(\w+\.\w+)\]", part) for part in cell.split(";")]
        assert any(prefix for part in named for prefix, _ in part), f"{number}: no test is named after it"
        for part in named:
            prefixes = [prefix for prefix, _ in part if prefix]
            for name in [name for _, name in part if name]:
                source = files[name].read_text()
                assert all(re.search(rf"(?:def|fn) {prefix}", source) for prefix in prefixes), f"{number}: {name}"


def test_every_design_page_opens_with_a_picture_and_what_it_answers() -> None:
    for page in (ROOT / "docs" / "design").glob("*.md"):
        opening = page.read_text().split("\n## ")[0]
        assert re.match(r"# .+\n\n(?:```\n| {4})", opening), page.name
        assert "This page answers: " in opening, page.name
        assert f"design/{page.name}" in (ROOT / "docs" / "index.md").read_text(), f"{page.name} is not in the index"


def test_the_architecture_says_of_every_folder_what_is_decided_there() -> None:
    told = {link.path for link in links(ROOT / "docs" / "architecture.md")}
    roots = [
        ROOT / name for name in ("client/pagefold", "server/pagefold_server", "protos/pagefold_proto", "native/src")
    ]
    folders = {path.parent for root in roots for path in root.rglob("*") if path.suffix in (".py", ".rs", ".proto")}
    folders = {folder for folder in folders if folder.name not in ("tests", "__pycache__")}
    assert {str(folder.relative_to(ROOT)) for folder in folders - told} == set()


@by_page
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
