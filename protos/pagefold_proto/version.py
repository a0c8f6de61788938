"""The library's version; pyproject.toml says the same, and a test compares them."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
