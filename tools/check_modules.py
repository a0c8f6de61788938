"""Checks which modules of native/src import which: `check_modules.py [SOURCES]`.

What it looks at: every path in a file that begins with `crate::`, `super::`, `self::` or a module of the file's own folder, in
`use` declarations and elsewhere. Comments and tests (`mod tests`, `tests.rs`, `tests/`) are left out. What it refuses:

* circles: files that import each other, directly or by way of others;
* imports that run up: a folder may import its own files, and those of the folders that `MAY_IMPORT` names for it. Each
  names only folders above it in the list, so there are no circles of folders either.

It reads paths, not types: a method that a file calls on a value it was given is no import.
"""

import re
import sys
from pathlib import Path

BELOW = "page error wire sys faults"
"""What everything may import: sizes, meanings of errors, numbers of the protocol, system calls, points for tests."""

MAY_IMPORT = {
    "page": "",
    "error": "",
    "wire": "",
    "sys": "page",
    "faults": "sys",
    "fork": BELOW,
    "arena": BELOW,
    "space/books": "page wire",
    "space": f"{BELOW} fork arena space/books",
    "space/operations": f"{BELOW} fork arena space/books space",
    "engine/tables": BELOW,
    "engine/frames": f"{BELOW} engine/tables",
    "engine/books": f"{BELOW} engine/tables engine/frames",
    "engine/scan": f"{BELOW} engine/tables engine/frames engine/books",
    "engine": f"{BELOW} engine/tables engine/frames engine/books engine/scan",
    "py": f"{BELOW} fork arena space/books space space/operations engine",
    "": "py",
}
"""The ladder. `space` stands for the files in that folder itself, "" for lib.rs."""

PATH = re.compile(r"(?<![\w:])((?:\w+)(?:::\w+)*)(::\{)?")


def modules(sources: Path) -> dict[str, Path]:
    """Every module that is a file, by its path within the crate: `space::books::bits`. The root is empty."""
    found = {}
    for file in sorted(sources.rglob("*.rs")):
        parts = [*file.relative_to(sources).with_suffix("").parts]
        if "tests" not in parts:
            found["::".join(parts if parts[-1] not in ("mod", "lib") else parts[:-1])] = file
    return found


def paths(text: str) -> list[str]:
    """All paths of a file, those in braces one by one."""
    text = re.sub(r"//[^\n]*", "", text.partition("#[cfg(test)]\nmod tests {")[0])
    found, prefixes = [], [""]
    for match in re.finditer(r"[{}]|(?<![\w:])\w+(?:::\w+)*(?P<group>::\{)?", text):
        word = match.group()
        if word == "{":
            prefixes.append("")
        elif word == "}":
            prefixes = prefixes[:-1] or [""]
        elif match["group"]:
            prefixes.append(f"{prefixes[-1]}{word[:-1]}")
        else:
            found.append(prefixes[-1] + word)
    return found


def target(path: str, module: str, known: dict[str, Path]) -> str | None:
    """The module that a path leads into; None if it is none of this crate's, or the file itself."""
    first, *rest = path.split("::")
    parent = module.split("::")[:-1]
    here = module.split("::") if module else []
    if first == "crate":
        full = rest
    elif first == "self":
        full = here + rest
    elif first == "super":
        full = parent + rest
    elif rest and "::".join([*here, first]) in known and known[module].name in ("mod.rs", "lib.rs"):
        full = [*here, first, *rest]
    else:
        return None
    while full and "::".join(full) not in known:
        full = full[:-1]
    found = "::".join(full)
    return None if found == module else found


def folder(module: str, known: dict[str, Path], ladder: dict[str, str]) -> str:
    """The step of the ladder that a module stands on."""
    parts = module.split("::")
    for length in range(len(parts), -1, -1):
        if (step := "/".join(parts[:length])) in ladder:
            return step
    return ""


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
    imports: dict[str, set[str]] = {}
    for module, file in known.items():
        led = (target(path, module, known) for path in paths(file.read_text()))
        imports[module] = {other for other in led if other is not None}
    told = ["circle: " + " -> ".join(way) for way in circles(imports)]
    for module, others in imports.items():
        mine = folder(module, known, ladder)
        may = {mine, *ladder[mine].split()}
        told += [f"{module} may not import {other}" for other in sorted(others) if folder(other, known, ladder) not in may]
    return told


if __name__ == "__main__":
    at = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "native" / "src")
    if wrong := problems(at):
        sys.exit("\n".join([*wrong, "(tools/check_modules.py says what may import what)"]))
