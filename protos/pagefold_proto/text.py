"""Text that any user may have chosen, for people: names of programs, labels, paths, what a server says.

A name may hold escape sequences that a terminal obeys, line breaks that look like another line of a log, characters
that change the direction of writing, and bytes that are no characters. Client, server and command line pass such text
through `printable` before they show it.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with all unprintable characters escaped. A result of this function comes back unchanged."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def human(nbytes: int) -> str:
    """A size for people: 64 MiB, 1.5 GiB, 12 bytes.

    Example:
        >>> human(3 << 29)
        '1.5 GiB'
    """
    if abs(nbytes) < 1024:
        return f"{nbytes} bytes"
    value, unit = float(nbytes), "bytes"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):  # noqa: B007 - read after the loop
        value /= 1024
        if abs(value) < 1023.95:
            break
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"
