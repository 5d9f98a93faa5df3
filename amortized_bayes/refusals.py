"""Why a value does not fit an annotation, in words: its type, its range, and the name that was probably meant.

Rules stand behind a type, ``Annotated[int, AtLeast(1)]``: whatever has ``refuses(value)``, which gives what was
expected, or nothing (:mod:`~amortized_bayes.limits`). Types that Python cannot check are taken at their word.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

__all__ = ["Refusal", "did_you_mean", "nearest", "refusal", "shown", "type_words"]


class Refusal(NamedTuple):
    """Why a value is refused.

    Args:
        expected: what was expected, in words that follow the option's name.
        meant: the name that was probably meant, if there is one.
        is_type: whether it is of the wrong type, else out of range.
    """

    expected: str
    meant: str = ""
    is_type: bool = False


def refusal(hint: Any, value: Any) -> Refusal | None:
    """Why an annotation does not allow a value; ``None`` where it does, or where nobody can say."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _of_rules(hint, value)
    if origin in (Union, UnionType):
        return _of_union(get_args(hint), value)
    if origin is Literal:
        return _of_choices(get_args(hint), value)
    if hint is float:
        if isinstance(value, Real) and not isinstance(value, bool):
            return None if math.isfinite(value) else Refusal("as a finite number")
        return Refusal("as a number", is_type=True)
    if not _fits(hint, origin, value):
        return Refusal(_words(hint), is_type=True)
    if origin in (tuple, list, Sequence):
        return next(filter(None, map(refusal, _hints_of(get_args(hint), value), value)), None)
    return None


def shown(value: Any) -> str:
    """A value in a few words, on one line.

    Example:
        >>> shown(10**18), shown("a" * 100), shown([0, 1])
        ('1,000,000,000,000,000,000', "'aaaaaaaaaaaa...aaaaaaaaaaaaa'", '[0, 1]')
    """
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value.bit_length() < 100 else f"about 1e{math.floor(math.log10(abs(value)))}"
    if isinstance(value, Real):
        return str(value)
    if not isinstance(value, type) and len(shape := tuple(getattr(value, "shape", ()))):
        return f"a {type(value).__name__} of shape {shape}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return " ".join(reprlib.repr(list(value)).split())
    if isinstance(value, str):
        return reprlib.repr(value)
    return type(value).__name__


def nearest(name: object, known: Iterable[str]) -> str:
    """The name that was probably meant, or nothing."""
    return next(iter(difflib.get_close_matches(str(name), list(known), 1)), "")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message on a name that is not known: which was probably meant, or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def type_words(hint: Any) -> str:
    """The types that an annotation allows, in words that follow an option's name.

    Example:
        >>> type_words(int | None), type_words(tuple[float, ...])
        ('as an integer or None', 'as a list of numbers')
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return type_words(get_args(hint)[0])
    if origin in (Union, UnionType):
        return _joined(map(type_words, get_args(hint)))
    if origin is Literal:
        return f"among {', '.join(map(repr, get_args(hint)))}"
    return "as a number" if hint is float else _words(hint)


def _of_rules(hint: Any, value: Any) -> Refusal | None:
    kind, *rules = get_args(hint)
    if found := refusal(kind, value):
        # a number that is not finite is told the range that it is out of
        words = "" if found.is_type else next(filter(None, (r.refuses(value) for r in _ranges(rules))), "")
        return found._replace(expected=words or found.expected)
    for rule in _ranges(rules):
        if words := rule.refuses(value):
            near = nearest(value, names) if (names := getattr(rule, "names", ())) else ""
            return Refusal(words, repr(near) if near else "")
    return None


def _ranges(rules: Iterable[Any]) -> list[Any]:
    return [rule for rule in rules if hasattr(rule, "refuses")]


def _of_union(hints: Sequence[Any], value: Any) -> Refusal | None:
    found: list[Refusal] = []
    for hint in hints:
        why = refusal(hint, value)
        if why is None:
            return None
        found.append(why)
    out_of_range = [why for why in found if not why.is_type]
    if out_of_range:
        return out_of_range[0]
    return Refusal(_joined(why.expected for why in found), is_type=True)


def _joined(words: Iterable[str]) -> str:
    first, *others = dict.fromkeys(words)
    return " or ".join([first, *(other.removeprefix("as ") for other in others)])


def _of_choices(choices: Sequence[Any], value: Any) -> Refusal | None:
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return None
    near = nearest(value, choices) if isinstance(value, str) else ""
    return Refusal(f"among {', '.join(map(repr, choices))}", repr(near) if near else "")


def _fits(hint: Any, origin: Any, value: Any) -> bool:
    """Whether a value is of a type that has no range; of types that nobody can check any value is."""
    if hint in (None, NoneType):
        return value is None
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if origin is Callable:
        return callable(value)
    if origin is tuple:
        own = isinstance(value, tuple | list) and len(_hints_of(get_args(hint), value)) == len(value)
        return own and all(map(_is_kind, _hints_of(get_args(hint), value), value))
    if origin in (Sequence, list):
        own = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return own and all(map(_is_kind, _hints_of(get_args(hint), value), value))
    if origin in (Iterable, Mapping, dict):
        return isinstance(value, origin) and not isinstance(value, str | bytes)
    if not isinstance(hint, type):
        return True
    if getattr(hint, "_is_protocol", False):
        return callable(value)
    if hasattr(hint, "_fields"):  # a named tuple, or another with the same fields
        return all(hasattr(value, field) for field in hint._fields)
    return isinstance(value, hint)


def _hints_of(hints: tuple[Any, ...], items: Sequence[Any]) -> tuple[Any, ...]:
    """The annotation of each item of a list."""
    return hints[:1] * len(items) if len(hints) == 1 or hints[1:] == (...,) else hints


def _is_kind(hint: Any, item: Any) -> bool:
    """Whether an item is of its type, in range or not."""
    found = refusal(hint, item)
    return found is None or not found.is_type


def _words(hint: Any) -> str:
    """A type in words that follow an option's name."""
    plain = {bool: "as True or False", int: "as an integer", str: "as a string", NoneType: "as None", None: "as None"}
    if isinstance(hint, type | None) and hint in plain:
        return plain[hint]
    origin = get_origin(hint)
    if origin in (tuple, Sequence, list):
        inner = {_one(part) for part in get_args(hint) if part is not ...}
        return f"as a list of {' and '.join(sorted(inner))}"
    if origin in (Iterable, Mapping, dict):
        return "as a mapping" if origin is not Iterable else "as a list"
    if origin is Callable or getattr(hint, "_is_protocol", False):
        name = getattr(hint, "__name__", "")
        return "as a Pyro program, a function or a module" if name in ("Model", "Guide") else "as a function"
    name = getattr(hint, "__name__", str(hint))
    return f"as {'an' if name[0] in 'AEIO' else 'a'} {name}"


def _one(hint: Any) -> str:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    names = {int: "integers", float: "numbers", str: "strings", bool: "True or False"}
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return names.get(kind, getattr(kind, "__name__", "values")) if isinstance(kind, type) else "values"
