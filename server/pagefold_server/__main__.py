"""`python -m pagefold_server`: the server alone, without the command line's other commands. It has a flag a setting."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pagefold_server import log, service, settings
from pagefold_server.errors import BadConfig

EXIT_BAD_CONFIG = 2


def main(arguments: list[str] | None = None) -> int:
    """Reads the flags, serves, and returns the exit code; see `service.run`. 2: a setting is not accepted."""
    parser = argparse.ArgumentParser(prog="python -m pagefold_server", description=service.__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    for key, spec in settings.Settings.model_fields.items():
        parser.add_argument(f"--{key.replace('_', '-')}", dest=key, metavar="VALUE", help=spec.description)
    flags = vars(parser.parse_args(arguments))
    file = flags.pop("config")
    try:
        loaded = settings.load(flags, file)
    except BadConfig as error:
        log.say(str(error))
        return EXIT_BAD_CONFIG
    return service.run(loaded)


if __name__ == "__main__":
    sys.exit(main())
