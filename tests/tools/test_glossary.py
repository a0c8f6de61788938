"""One idea, one word: a class or module named by a word of docs/glossary.md is one that the word's line names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
SOURCES = ("client/pagefold", "server/pagefold_server", "protos/pagefold_proto", "native/src")

MIRRORS = {
    "native/src/py": "what Python sees of the native type of that name",
    "server/pagefold_server/engine/reference": "the reference engine: the same nouns, to be read beside the native one",
}

EXCEPTIONS = {
    # Other uses of a word, to be renamed. `file: name`, so that a move is no change.
    "adopt.rs: Window": "what one window of an adopt came to",
    "survey.py: View": "a view as an audit sees it in another process",
    "session.py: State": "whether a session is open, excluded or over",
    "event.rs": "a futex that threads wait for",
    "event.rs: Event": "a futex that threads wait for",
    "forklock.rs: Books": "of a test of the lock",
    "stable.rs: Twins": "frames with the same bytes",
    # Another word that is spelled the same, and cannot be taken for it where it is.
    "sched.rs: Slice": "a time slice, as the kernel gives it",
    "display.py: Silent": "a demo that shows nothing",
    "pages.py": "the part of an audit that goes by pages",
}


@dataclass
class Line:
    """One word: where it lives, and the classes that the line names."""

    word: str
    files: set[str] = field(default_factory=set)
    names: set[tuple[str, str]] = field(default_factory=set)


def glossary() -> list[Line]:
    text = GLOSSARY.read_text()
    at_foot = dict(re.findall(r"^\[([^\]]+)\]: \.\./(\S+)$", text, re.MULTILINE))
    lines = []
    for word, homes in re.findall(r"^\| ([^|]+) \| [^|]+ \|([^|]*)\|$", text, re.MULTILINE):
        line = Line(word)
        for shown, label in re.findall(r"\[([^\]]+)\](?:\[([^\]]+)\])?", homes):
            path = at_foot[label or shown]
            line.files.add(path)
            line.names.add((path, shown.strip("`")))
        lines.append(line)
    return [line for line in lines if line.word != "word"]


def sources() -> Iterator[Path]:
    for root in SOURCES:
        for path in sorted((ROOT / root).rglob("*")):
            relative = path.relative_to(ROOT).as_posix()
            elsewhere = any(relative.startswith(f"{mirror}/") for mirror in MIRRORS) or "_pb2" in path.name
            is_test = "tests" in relative.split("/") or path.name == "tests.rs"
            if path.suffix in (".py", ".rs") and not elsewhere and not is_test:
                yield path


def classes(path: Path) -> set[str]:
    text = path.read_text()
    if path.suffix == ".py":
        return {node.name.lstrip("_") for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
    return set(re.findall(r"^\s*(?:pub(?:\([\w ]+\))? )?(?:struct|enum|trait) (\w+)", text, re.MULTILINE))


def spelled(word: str) -> set[str]:
    """How classes may be named after a word: one of it, and all of them."""
    name = word.title().replace(" ", "")
    return {name, f"{name}s", f"{name}es"}


def clashes() -> dict[str, str]:
    """What has a word for its name and is not what the line says, by `file: name` or `file`."""
    found = {}
    lines = glossary()
    for path in sources():
        relative = path.relative_to(ROOT).as_posix()
        module = path.parent.name if path.stem in ("mod", "__init__") else path.stem.lstrip("_")
        defined = classes(path)
        for line in lines:
            for name in defined & spelled(line.word):
                if (relative, name) not in line.names:
                    found[f"{path.name}: {name}"] = f"{relative} has a class {name}, and {line.word!r} is another thing"
            homes = [home for home in line.files if home == relative or f"/{module}/" in home]
            if module.title().replace("_", "") in spelled(line.word) and not homes:
                found[path.name] = f"{relative} is a module {module}, and {line.word!r} is another thing"
    return found


def test_each_word_stands_once() -> None:
    words = [line.word for line in glossary()]
    assert len(words) > 80
    assert sorted(words) == sorted(set(words))


def test_no_class_and_no_module_uses_a_word_for_something_else() -> None:
    found = clashes()
    assert [text for key, text in found.items() if key not in EXCEPTIONS] == []
    assert [key for key in EXCEPTIONS if key not in found] == [], "not a clash any more: delete these exceptions"


def test_a_second_class_of_a_name_is_found(tmp_path: Path) -> None:
    source = tmp_path / "elsewhere.rs"
    source.write_text("pub struct Window<'a> {\n}\nstruct Other;\n")
    assert classes(source) & spelled("window") == {"Window"}
    source = tmp_path / "elsewhere.py"
    source.write_text("class _Lease:\n    pass\n")
    assert classes(source) & spelled("lease") == {"Lease"}
