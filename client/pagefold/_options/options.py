"""The options of a client: arguments of connect(), else the environment, each checked for its form.

A forked child connects with the options of its parent's client, whatever its environment says by then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from pagefold_proto import addresses, tls
from pagefold_proto.addresses import Address
from pagefold_proto.limits import MAX_LABEL

from pagefold._options.backings import BACKINGS, Backing
from pagefold._options.barriers import BARRIERS, Barrier
from pagefold._options.trackers import TRACKERS, Tracker

T = TypeVar("T", bound=str)

_NO: Final = ("0", "no", "off", "false")


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """The options of a client; see `pagefold.connect`.

    Attributes:
        address: of the server; None: this user's own.
        label: of the domain.
        autostart: start a server if none answers.
        barrier: None: the best that the machine allows.
        tracker: None: the best that the machine allows.
        backing: where memory comes from.
        mapping_budget: most kernel mappings; None: half of what a process may have.
        token: bearer token, for TCP; empty: none.
        ca: certificate file, for TCP; None: no encryption.
        disabled: features of the kernel to leave unused, for tests.
    """

    address: Address | None
    label: str
    autostart: bool
    barrier: Barrier | None
    tracker: Tracker | None
    backing: Backing
    mapping_budget: int | None
    token: str
    ca: str | os.PathLike[str] | None
    disabled: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        address: str | None = None,
        label: str = "",
        autostart: bool | None = None,
        barrier: str | None = None,
        tracker: str | None = None,
        backing: str | None = None,
        mapping_budget: int | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> ConnectOptions:
        """Checks arguments of connect(), and takes what they leave open from the environment.

        Raises:
            ValueError: one of them is out of its range.
        """
        named = address or environ.get("PAGEFOLD_ADDRESS")
        where = addresses.parse(named) if named else None
        return cls(
            address=where,
            label=_label(label),
            autostart=(may_autostart(environ) if autostart is None else autostart)
            and (where is None or where.scheme == "unix"),
            barrier=choice("barrier", barrier, environ, BARRIERS),
            tracker=choice("tracker", tracker, environ, TRACKERS),
            backing=choice("backing", backing or None, environ, BACKINGS) or "auto",
            mapping_budget=_budget(mapping_budget, environ),
            token=tls.checked_token(token or environ.get("PAGEFOLD_TOKEN") or ""),
            ca=ca,
            disabled=disabled_features(environ),
        )


def choice(name: str, asked: str | None, environ: Mapping[str, str], choices: tuple[T, ...]) -> T | None:
    """What an argument, else the environment, asks for; None: neither does.

    Args:
        name: of the argument; the variable is PAGEFOLD_ and the name.
        asked: the argument.
        environ: the environment.
        choices: the values that it can have.

    Raises:
        ValueError: it is none of the choices.
    """
    wanted = asked if asked is not None else environ.get(f"PAGEFOLD_{name.upper()}") or None
    found = next((known for known in choices if known == wanted), None)
    if found is None and wanted is not None:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} {wanted!r}: it is {', '.join(others)} or {last}")
    return found


def may_autostart(environ: Mapping[str, str]) -> bool:
    """Whether $PAGEFOLD_AUTOSTART lets a program start a server."""
    return environ.get("PAGEFOLD_AUTOSTART", "1").lower() not in _NO


def disabled_features(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Features of the kernel that $PAGEFOLD_DISABLE names."""
    return tuple(name for name in environ.get("PAGEFOLD_DISABLE", "").replace(" ", "").split(",") if name)


def _label(label: str) -> str:
    if len(label) > MAX_LABEL:
        raise ValueError(f"label has {len(label)} characters; {MAX_LABEL} are the most")
    if any("\ud800" <= character <= "\udfff" for character in label):
        raise ValueError(f"label is {label!r}, and a part of it is no text: bytes that are not UTF-8")
    return label


def _budget(given: int | None, environ: Mapping[str, str]) -> int | None:
    if given is None:
        text = environ.get("PAGEFOLD_MAPPING_BUDGET", "")
        if not text:
            return None
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"PAGEFOLD_MAPPING_BUDGET is {text!r}: it takes a number of mappings")
        given = int(text)
    if given < 0:
        raise ValueError(f"mapping_budget is {given}: it cannot be negative")
    return given
