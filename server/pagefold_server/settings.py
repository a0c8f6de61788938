"""The server's settings: their defaults, where values come from, and which can change while the server runs.

    default  <  TOML file  <  environment (PAGEFOLD_*)  <  flags  <  live (Admin.SetConfig)

`load` reads the first four once; `Configuration` holds the outcome and changes it, all or nothing. A reload
gives what a start would give now: live changes are dropped by it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from pagefold_proto import addresses
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pagefold_server.engine.interface import EngineOptions
from pagefold_server.errors import BadConfig

ENV_PREFIX = "PAGEFOLD_"


class RunMode(IntEnum):
    """What domains are for, by the setting `run`; the numbers are KSM's."""

    STOPPED = 0
    SCANNING = 1
    UNMERGING = 2


Origin = Literal["default", "file", "environment", "flag", "live"]

_LIVE: JsonDict = {"live": True}


class Settings(BaseSettings):
    """Every setting with its default. Made by `load`, which knows where each value comes from."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        validate_default=True,
        env_ignore_empty=True,
    )

    address: str = Field(
        "", description="address to listen on: unix:/path or tcp:HOST:PORT; empty: the user's own socket"
    )
    tenants_address: str = Field(
        "",
        description="second address, for clients of other users: unix:/path or tcp:HOST:PORT. It serves no calls for "
        "operators; empty: none",
    )
    tenants_group: str = Field(
        "", description="group that may connect to the Unix socket of tenants_address; empty: all users"
    )
    token_file: Path | None = Field(None, description="file with the bearer token that callers over TCP must send")
    tls_cert: Path | None = Field(None, description="file with the certificate chain (PEM) for TCP")
    tls_key: Path | None = Field(None, description="file with the certificate's private key (PEM)")
    engine: Literal["native", "reference"] = Field(
        "native", description="engine that finds identical pages. reference is for tests: slow, and large in memory"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level of messages to log", json_schema_extra=_LIVE
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="form of log lines; auto: console on a terminal, else JSON"
    )
    log_file: Path | None = Field(None, description="file to log to; empty: stderr")
    log_max_bytes: int = Field(
        8 << 20,
        ge=1 << 12,
        description="size at which log_file is renamed to FILE.1, replacing the previous FILE.1",
        json_schema_extra=_LIVE,
    )
    ready_fd: int = Field(-1, ge=-1, description="descriptor to write a line to once the server answers; -1: none")
    idle_exit_seconds: float = Field(
        0,
        ge=0,
        description="seconds without any session after which the server exits; 0: never",
        json_schema_extra=_LIVE,
    )

    run: int = Field(
        1, ge=0, le=2, description="0: stop scanning, 1: scan, 2: unmerge all pages", json_schema_extra=_LIVE
    )
    pages_to_scan: int = Field(
        32768, ge=1, le=1 << 24, description="pages scanned in one slice", json_schema_extra=_LIVE
    )
    sleep_millisecs: int = Field(
        10,
        ge=0,
        le=60_000,
        description="shortest pause between slices and between passes",
        json_schema_extra=_LIVE,
    )
    cpu_ceiling_percent: float = Field(
        70, gt=0, le=100, description="ceiling of scanning, in percent of one core", json_schema_extra=_LIVE
    )
    target_merge_seconds: float = Field(
        0.5,
        gt=0,
        le=3600,
        description="target duration of a pass over modified pages, as far as cpu_ceiling_percent allows",
        json_schema_extra=_LIVE,
    )
    settle_cpu_percent: float = Field(
        200,
        gt=0,
        le=6400,
        description="ceiling of scanning while a client waits in settle(); 200: two threads read",
        json_schema_extra=_LIVE,
    )
    use_zero_pages: bool = Field(
        True, description="merge pages of zeros with the kernel's zero page", json_schema_extra=_LIVE
    )
    max_page_sharing: int = Field(
        256, ge=2, le=1 << 20, description="highest number of pages that share one frame", json_schema_extra=_LIVE
    )
    smart_scan: bool = Field(
        True,
        description="skip pages that keep being written after a merge, for more passes each time",
        json_schema_extra=_LIVE,
    )
    max_outstanding: int = Field(
        65536,
        ge=1,
        le=1 << 20,
        description="highest number of pages proposed to a client and not yet answered",
        json_schema_extra=_LIVE,
    )

    max_sessions: int = Field(4096, ge=1, description="highest number of sessions", json_schema_extra=_LIVE)
    max_segments: int = Field(
        4096, ge=1, description="highest number of segments of one session", json_schema_extra=_LIVE
    )
    max_segment_pages: int = Field(
        1 << 28,
        ge=1,
        le=1 << 32,
        description="highest number of pages in all segments of one session",
        json_schema_extra=_LIVE,
    )
    tenant_max_sessions: int = Field(
        1024, ge=0, description="quota of sessions for each user; 0: none", json_schema_extra=_LIVE
    )
    tenant_max_domains: int = Field(
        64, ge=0, description="quota of labels (domains) for each user; 0: none", json_schema_extra=_LIVE
    )
    tenant_max_segments: int = Field(
        16384, ge=0, description="quota of segments for each user; 0: none", json_schema_extra=_LIVE
    )
    tenant_max_bytes: int = Field(
        1 << 42, ge=0, description="quota of bytes in all segments of each user; 0: none", json_schema_extra=_LIVE
    )
    tenant_max_mappings: int = Field(
        1 << 20,
        ge=0,
        description="quota of mappings in all clients of each user; 0: none. At the quota no session or segment is "
        "added",
        json_schema_extra=_LIVE,
    )
    tenant_cpu_percent: float = Field(
        0,
        ge=0,
        le=6400,
        description="ceiling of scanning for each user, in percent of one core; 0: a fair share",
        json_schema_extra=_LIVE,
    )
    max_batch_pages: int = Field(
        16384,
        ge=1,
        le=1 << 15,
        description="highest number of pages that one reply proposes to merge",
        json_schema_extra=_LIVE,
    )
    poll_millisecs: int = Field(
        250,
        ge=10,
        le=60_000,
        description="pause between two looks of a client for written pages",
        json_schema_extra=_LIVE,
    )
    silent_seconds: float = Field(
        3,
        gt=0,
        description="seconds after which a client that does not answer is no longer waited for",
        json_schema_extra=_LIVE,
    )
    sweep_seconds: float = Field(
        60, gt=0, description="pause between sweeps of stale names in /dev/shm", json_schema_extra=_LIVE
    )

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)
    _overrides: dict[str, object] = PrivateAttr(default_factory=dict)
    _config_file: Path | None = PrivateAttr(default=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands over: it reads the sources itself, so that it knows where each value comes from."""
        return (init_settings,)

    @field_validator("address", "tenants_address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if address:
            addresses.parse(address)
        return address

    @model_validator(mode="after")
    def _check_tls(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: give both or none")
        return self

    @property
    def listen(self) -> addresses.Address:
        """The address to listen on."""
        return addresses.parse(self.address or addresses.default_address())

    @property
    def engine_options(self) -> EngineOptions:
        """The options of every engine."""
        return EngineOptions(
            use_zero_pages=self.use_zero_pages,
            max_page_sharing=self.max_page_sharing,
            smart_scan=self.smart_scan,
            max_outstanding=self.max_outstanding,
        )

    def origin(self, key: str) -> Origin:
        """Where a setting's value comes from."""
        return self._origins.get(key, "default")

    def explain(self) -> list[Explained]:
        """Every setting, in the order of their definition."""
        return [self.explain_one(key) for key in type(self).model_fields]

    def explain_one(self, key: str) -> Explained:
        """One setting, for people."""
        spec = type(self).model_fields[key]
        return Explained(
            key=key,
            value=_text(getattr(self, key)),
            default=_text(spec.default),
            origin=self.origin(key),
            live=is_live(spec),
            description=spec.description or "",
        )

    def changed(self, values: Mapping[str, object]) -> Settings:
        """These settings with some of them replaced, as by an operator while the server runs.

        Raises:
            BadConfig: a key is unknown or cannot change live, or a value is not accepted.
        """
        for key in values:
            spec = type(self).model_fields.get(key)
            if spec is None:
                raise BadConfig(f"{key}: there is no such setting; `pagefold config get` lists them")
            if not is_live(spec):
                raise BadConfig(f"{key} cannot change live: set it in the file and restart the server")
        new = _build({**self.model_dump(), **values})
        new._origins = {**self._origins, **dict.fromkeys(values, "live")}
        new._overrides, new._config_file = self._overrides, self._config_file
        return new

    def reloaded(self) -> Settings:
        """What a start would give now, with the same file and flags.

        Raises:
            BadConfig: the file or the environment is not accepted.
        """
        return load(self._overrides, self._config_file)


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting, for people; see Setting in admin.proto."""

    key: str
    value: str
    default: str
    origin: Origin
    live: bool
    description: str


def is_live(spec: FieldInfo) -> bool:
    """Whether a setting can change while the server runs."""
    return spec.json_schema_extra == _LIVE


def load(overrides: Mapping[str, object] | None = None, config_file: Path | None = None) -> Settings:
    """Reads the settings from all sources.

    Args:
        overrides: values given as flags; those that are None count as not given.
        config_file: TOML, its top-level keys are the settings' names. None: no file.

    Raises:
        BadConfig: a key or value is not accepted; the text names it and says what to do.
    """
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    sources: list[tuple[Origin, Mapping[str, object]]] = [
        ("file", _from_file(config_file)),
        ("environment", _from_environment()),
        ("flag", flags),
    ]
    for origin, found in sources:
        for key in found:
            if key not in Settings.model_fields:
                where = f" in {config_file}" if origin == "file" else ""
                raise BadConfig(f"{key}{where}: there is no such setting; `pagefold config get` lists them")
        values.update(found)
        origins.update(dict.fromkeys(found, origin))
    settings = _build(values)
    settings._origins, settings._overrides, settings._config_file = origins, flags, config_file
    return settings


class Configuration:
    """The settings as they are now, and the functions to call when they change."""

    def __init__(self, settings: Settings) -> None:
        self.now = settings
        self._listeners: list[Callable[[Settings, Settings], None]] = []

    def on_change(self, listener: Callable[[Settings, Settings], None]) -> None:
        """Has `listener(old, new)` called after every change."""
        self._listeners.append(listener)

    def set(self, values: Mapping[str, object]) -> None:
        """Changes settings live, all or nothing.

        Raises:
            BadConfig: one of them is not accepted; none was changed.
        """
        self._replace(self.now.changed(values))

    def reload(self) -> list[str]:
        """Reads file and environment again, applies what can change live, returns what needs a restart.

        Raises:
            BadConfig: what was read is not accepted; nothing was changed.
        """
        old, fresh = self.now, self.now.reloaded()
        fixed = {key: getattr(old, key) for key, spec in Settings.model_fields.items() if not is_live(spec)}
        new = _build({**fresh.model_dump(), **fixed})
        new._origins = {**fresh._origins, **{key: old.origin(key) for key in fixed}}
        new._overrides, new._config_file = fresh._overrides, fresh._config_file
        self._replace(new)
        return [key for key, value in fixed.items() if getattr(fresh, key) != value]

    def _replace(self, new: Settings) -> None:
        old, self.now = self.now, new
        for listener in self._listeners:
            listener(old, new)


def _build(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            description = Settings.model_fields[key].description if key in Settings.model_fields else ""
            problems.append(
                (f"{key}: " if key else "")
                + problem["msg"].removeprefix("Value error, ")
                + (f", not {problem['input']!r} ({description})" if key else "")
            )
        raise BadConfig("; ".join(problems)) from error


def _from_environment() -> dict[str, Any]:
    try:
        return EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise BadConfig(f"the environment ({ENV_PREFIX}*): {error}") from error


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}; give the path of a readable TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path} is not TOML: {error}") from error


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
