"""What an option may be, said where the option is, and checked in one place: one line for each mistake.

Limits are annotations, of a dataclass's fields or of a function's parameters::

    num_draws: Annotated[int, AtLeast(1)]      capture: Literal["auto", "off"]      start: Tensor | None

``limited`` checks what is passed, type and range, before the call begins, and gives the nearest name where one is
misspelt. Types that Python cannot check (of a function's arguments, of what a mapping holds) are taken at their word.
No torch here.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from amortized_bayes.refusals import nearest, refusal, shown

__all__ = [
    "MOST",
    "Above",
    "Among",
    "AtLeast",
    "Below",
    "Count",
    "Depth",
    "Different",
    "Even",
    "Natural",
    "NotNegative",
    "Positive",
    "Seed",
    "check_names",
    "check_value",
    "limited",
]

C = TypeVar("C", bound=Callable[..., Any])
MOST = 10**8
"""Draws, steps, chains, ...: more would run for years, and is a mistake."""


class AtLeast(NamedTuple):
    """A number, or each number of a list, that is finite, not below ``least`` and not above ``most``.

    What is not held against something else, such as the memory of the machine, has a most that nobody means to reach.
    """

    least: float
    most: float = MOST

    def refuses(self, value: Any) -> str:
        """What was expected where ``value`` is out of range, else nothing."""
        if any(not self.least <= item < math.inf for item in _items(value)):
            return f"of {self.least:g} or more"
        return f"of at most {self.most:,.15g}" if any(item > self.most for item in _items(value)) else ""


class Above(NamedTuple):
    """A number, or each number of a list, that is finite and above ``bound``."""

    bound: float

    def refuses(self, value: Any) -> str:
        """What was expected where ``value`` is out of range, else nothing."""
        return f"above {self.bound:g}" if any(not self.bound < item < math.inf for item in _items(value)) else ""


class Below(NamedTuple):
    """A number below ``bound``."""

    bound: float

    def refuses(self, value: Any) -> str:
        """What was expected where ``value`` is out of range, else nothing."""
        return "" if value < self.bound else f"below {self.bound:g}"


class Even(NamedTuple):
    """An even number; ``reason`` says why."""

    reason: str

    def refuses(self, value: Any) -> str:
        """What was expected where ``value`` is odd, else nothing."""
        return f"with an even number, {self.reason}" if value % 2 else ""


class Different(NamedTuple):
    """A list of one or more values, each once; ``first`` of them in front where it is given."""

    first: Any = None

    def refuses(self, value: Any) -> str:
        """What was expected where ``value`` is empty or repeats itself, else nothing."""
        if self.first is not None and (not value or value[0] != self.first or len(set(value)) != len(value)):
            return f"that start with {self.first}, each once"
        return "" if value and len(set(value)) == len(value) else "with one or more different values"


class Among(NamedTuple):
    """One of some names; they are looked up when a value is checked, so that names may be added."""

    names: Collection[str]

    def refuses(self, value: Any) -> str:
        """What was expected where ``value`` is none of the names, else nothing."""
        return "" if value in self.names else f"among {', '.join(self.names)}"


Count = Annotated[int, AtLeast(1)]
"""How many there are."""
Depth = Annotated[int, AtLeast(0, 100)]
"""Hidden layers."""
Natural = Annotated[int, AtLeast(1, math.inf)]
"""How many there are of what has to fit into memory."""
Seed = Annotated[int, AtLeast(0, math.inf)]
Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0, math.inf)]


def limited(call: C) -> C:
    """A function, or a dataclass, that refuses what its annotations do not allow, in one line that names the option.

    Raises:
        TypeError: when it is called with a value of the wrong type, or a name that it does not know.
        ValueError: with a value out of range.

    Example:
        >>> from typing import Literal
        >>> @limited
        ... def draw(num_draws: Count = 1, *, mass: Literal["guide", "unit"] = "guide"):
        ...     return num_draws
        >>> draw(0)
        Traceback (most recent call last):
        ValueError: expected num_draws of 1 or more, got 0
        >>> draw(mass="gide")
        Traceback (most recent call last):
        ValueError: expected mass among 'guide', 'unit', got 'gide'; did you mean 'guide'?
        >>> draw(mas="unit")
        Traceback (most recent call last):
        TypeError: draw got mas=, which is no option of it; did you mean mass=?
    """
    target: Any = call
    if isinstance(target, type):  # a dataclass: its __init__ was written for it
        target.__init__ = _checked(target.__init__, target.__name__, lambda: _hints(target))
        return call
    name = target.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    return _checked(target, name, lambda: _hints(target))


def check_value(name: str, hint: Any, value: Any) -> None:
    """Refuse a value that an annotation does not allow.

    Raises:
        TypeError: it is of the wrong type.
        ValueError: it is out of range.
    """
    if found := refusal(hint, value):
        error = TypeError if found.is_type else ValueError
        raise error(f"expected {name} {found.expected}, got {shown(value)}{_hint(found.meant)}")


def check_names(call: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse options that a call does not have.

    Raises:
        TypeError: there are such.
    """
    for name in given:
        if name not in known:
            more = _hint(f"{near}=" if (near := nearest(name, known)) else "")
            raise TypeError(f"{call} got {name}=, which is no option of it{more}")


def _checked(call: Any, name: str, hints: Callable[[], dict[str, Any]]) -> Any:
    signature = inspect.signature(call)
    parameters = signature.parameters.values()
    by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = functools.cache(hints)

    @functools.wraps(call)
    def told(*args: Any, **kwargs: Any) -> Any:
        if not takes_any:
            check_names(name, kwargs, by_name)
        rules = known()
        for option, value in (*zip(by_place, args, strict=False), *kwargs.items()):
            if option in rules and option in signature.parameters:
                check_value(option, rules[option], value)
        return call(*args, **kwargs)

    return told


def _hints(call: Any) -> dict[str, Any]:
    """Annotations by name, but those of what ``*args`` and ``**kwargs`` hold."""
    found = get_type_hints(call, include_extras=True)
    if not isinstance(call, type):
        parameters = inspect.signature(call).parameters.values()
        several = {p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = {name: hint for name, hint in found.items() if name not in several}
    return found


def _hint(meant: str) -> str:
    return f"; did you mean {meant}?" if meant else ""


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
