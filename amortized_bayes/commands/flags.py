"""A command line as a list of words: which flags were given, with which values."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["given_flags", "value_of", "without_flags", "words_about"]


def value_of(given: Sequence[str], flag: str) -> str | None:
    """The value of a flag on the command line; ``None`` if it was not given.

    Raises:
        ValueError: it was given twice.
    """
    values = []
    for i, argument in enumerate(given):
        if argument == flag and i + 1 < len(given):
            values.append(given[i + 1])
        elif argument.startswith(f"{flag}="):
            values.append(argument.split("=", 1)[1])
    if len(values) > 1:
        raise ValueError(f"expected {flag} once, got it {len(values)} times: {', '.join(values)}")
    return values[0] if values else None


def given_flags(given: Sequence[str]) -> list[str]:
    """Names of the flags on a command line, without dashes in front; that of ``--no-flag`` is ``flag``."""
    names = [argument[2:].split("=")[0].replace("_", "-") for argument in given if argument.startswith("--")]
    return [name.removeprefix("no-") for name in names]


def words_about(given: Sequence[str], others: Collection[str]) -> list[str]:
    """The words of a command line without its command, and without some flags and their values.

    Example:
        >>> words_about(["gaps", "latest", "--points", "9", "--out", "runs"], {"out"})
        ['latest', '--points', '9']
    """
    kept, keeps = [], True
    for place, argument in enumerate(given):
        if argument.startswith("--"):
            (name,) = given_flags([argument])
            keeps = name.replace("-", "_") not in others
        if keeps and (place or argument.startswith("-")):
            kept.append(argument)
    return kept


def without_flags(given: Sequence[str], flags: Collection[str]) -> list[str]:
    """A command line without some flags that take one value each, and without these values.

    Example:
        >>> without_flags(["gaps", "--out", "runs", "latest", "--data-dir=images"], {"out", "data-dir"})
        ['gaps', 'latest']
    """
    kept, is_value = [], False
    for argument in given:
        if not is_value and argument.startswith("--") and given_flags([argument])[0] in flags:
            is_value = "=" not in argument
        elif is_value:
            is_value = False
        else:
            kept.append(argument)
    return kept
