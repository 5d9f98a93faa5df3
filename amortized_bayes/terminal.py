r"""What a terminal is sent: text, and none of the commands that a name or a file may have in it.

An escape sequence moves the cursor, changes the title, or hides what was printed before; marks of direction turn words
around. In what a command prints they are written out, as ``\x1b`` and ``\u202e``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

__all__ = ["PlainStream", "close_quietly", "open_missing", "plain", "plain_output"]

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks of direction, line ends of Unicode, and bytes that are no text."""


def plain(text: str) -> str:
    r"""Return a text with whatever is a command to a terminal written out.

    Example:
        >>> plain("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    return _COMMANDS.sub(lambda found: _written_out(ord(found[0])), text)


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class PlainStream:
    """A stream to which everything is written :func:`plain`; all else is as with the stream behind it.

    Rich, whose colours and bars are commands, looks for ``rich_proxied_file`` and writes there; what it is given must
    be plain already.
    """

    def __init__(self, raw: TextIO) -> None:
        self.rich_proxied_file = raw

    def write(self, text: str) -> int:
        """Write a text."""
        self.rich_proxied_file.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def plain_output() -> Iterator[None]:
    """Have all that is printed in the block be :func:`plain`, and what the encoding cannot hold written out.

    Raises:
        OSError: it cannot be printed, which Python would find out too late to say so.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, errors = (cast("TextIO", PlainStream(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(errors):
        yield
        out.flush()


def open_missing() -> None:
    """Open the standard streams that are closed on nothing.

    Else the next file that is opened gets the number of one, and whatever is printed goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", errors="backslashreplace", closefd=False))  # noqa: SIM115  it stays open


def close_quietly() -> None:
    """Let what cannot be printed go: what reads it, such as ``head``, is gone, or the disk is full."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())
                os.close(nothing)
