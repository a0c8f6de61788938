"""Keeps frames from taking more memory than there is.

A frame is made before the pages that it replaces are given back. Where memory is short, in a container that is full,
say, the kernel would end a process for that; so there few are made ahead, and merging makes room.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pagefold_core import spare_pages

from pagefold_server.engine.interface import Engine, EngineOptions

_LEAST: Final = 16  # pages proposed to a client, however little memory there is
_FRESH: Final = 0.05  # seconds for which a look at the memory that is free holds; it takes half a millisecond


class FrameBound:
    """Lowers `max_outstanding` of an engine while memory is short.

    Args:
        engine: to tell.
        options: as it was told.
    """

    def __init__(self, engine: Engine, options: EngineOptions) -> None:
        self._engine = engine
        self._options = options
        self._outstanding = options.max_outstanding  # as the engine was told last

    def configure(self, options: EngineOptions) -> None:
        """Tells the engine other options."""
        self._options, self._outstanding = options, options.max_outstanding
        self._engine.configure(options)

    def adapt(self, clients: int) -> None:
        """Adapts the bound to the memory that is free now, for `clients` clients."""
        spare, most = spare_pages(_FRESH), self._options.max_outstanding
        if spare is not None:
            most = max(min(most, spare // max(1, clients)), min(most, _LEAST))
        if most != self._outstanding:
            self._outstanding = most
            self._engine.configure(replace(self._options, max_outstanding=most))
