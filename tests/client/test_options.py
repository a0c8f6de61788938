"""What connect() was asked for: arguments win over the environment, and both are checked before anything is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pagefold._options.options import ConnectOptions, disabled_features
from pagefold_proto.addresses import Address, AddressError

SOCKET = Address("unix", path="/run/x.sock")
ENVIRON = {
    "PAGEFOLD_ADDRESS": "unix:/run/x.sock",
    "PAGEFOLD_AUTOSTART": "no",
    "PAGEFOLD_BACKING": "memfd",
    "PAGEFOLD_BARRIER": "user",
    "PAGEFOLD_DISABLE": "wp_async, pagemap_scan",
    "PAGEFOLD_MAPPING_BUDGET": "7",
    "PAGEFOLD_TOKEN": " secret\n",
    "PAGEFOLD_TRACKER": "checksum",
}
DEFAULTS = ConnectOptions(None, "", True, None, None, "auto", None, "", None, ())


def test_without_arguments_and_environment_there_are_defaults() -> None:
    assert ConnectOptions.checked(environ={}) == DEFAULTS
    assert ConnectOptions.checked(environ=dict.fromkeys(ENVIRON, "") | {"PAGEFOLD_AUTOSTART": "1"}) == DEFAULTS


def test_the_environment_says_what_arguments_leave_open() -> None:
    said = ConnectOptions(
        SOCKET, "", False, "user", "checksum", "memfd", 7, "secret", None, ("wp_async", "pagemap_scan")
    )
    assert ConnectOptions.checked(environ=ENVIRON) == said
    asked: dict[str, Any] = {
        "address": "tcp:host:1",
        "label": "mine",
        "barrier": "off",
        "tracker": "pagemap",
        "backing": "shm",
        "mapping_budget": 0,
        "token": "other",
        "ca": "ca.pem",
    }
    told = ConnectOptions.checked(**asked, environ=ENVIRON)
    assert told == dataclasses.replace(said, **asked | {"address": Address("tcp", host="host", port=1)})


@pytest.mark.parametrize(
    ("address", "autostart", "starts"),
    [(None, None, True), ("unix:/x.sock", None, True), ("tcp:host:1", True, False), (None, False, False)],
)
def test_only_a_server_at_a_unix_socket_is_started(address: str | None, autostart: bool | None, starts: bool) -> None:
    assert ConnectOptions.checked(address, autostart=autostart, environ={}).autostart is starts


@pytest.mark.parametrize(
    "environ",
    [
        {"PAGEFOLD_ADDRESS": "nowhere"},
        {"PAGEFOLD_BACKING": "disk"},
        {"PAGEFOLD_BARRIER": "UFFD"},
        {"PAGEFOLD_MAPPING_BUDGET": "-1"},
        {"PAGEFOLD_TOKEN": "two\nlines"},
        {"PAGEFOLD_TRACKER": "guess"},
    ],
)
def test_what_makes_no_sense_is_refused_with_its_value(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="token|" + next(iter(environ.values())).partition("\n")[0]) as caught:
        ConnectOptions.checked(environ=environ)
    assert isinstance(caught.value, AddressError) == ("PAGEFOLD_ADDRESS" in environ)


def test_features_are_left_out_by_name() -> None:
    assert disabled_features({}) == ()
    assert disabled_features({"PAGEFOLD_DISABLE": " uffd,, user "}) == ("uffd", "user")
