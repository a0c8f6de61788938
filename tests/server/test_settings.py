"""Settings: precedence, origins, what is refused and how that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from pagefold_server.errors import BadConfig
from pagefold_server.settings import Configuration, Settings, load


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in Settings.model_fields:
        monkeypatch.delenv(f"PAGEFOLD_{key.upper()}", raising=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "f.toml", "run = 0\nmax_sessions = 1\nmax_segments = 1\n")
    monkeypatch.setenv("PAGEFOLD_MAX_SESSIONS", "2")
    monkeypatch.setenv("PAGEFOLD_MAX_SEGMENTS", "2")
    monkeypatch.setenv("PAGEFOLD_SOMETHING_OF_THE_CLIENTS", "2")
    settings = load({"max_segments": 3, "max_outstanding": None}, file)
    assert (settings.run, settings.max_sessions, settings.max_segments) == (0, 2, 3)
    keys = ("run", "max_sessions", "max_segments", "max_outstanding")
    assert [settings.origin(key) for key in keys] == ["file", "environment", "flag", "default"]


@pytest.mark.parametrize(
    "bad",
    [
        {"run": 3},
        {"run": "x"},
        {"pages_to_scan": 0},
        {"cpu_ceiling_percent": 101},
        {"cpu_ceiling_percent": float("nan")},
        {"idle_exit_seconds": float("inf")},
        {"no_such_key": 1},
        {"address": "somewhere"},
        {"address": "unix:relative.sock"},
        {"tls_cert": "/x"},
        {"engine": "steam"},
    ],
)
def test_a_bad_value_is_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(BadConfig) as refused:
        load(bad)
    assert next(iter(bad)) in str(refused.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="readable"):
        load({}, tmp_path / "none")
    with pytest.raises(BadConfig, match="not TOML"):
        load({}, write(tmp_path / "f", "run ="))
    with pytest.raises(BadConfig, match=r"runn in .*f: there is no such setting"):
        load({}, write(tmp_path / "f", "runn = 1"))


def test_a_change_is_all_or_nothing_and_live_only() -> None:
    configuration = Configuration(load())
    seen: list[int] = []
    configuration.on_change(lambda old, new: seen.append(new.run - old.run))
    configuration.set({"run": "2", "use_zero_pages": "false"})
    assert (configuration.now.run, configuration.now.use_zero_pages, seen) == (2, False, [1])
    assert configuration.now.origin("run") == "live"
    for bad in ({"run": "0", "pages_to_scan": "-1"}, {"run": "0", "log_format": "json"}, {"run": "0", "x": "1"}):
        with pytest.raises(BadConfig):
            configuration.set(bad)
    assert (configuration.now.run, seen) == (2, [1])


def test_a_reload_gives_what_a_start_would_give(tmp_path: Path) -> None:
    file = write(tmp_path / "f.toml", "run = 0\n")
    configuration = Configuration(load({"max_sessions": 5}, file))
    configuration.set({"max_segments": "9"})
    write(file, "max_sessions = 6\nlog_format = 'json'\nsilent_seconds = 2\n")
    assert configuration.reload() == ["log_format"]
    now = configuration.now
    assert (now.run, now.max_sessions, now.max_segments, now.silent_seconds) == (1, 5, 4096, 2)
    assert (now.log_format, now.origin("silent_seconds"), now.origin("max_segments")) == ("auto", "file", "default")
    write(file, "run = 7\n")
    with pytest.raises(BadConfig):
        configuration.reload()
    assert configuration.now is now


def test_every_setting_is_described() -> None:
    for told in load().explain():
        assert told.description
        assert told.value == told.default
        assert told.origin == "default"
