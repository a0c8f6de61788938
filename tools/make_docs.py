"""Makes docs/api.md, cli.md, configuration.md and obstacles.md from the sources, so that they can say nothing else.

python tools/make_docs.py           writes them
python tools/make_docs.py --check   exits 1 if they are not what it would write
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pagefold
from pagefold import _errors
from pagefold.cli.app import app
from pagefold.cli.exits import EXIT_CODES
from pagefold_proto import obstacle_table
from pagefold_server.settings import ENV_PREFIX, Settings, is_live
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made by `make docs`. Edit the sources, not this file. -->"

API_HEAD = f"""{NOTE}

# The Python API

This page is made by `make docs` from the docstrings of [client/pagefold](../client/pagefold).

Everything that `import pagefold` gives. Sizes are bytes, times are seconds unless a name says otherwise. Everything is
thread-safe. After a fork see [design/fork.md](design/fork.md); where an exception may come from a signal handler,
[design/session.md](design/session.md#an-exception-between-any-two-steps).
"""

FOR_FORKS = ("abandon", "parents", "attached")
"""Of a client, what the hooks of a fork call."""

SECTION = re.compile(r"^(Args|Raises|Returns|Attributes|Example):\n", re.MULTILINE)
ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)

CLI_HEAD = f"""{NOTE}

# The command line

This page is made by `make docs` from the commands' texts in [client/pagefold/cli](../client/pagefold/cli).

{EXIT_CODES}

Results go to stdout, everything else to stderr. With `--json` a command prints one JSON object (`status --watch` one a
line); numbers are numbers, sizes are bytes, times are seconds unless a name says otherwise. `--address` and the
environment variable `PAGEFOLD_ADDRESS` say which server is meant; without either it is this user's own.
"""

CONFIGURATION_HEAD = f"""{NOTE}

# Configuration

This page is made by `make docs`: the first table from [settings.py](../server/pagefold_server/settings.py), all else
from [make_docs.py](../tools/make_docs.py).

## The server

A setting comes from its default, from the TOML file (`pagefold serve --config FILE`; its top-level keys are the
settings' names), from the environment (`{ENV_PREFIX}` and the name in capitals) or from a flag (`pagefold serve --set
KEY=VALUE`); the later wins. Those marked live change while the server runs, with `pagefold config set KEY=VALUE` or by
editing the file and sending SIGHUP. `pagefold config get` shows each with its value and where that comes from.

| setting | default | live | meaning |
|---|---|---|---|
"""

CLIENT_TABLE = """
Names that KSM has mean what they mean there: `run`, `pages_to_scan`, `sleep_millisecs`, `use_zero_pages`,
`max_page_sharing`, `smart_scan`.

## Programs that use the library

Arguments of `pagefold.connect()` win over these.

| variable | default | meaning |
|---|---|---|
| `PAGEFOLD_ADDRESS` | per user | where the server listens: `unix:/path/server.sock` or `tcp:HOST:PORT` |
| `PAGEFOLD_AUTOSTART` | 1 | 0: never start a server |
| `PAGEFOLD_BARRIER` | | how writes are held: `uffd`, `user` or `off`; empty: `uffd` where it can be had, else `off` |
| `PAGEFOLD_TRACKER` | | how written pages are found: `pagemap` or `checksum`; empty: `pagemap` where it can be had |
| `PAGEFOLD_BACKING` | auto | where memory comes from: `shm` (/dev/shm), `memfd` (bounded by memory alone), or `auto` |
| `PAGEFOLD_MAPPING_BUDGET` | half of vm.max_map_count | most mappings that memory may be cut into |
| `PAGEFOLD_TOKEN` | | the bearer token, for TCP |
| `PAGEFOLD_DISABLE` | | to leave unused, for tests: `uffd`, `user`, `wp_unpopulated`, `wp_async`, `pagemap_scan` |

The command line also takes `PAGEFOLD_TOKEN_FILE` (a file with the token) and `PAGEFOLD_CA` (the certificate to check
the server's with).

## Where things are

| what | where |
|---|---|
| socket of a user's own server | `/dev/shm/pagefold-UID/server.sock`, whatever the environment says |
| pid file, whose lock gives the server its address | beside the socket: `server.pid` |
| log of a server that a program started | `/var/tmp/pagefold-UID/server.log`; with another address, beside the socket |
| log of `pagefold serve` | stderr, or `log_file` |

`pagefold status` and `pagefold doctor` say where a server, its socket and its log are; `pagefold stop` ends it. If
another user has made `/dev/shm/pagefold-UID`, the place is `/dev/shm/pagefold-UID-` and random digits. A sandbox or
container with a /dev/shm of its own has a server of its own.

A server that a program started ends when no client has had a session for 60 s, and bounds its log. It has no TOML file:
other settings come from the environment of the program that starts it (`PAGEFOLD_CPU_CEILING_PERCENT`, say), or last
until its end or the next SIGHUP (`pagefold config set`). For one that stays, run `pagefold serve --config FILE`.

## TCP, tokens and certificates

Programs and server need the same /dev/shm and, for memory in memfd objects, the same PID namespace: TCP is for
containers that share these, not for other machines.

```
(umask 077; openssl rand -hex 32 > token)     # a file that others can read is refused
pagefold serve --address tcp:127.0.0.1:7700 --token-file token --tls-cert cert.pem --tls-key key.pem
pagefold status --address tcp:127.0.0.1:7700 --token-file token --ca cert.pem
```

A program says `pagefold.connect("tcp:127.0.0.1:7700", token=..., ca="cert.pem")`, where `ca` is the certificate
itself if it is self-signed. Its names have to fit the address (`subjectAltName=IP:127.0.0.1`). The library takes
address and token from the environment too, the certificate as an argument only. A program with the token reaches what
the address offers: at `address` every operator's command, `pagefold stop` included; so other users' programs get
`tenants_address`.

## An example

```toml
# /etc/pagefold.toml
cpu_ceiling_percent = 25      # of one core
max_page_sharing = 1024       # many clients with the same pages
log_format = "json"
```
"""

OBSTACLES_HEAD = f"""{NOTE}

# What keeps pages from merging

This page is made by `make docs`: the table from [obstacle_table.py](../protos/pagefold_proto/obstacle_table.py), all
else from [make_docs.py](../tools/make_docs.py).

**The rule.** `settle()` is True only if everything mergeable is merged, and is so still: after the last merge every
client looks once more. Each obstacle comes with the number of pages, the reason and the remedy, in the same words in
`SettleReport.reason`, `stats().trouble`, `pagefold status` (with the client whose pages they are)
and `pagefold doctor`, which asks a client that it starts itself. What a client knows of itself travels to the server
with its next call; what the server knows comes back with the answer. Not mergeable is what the program itself keeps out
(`advise(mergeable=False)`), and what changes all the time: such pages are counted (`pages_volatile`,
`pages_waiting`), and not waited for. While a child shares memory, the parent's writes are not looked
at: of its pages, those count that were not read before the fork, and those that were to be merged since.

Where "blocks" is empty, `settle()` can be True all the same: it is the program's own wish, or will hurt later. The
codes are those of `pagefold status --json` (`troubles`).

| code | blocks | the pages are | why | what to do |
|---|---|---|---|---|
"""


def obstacles() -> str:
    """docs/obstacles.md."""
    rows = [
        (each.code, "yes" if each.blocks else "", each.what, _cell(each.why), _cell(each.remedy))
        for each in obstacle_table.TABLE.values()
    ]
    return OBSTACLES_HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def api() -> str:
    """docs/api.md."""
    public = {name: getattr(pagefold, name) for name in pagefold.__all__ if not name.startswith("_")}
    errors = {name: each for name, each in public.items() if each.__module__ == _errors.__name__}
    first = ["connect", "Client", "Buffer", "SettleReport", "Stats"]
    rest = [name for name in public if name not in [*first, *errors]]
    parts = [_documented(name, public[name]) for name in [*first, *rest]]
    opening, tree, said = inspect.cleandoc(_errors.__doc__ or "").split("\n\n")[:3]
    parts.append(f"\n## Errors\n\n{opening}\n\n```\n{_dedent(tree, 4)}\n```\n\n{said}\n")
    parts += [_documented(name, each, "###") for name, each in errors.items()]
    parts.append(
        "\n## \\_\\_version\\_\\_\n\nThe version of the library, a string. Client and server have to be of the same.\n"
    )
    return API_HEAD + "".join(parts)


def _documented(name: str, each: Any, level: str = "##") -> str:
    """A function or class with its public members, in the order in which they stand in the source."""
    shown = f"\n{level} {name}\n\n"
    doc = inspect.cleandoc(each.__doc__ or "")
    if inspect.isfunction(each) or "\nArgs:" in doc:
        shown += f"```python\n{_signature(name, each)}\n```\n\n"
    shown += _markdown(doc)
    if inspect.isclass(each):
        for member, value in vars(each).items():
            if not member.startswith("_") and member not in FOR_FORKS and value.__doc__:
                shown += _member(f"{name}.{member}", value, level)
    return shown


def _member(name: str, value: Any, level: str) -> str:
    called = inspect.isfunction(value)
    signature = f"```python\n{_signature(name, value)}\n```\n\n" if called else ""
    return f"\n{level}# {name}\n\n{signature}{_markdown(inspect.cleandoc(value.__doc__))}"


def _signature(name: str, each: Any) -> str:
    """As it is written: annotations are text in these modules."""
    found = inspect.signature(each)
    shown: list[str] = []
    named = False
    for key, parameter in found.parameters.items():
        if key == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            shown, named = [*shown, "*"], True
        text = key if parameter.annotation is parameter.empty else f"{key}: {parameter.annotation}"
        if parameter.default is not parameter.empty:
            default = getattr(parameter.default, "__name__", repr(parameter.default)).replace("'", '"')
            text += f" = {default}" if ":" in text else f"={default}"
        shown.append(text)
    result = "" if found.return_annotation in (found.empty, None, "None") else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in shown) + f"){result}"


def _markdown(doc: str) -> str:
    """A docstring in Google form: sections become lists, examples become blocks."""
    text, *sections = SECTION.split(doc)
    shown = text.strip() + "\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        content = textwrap.dedent(body).strip()
        if title == "Example":
            shown += f"\n```python\n{content}\n```\n"
        elif title == "Returns":
            shown += f"\n**Returns**: {content}\n"
        else:
            entries = [" ".join(entry.split()) for entry in ENTRY.split(content) if entry.strip()]
            shown += f"\n**{title}**\n\n" + "".join(
                "* `{0}`: {2}\n".format(*entry.partition(": ")) for entry in entries
            )
    return shown


def cli() -> str:
    """docs/cli.md."""
    return CLI_HEAD + "".join(_command(get_command(app), "pagefold"))


def _command(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for sub in command.commands:
            yield from _command(command.commands[sub], f"{name} {sub}")
        return
    arguments = [_argument(param) for param in command.params if param.param_type_name == "argument"]
    yield f"\n## {' '.join([name, *arguments])}\n\n"
    for paragraph in command.help.split("\n\n"):
        head, _, lines = paragraph.partition("\n")
        yield f"```\n{_dedent(lines)}\n```\n\n" if head.startswith("Example") else f"{paragraph}\n\n"
    rows = [_option(param) for param in command.params if param.param_type_name == "option"]
    if rows:
        yield "| option | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _argument(param: Any) -> str:
    name: str = param.metavar or param.name.upper()
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in param.opts)
    if not param.is_flag and param.metavar:
        flags += f" {param.metavar}"
    default = "" if param.default in (None, "", False) or callable(param.default) else f"{param.default}"
    words = (param.help or "") + (f" Environment: `{param.envvar}`." if param.envvar else "")
    return f"| {flags} | {default} | {_cell(words)} |\n"


def _dedent(lines: str, by: int = 2) -> str:
    return "\n".join(line.removeprefix(" " * by) for line in lines.splitlines())


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def configuration() -> str:
    """docs/configuration.md."""
    settings = Settings()  # type: ignore[call-arg]  # mypy takes positional defaults for none
    rows = []
    for key, spec in Settings.model_fields.items():
        told = settings.explain_one(key)
        rows.append(f"| `{key}` | {told.default} | {'yes' if is_live(spec) else ''} | {_cell(told.description)} |\n")
    return CONFIGURATION_HEAD + "".join(rows) + CLIENT_TABLE


def main() -> int:
    """Writes the pages, or compares them."""
    stale = []
    for name, text in (
        ("api.md", api()),
        ("cli.md", cli()),
        ("configuration.md", configuration()),
        ("obstacles.md", obstacles()),
    ):
        path = ROOT / "docs" / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(f"docs/{name} is not what the sources say: make docs")
    print("\n".join(stale), end="\n" if stale else "", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
