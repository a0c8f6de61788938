"""Text from strangers, for people: names of programs, labels, paths, what a server says.

A name may hold escape sequences that a terminal obeys, line breaks that look like another line of a log, characters
that turn the direction of writing, and bytes that are no characters. Client, server and command line show such text
by this function, and nothing else.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything escaped that is not to be seen as it is; what this returned before is left alone."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
