"""tools/check_modules.py finds circles and imports that run up where they are planted, and none in native/src."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_modules  # noqa: E402 - it lies in no package

LADDER = {"low": "", "high": "low", "high/deep": "low high"}


def wrong(tmp_path: Path, sources: dict[str, str]) -> list[str]:
    for name, text in {"lib.rs": "mod low;\nmod high;\n", "low.rs": "", "high/mod.rs": "", **sources}.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return check_modules.problems(tmp_path, LADDER)


def test_this_crate_has_no_circles_and_nothing_runs_up():
    assert check_modules.problems(ROOT / "native" / "src") == []


def test_steps_name_steps_above_them_only():
    above: set[str] = set()
    for step, may in check_modules.MAY_IMPORT.items():
        assert set(may.split()) <= above, step
        above.add(step)


def test_what_runs_down_may(tmp_path):
    good = {
        "high/deep/mod.rs": "use super::other::X;\nuse crate::low;\n",
        "high/other.rs": "use crate::low::{A, b::C};\n",
    }
    assert wrong(tmp_path, good) == []


@pytest.mark.parametrize(
    "text",
    [
        "use crate::high::b::B;",
        "use crate::{low::L, high::{b, c::C}};",
        "pub use super::b;",
        "fn f() { crate::high::b::g() }",
        "mod inside { use super::super::b::B; }",
    ],
)
def test_a_circle_is_found_however_it_is_written(tmp_path, text):
    planted = {"high/a.rs": text, "high/b.rs": "use crate::high::c::C;", "high/c.rs": "use super::a::A;"}
    assert wrong(tmp_path, planted) == ["circle: high::a -> high::b -> high::c -> high::a"]


def test_a_module_and_its_folder_are_no_exception(tmp_path):
    planted = {"high/mod.rs": "mod a;\npub use a::A;\n", "high/a.rs": "use super::Own;\n"}
    assert wrong(tmp_path, planted) == ["circle: high -> high::a -> high"]


def test_what_runs_up_is_found(tmp_path):
    assert wrong(tmp_path, {"low.rs": "use crate::high::H;"}) == ["low may not import high"]
    assert wrong(tmp_path, {"low.rs": "", "high/a.rs": "use super::deep::D;", "high/deep/mod.rs": ""}) == [
        "high::a may not import high::deep"
    ]


def test_a_folder_that_the_ladder_does_not_know_is_found(tmp_path):
    assert wrong(tmp_path, {"side.rs": ""}) == ["side stands on no step of the ladder"]


def test_tests_and_comments_import_what_they_like(tmp_path):
    free = {"low.rs": "//! See `crate::high::H`.\n#[cfg(test)]\nmod tests {\n    use crate::high::H;\n}\n"}
    assert wrong(tmp_path, free | {"low/tests.rs": "use crate::high::H;"}) == []
