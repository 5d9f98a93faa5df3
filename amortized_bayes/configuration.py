"""Frozen dataclasses as the only configuration: the same object is flags, a YAML file, and what is kept with a result.

``load_config(cls, path)`` reads a YAML mapping into ``cls``. The annotations of ``cls`` say what each key may hold::

    bool  int  float  str  Path  Literal[...]  tuple[int, ...]  tuple[int, float]  X | None  a dataclass of its own

and nothing in the file names a class, so nothing in it can choose what is imported or called. Integers are taken for
floats, but not booleans for integers. Ranges are annotations, ``Annotated[int, AtLeast(1)]``, checked in one place by
every class derived from ``Settings``.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints  # noqa: F401 (Annotated is for the example)

from amortized_bayes.limits import Above, AtLeast, Different, Even, check_value
from amortized_bayes.plain_files import read_plain
from amortized_bayes.plain_yaml import MOST_BYTES, parse_yaml
from amortized_bayes.refusals import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Above",
    "AtLeast",
    "Different",
    "Even",
    "SettingError",
    "Settings",
    "flag",
    "load_config",
    "parse_config",
    "to_mapping",
]

Config = TypeVar("Config", bound="DataclassInstance")

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", re.ASCII)
"""Floats that YAML 1.1 takes for texts: ``1e-3`` has no dot there."""


class SettingError(ValueError):
    """A configuration that cannot be run."""


class Settings:
    """What frozen dataclasses of settings share: each field's annotation says which values it may have.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config(Settings):
        ...     epochs: Annotated[int, AtLeast(1)] = 10
        >>> Config(epochs=0)
        Traceback (most recent call last):
        amortized_bayes.configuration.SettingError: expected --epochs of 1 or more, got 0
    """

    def __post_init__(self) -> None:
        """Check every field's range, then what depends on several fields."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            try:
                check_value(flag(name), hint, getattr(self, name))
            except (TypeError, ValueError) as error:
                raise SettingError(str(error)) from None
        self.check()

    def check(self) -> None:
        """Raise ``SettingError`` where fields contradict each other."""


def flag(name: str) -> str:
    """Flag of a field on the command line."""
    return "--" + name.replace("_", "-")


def load_config(cls: type[Config], path: Path | str, base: Config | None = None) -> Config:
    """Read a YAML mapping into a new ``cls``; keys that are not there are as in ``base``, or keep their defaults.

    Raises ``ValueError`` of one line, with the path: for a file that cannot be read or is no mapping, a key that is
    unknown or missing, a value of the wrong type, and what ``cls`` itself refuses.
    """
    try:
        data = read_plain(Path(path), links=True, most=MOST_BYTES)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_config(cls, data, path, base)


def parse_config(cls: type[Config], data: bytes, source: Path | str, base: Config | None = None) -> Config:
    """Make a ``cls`` of the bytes of a YAML file, read from ``source``; see :func:`load_config`."""
    return _build(cls, base, parse_yaml(data, source), str(source), "")


def to_mapping(config: DataclassInstance) -> dict[str, Any]:
    """Return ``config`` as texts, numbers, lists and mappings: what YAML and JSON hold."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(cls: type[Config], base: Config | None, mapping: Any, source: str, prefix: str) -> Config:
    """Make a ``cls``. Keys that are not in ``mapping`` come from ``base``, or from the defaults of ``cls``."""
    if not isinstance(mapping, Mapping):
        where = f"{source}: {prefix.rstrip('.')}" if prefix else source
        raise ValueError(f"{where}: expected a mapping of keys to values, got {_shown(mapping)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise ValueError(f"{source}: unknown key {reprlib.repr(f'{prefix}{key}')}{_hint(key, fields)}")
        default = getattr(base, key) if base is not None else _default(fields[key])
        values[key] = _convert(hints[key], default, value, source, f"{prefix}{key}")
    missing = [name for name, field in fields.items() if base is None and name not in values and _required(field)]
    if missing:
        raise ValueError(f"{source}: expected a value for {prefix}{missing[0]}, got none")
    try:
        return cls(**values) if base is None else dataclasses.replace(base, **values)
    except ValueError as error:
        raise ValueError(f"{source}: {prefix}{_one_line(error)}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _convert(hint: Any, default: Any, value: Any, source: str, key: str) -> Any:
    """Make ``value`` what ``hint`` says. ``default`` is what a nested dataclass starts from."""
    if get_origin(hint) in (Union, UnionType):
        return _convert_union(get_args(hint), default, value, source, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else _convert_nested(hint, default, value, source, key)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return _convert_items(get_args(hint), value, source, key)
    if get_origin(hint) is Literal:
        matches = [choice for choice in get_args(hint) if type(value) is type(choice) and value == choice]
    elif hint in (bool, int, str, NoneType):
        matches = [value] if type(value) is hint else []
    elif hint is float:
        matches = _as_float(value)
    elif hint is Path:
        matches = [Path(value)] if isinstance(value, str | Path) and "\0" not in str(value) else []
    elif get_origin(hint) is tuple:
        matches = []
    else:
        raise TypeError(f"{key}: the annotation {hint} is none that a configuration can have")
    if not matches:
        raise ValueError(f"{source}: {key}: expected {_words(hint)}, got {_shown(value)}")
    return matches[0]


def _convert_nested(cls: type[Any], default: Any, value: Any, source: str, key: str) -> Any:
    return _build(cls, default if isinstance(default, cls) else None, value, source, f"{key}.")


def _convert_items(hints: tuple[Any, ...], items: list[Any] | tuple[Any, ...], source: str, key: str) -> Any:
    if hints[1:] == (...,):
        hints = hints[:1] * len(items)
    if len(hints) != len(items):
        raise ValueError(f"{source}: {key}: expected {len(hints)} values, got {len(items)}")
    pairs = enumerate(zip(hints, items, strict=True))
    return tuple(_convert(hint, None, item, source, f"{key}[{place}]") for place, (hint, item) in pairs)


def _convert_union(hints: tuple[Any, ...], default: Any, value: Any, source: str, key: str) -> Any:
    if value is None and NoneType in hints:
        return None
    others = [hint for hint in hints if hint is not NoneType]
    for hint in sorted(others, key=lambda hint: hint is not type(value)):  # 1 is an int before it is a float
        try:
            return _convert(hint, default, value, source, key)
        except ValueError:
            if len(others) == 1 and value is not None:
                raise
    raise ValueError(f"{source}: {key}: expected {' or '.join(map(_words, hints))}, got {_shown(value)}")


def _as_float(value: Any) -> list[float]:
    """Return ``value`` as a float, in a list that is empty where it is none."""
    if type(value) not in (int, float) and not (isinstance(value, str) and _EXPONENT.fullmatch(value)):
        return []
    try:
        return [float(value)]
    except OverflowError:
        return []


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return f"a list of {_words(parts[0]) if parts[1:] == (...,) else ', '.join(map(_words, parts))}"
    return "null" if hint is NoneType else getattr(hint, "__name__", str(hint))


def _shown(value: Any) -> str:
    return "null" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"


def _hint(key: Any, known: Collection[str]) -> str:
    near = nearest(key, known)
    return f", did you mean {near!r}?" if near else f", expected one of {', '.join(known)}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
