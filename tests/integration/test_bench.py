"""The benchmark as its users run it: a few small rows, what it writes, and that it leaves the kernel as it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, str(ROOT / "bench" / "run.py")]
KSM = Path("/sys/kernel/mm/ksm")
KNOBS = ("run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode", "max_page_sharing", "use_zero_pages")


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *options], capture_output=True, text=True, timeout=120)


def knobs() -> dict[str, str]:
    return {name: (KSM / name).read_text() for name in KNOBS if (KSM / name).exists()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    rows = "identical,isolated,settled,write-tracked,soon"
    ended = bench("--quick", "--no-kernel", "--rows", rows, "--json", str(path))
    assert ended.returncode == 0, ended.stderr
    assert "2 x 16 MiB identical: until merged" in ended.stdout
    assert "identical, run 1" in ended.stderr, "no progress is shown"
    return path, json.loads(path.read_text())


@pytest.mark.needs("uffd")
def test_a_quick_run_gives_every_figure_with_its_target(outcome: tuple[Path, dict[str, Any]]) -> None:
    _, result = outcome
    assert result["failed"] == []
    assert result["options"] == {"mib": 16, "quick": True, "engine": "", "runs": 1}
    assert result["machine"]["cores"] == os.cpu_count()
    rows = {row["key"]: row for row in result["rows"]}
    assert set(rows) == {
        *("identical.wall", "identical.cpu", "isolated.wall", "isolated.cpu"),
        *("settled.cpu", "write-tracked.more", "soon.wall"),
    }
    for row in rows.values():
        side = row["pagefold"]
        assert side["least"] <= side["median"] <= side["most"]
        assert len(side["all"]) == row["runs"] == 1
        assert row["kernel"] is None, "it was to be left alone"
        assert row["target"]["of"] in ("ratio", "pagefold")
        assert (row["met"] is None) == (row["target"]["of"] == "ratio"), "a ratio takes two"
    assert rows["identical.wall"]["unit"] == "s"
    assert 0 < rows["identical.wall"]["floor"]["median"] < rows["identical.wall"]["pagefold"]["median"]


@pytest.mark.needs("uffd")
def test_a_result_becomes_a_table_between_the_marks_of_a_page(
    outcome: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, result = outcome
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: begin -->\nstale\n<!-- measured: end -->\nafter\n")
    for _ in range(2):  # the second time it replaces what it wrote
        assert bench("--result", str(path), "--markdown", str(page)).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert all(text.count(f"| {row['title']} |") == 1 for row in result["rows"])


def test_rows_are_listed_and_unknown_ones_refused() -> None:
    listed = bench("--list").stdout.splitlines()
    assert {line.split()[0] for line in listed} >= {
        "identical",
        "eight",
        "dirty",
        "windows",
        "memory",
        "crowd",
        "large",
    }
    refused = bench("--rows", "identical,nonsense")
    assert refused.returncode == 2
    assert "nonsense: no such row" in refused.stderr


@pytest.mark.needs("uffd", "root", "ksm")
@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_an_interrupted_run_leaves_ksm_as_it_was(signum: signal.Signals, tmp_path: Path) -> None:
    before = knobs()
    if before["run"].strip() != "0" or (KSM / "pages_shared").read_text().strip() != "0":
        pytest.skip("KSM is in use on this machine")
    command = [*RUN, "--quick", "--mib", "64", "--rows", "write-merged,identical", "--json", str(tmp_path / "no.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: (KSM / "pages_to_scan").read_text() == "1000000\n", what="KSM at full speed")
            process.send_signal(signum)
            process.send_signal(signal.SIGINT)  # the impatient press it twice
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert knobs() == before
    assert (KSM / "pages_sharing").read_text() == "0\n"
    assert not (tmp_path / "no.json").exists()


@pytest.mark.needs("uffd", "root")
def test_the_floods_of_another_user_do_not_keep_anybody_from_merging(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    ended = bench("--quick", "--no-kernel", "--rows", "tenants", "--json", str(path))
    assert ended.returncode == 0, ended.stderr
    rows = {row["key"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {
        f"tenants.{flood}" for flood in ("segments", "messages", "large-messages", "messages-of-nobody", "batches")
    }
    for row in rows.values():
        assert row["pagefold"]["median"] > 0
        assert row["target"] == {"most": 2, "of": "pagefold"}
        (note,) = row["notes"]
        assert not re.search(r" 0 (calls|pages)", note), "nothing was flooded"
