"""Checks which modules of native/src import which: `check_modules.py [SOURCES]`.

What it looks at: every path that begins with `crate::`, `super::`, `self::` or a module of the file's own folder, be it
in a `use` declaration or not. Comments and tests (`mod tests`, `tests.rs`, `tests/`) are left out. What it refuses:

* circles: files that import each other, directly or by way of others;
* imports that run up: a folder may import its own files, and those of the folders that `MAY_IMPORT` names for it. They
  all stand above it in that list, so there are no circles of folders either.

It reads paths, not types: a method that a file calls on a value it was given is no import.
"""

import re
import sys
from pathlib import Path

BELOW = "page error wire sys faults"
"""What both sides may import: pages, meanings of errors, numbers of the protocol, system calls, points for tests."""

WORDS = "engine/ids engine/error engine/report engine/digest"
"""What all of the engine speaks of."""

MAY_IMPORT = {
    "sys/page_size": "",
    "page": "sys/page_size",
    "error": "",
    "wire": "",
    "sys": "page sys/page_size",
    "faults": "sys",
    # a program's side
    "fork": BELOW,
    "arena": BELOW,
    "space/books": "page wire",
    "space": f"{BELOW} fork arena space/books",
    "space/operations": f"{BELOW} fork arena space/books space",
    "space/forks": f"{BELOW} fork arena space/books space space/operations",
    # the server's side
    "engine/ids": "",
    "engine/error": "",
    "engine/report": "",
    "engine/digest": "page",
    "engine/tables": f"{BELOW} {WORDS}",
    "engine/frames": f"{BELOW} {WORDS} engine/tables",
    "engine/books": f"{BELOW} {WORDS} engine/tables engine/frames",
    "engine/scan": f"{BELOW} {WORDS} engine/tables engine/frames engine/books",
    "engine/engine": f"{BELOW} {WORDS} engine/tables engine/frames engine/books engine/scan",
    "engine/tell": f"{BELOW} {WORDS} engine/tables engine/frames engine/books engine/scan engine/engine",
    "engine": f"{WORDS} engine/frames engine/books engine/engine engine/tell",
    # both, for Python
    "py": f"{BELOW} fork arena space/books space space/operations space/forks engine",
}
"""The ladder. A step is a folder, or a file. `space` stands for what lies in that folder itself."""


def modules(sources: Path) -> dict[str, Path]:
    """Every module that is a file, by its path within the crate: `space::books::bits`. The root is empty."""
    found = {}
    for file in sorted(sources.rglob("*.rs")):
        parts = [*file.relative_to(sources).with_suffix("").parts]
        if "tests" not in parts:
            found["::".join(parts if parts[-1] not in ("mod", "lib") else parts[:-1])] = file
    return found


def paths(text: str) -> list[str]:
    """All paths of a file, those in braces one by one; within a module of the file `super::` is made `self::`."""
    text = re.sub(r"//[^\n]*", "", re.sub(r"^#\[cfg\(test\)\]\nmod tests {\n.*?^}", "", text, flags=re.M | re.S))
    found, opened = [], [""]
    for match in re.finditer(r"(mod \w+ )?\{|\}|(?<![\w:])\w+(?:::\w+)*(?:::\{)?", text):
        word = match.group()
        if word == "}":
            opened = opened[:-1] or [""]
        elif word.endswith("{"):
            opened.append("mod" if match[1] else opened[-1] + word[:-1] if "::" in word else "")
        else:
            prefix = opened[-1] if opened[-1] != "mod" else ""
            found.append(re.sub("^super::", "self::", prefix + word) if "mod" in opened else prefix + word)
    return found


def target(path: str, module: str, known: dict[str, Path]) -> str | None:
    """The module that a path leads into; None if it is none of this crate's, or the file itself."""
    first, *rest = path.split("::")
    full = module.split("::") if module else []
    if first == "crate":
        full = []
    elif first == "super":
        full = full[:-1]
    elif known[module].name in ("mod.rs", "lib.rs") and "::".join([*full, first]) in known:
        full = [*full, first]
    elif first != "self":
        return None
    while rest[:1] == ["super"]:
        full, rest = full[:-1], rest[1:]
    if not rest:
        return None
    full = [*full, *rest]
    while full and "::".join(full) not in known:
        full.pop()
    found = "::".join(full)
    return found if found not in ("", module) else None


def step(module: str, ladder: dict[str, str]) -> str | None:
    """The step of the ladder that a module stands on; None: it is none of them."""
    parts = module.split("::")
    steps = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((at for at in steps if at in ladder), None)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """One way round each circle that a search comes upon, from its first module back to that."""
    found, done = [], set()

    def follow(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(imports[module]):
                follow(other, [*way, module])
            done.add(module)

    for module in sorted(imports):
        follow(module, [])
    return found


def problems(sources: Path, ladder: dict[str, str] = MAY_IMPORT) -> list[str]:
    """What is wrong, a line each."""
    known = modules(sources)
    imports = {
        module: {found for path in paths(file.read_text()) if (found := target(path, module, known))}
        for module, file in known.items()
    }
    told = ["circle: " + " -> ".join(way) for way in circles(imports)]
    for module, others in imports.items():
        if module and (mine := step(module, ladder)) is None:
            told.append(f"{module} stands on no step of the ladder")
        elif module:
            may = {mine, *ladder[mine].split()}
            told += [f"{module} may not import {other}" for other in sorted(others) if step(other, ladder) not in may]
    return told


if __name__ == "__main__":
    at = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "native" / "src"
    if wrong := problems(at):
        sys.exit("\n".join([*wrong, "(tools/check_modules.py says what may import what)"]))
