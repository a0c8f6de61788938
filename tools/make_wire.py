"""Makes native/src/wire/numbers.rs from memory.proto, for `make proto`; `--check` says whether it is up to date."""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "protos" / "pagefold_proto" / "v1" / "memory.proto"
TARGET = ROOT / "native" / "src" / "wire" / "numbers.rs"
ENUMS = ("EventKind", "DeclineReason", "ReleasedDetail", "WrittenDetail")
"""Those that native code speaks of."""
READ = ("EventKind", "DeclineReason")
"""Of these: those that it makes of a number that a client sent."""

HEAD = """\
//! Numbers of memory.proto. Made from it by `make proto`: change them there.
"""

ENUM = """
/// `{name}` in memory.proto.
{allowed}#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum {name} {{
{variants}}}
"""

UNSAID = """\
#[allow(dead_code, reason = "native code does not say all of them")]
"""

NUMBERED = """
impl {name} {{
    /// The one of this number. None: there is none, or it is UNSPECIFIED.
    pub fn numbered(number: i64) -> Option<{name}> {{
        match number {{
{arms}            _ => None,
        }}
    }}
}}
"""


def values(name: str, proto: str) -> list[tuple[str, int, str]]:
    """The values of an enum but for UNSPECIFIED: name in Rust, number, comment."""
    body = re.search(rf"^enum {name} {{\n(.*?)^}}", proto, re.M | re.S)
    if body is None:
        sys.exit(f"{SOURCE} has no enum {name}")
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() + "_"
    found: list[tuple[str, int, str]] = []
    above = ""
    for line in body[1].splitlines():
        text, _, said = (part.strip() for part in line.partition("//"))
        if not text:
            above = f"{above} {said}".strip()
        elif (value := re.fullmatch(rf"{prefix}(\w+) = (\d+);", text)) is None:
            sys.exit(f"{SOURCE}: not understood: {line}")
        elif value[1] != "UNSPECIFIED":
            # Without a comment of its own, a value shares that of the one before.
            told = said or above or found[-1][2]
            found.append(
                (value[1].title().replace("_", ""), int(value[2]), told[0].upper() + told[1:].rstrip(".") + ".")
            )
            above = ""
    return found


def comment(text: str) -> str:
    """Lines of a comment on a variant."""
    return "".join(f"    /// {line}\n" for line in textwrap.wrap(text, 112))


def rust(proto: str) -> str:
    """The file."""
    text = HEAD
    for name in ENUMS:
        of_it = values(name, proto)
        variants = "".join(f"{comment(told)}    {variant} = {number},\n" for variant, number, told in of_it)
        arms = "".join(f"            {number} => Some({name}::{variant}),\n" for variant, number, _ in of_it)
        allowed = "" if name in READ else UNSAID
        text += ENUM.format(name=name, variants=variants, allowed=allowed)
        text += NUMBERED.format(name=name, arms=arms) if name in READ else ""
    return text


if __name__ == "__main__":
    made = rust(SOURCE.read_text())
    if sys.argv[1:] != ["--check"]:
        TARGET.write_text(made)
    elif TARGET.read_text() != made:
        sys.exit(f"{TARGET.relative_to(ROOT)} is not what memory.proto says: make proto")
