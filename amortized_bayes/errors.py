"""Errors raised inside Pyro programs."""

from __future__ import annotations

__all__ = ["ProgramError"]


class ProgramError(ValueError):
    r"""What is wrong with a program, in one line: Pyro raises it anew with the shapes of its trace, which are left out.

    Example:
        >>> ProgramError("expected one thing\nTrace Shapes: ...")
        ProgramError('expected one thing')
    """

    def __init__(self, words: str) -> None:
        super().__init__(words.split("\n", 1)[0])
