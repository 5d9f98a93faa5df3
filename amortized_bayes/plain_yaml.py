"""YAML as settings need it: texts, numbers, lists and mappings, written out in full.

Anchors, aliases and merge keys let a short file stand for an endless one, tags ask for objects, and of a key that is
there twice one value would be lost without a word: all are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["MOST_BYTES", "parse_yaml"]

MOST_BYTES = 200_000
"""Of a file of settings; a run's own has about a thousand."""
DEEPEST = 20
"""Lists and mappings in each other; the time to read them grows with the square of it."""


def parse_yaml(data: bytes, source: Path | str) -> Any:
    """What the bytes of a YAML file say.

    Args:
        data: the bytes.
        source: where they are from, for errors.

    Raises:
        ValueError: in one line, for what is no YAML in UTF-8, too long, or has tags, aliases, merge keys, or a key
            twice.
    """
    import yaml

    if len(data) > MOST_BYTES:
        raise ValueError(f"{source}: expected a YAML file of at most {MOST_BYTES:,} bytes, got {len(data):,}")
    try:
        text = data.decode("utf-8-sig")
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        _check_events(events)
        return yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: expected a YAML text in UTF-8, got byte {error.start} that is none") from error
    except yaml.MarkedYAMLError as error:
        place = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{source}{place}: expected YAML, got {_one_line(error.problem)}") from error
    except Exception as error:  # the reader, and what constructors of dates and tags raise: no closed list
        raise ValueError(f"{source}: expected YAML, got {_one_line(error) or type(error).__name__}") from error


def _check_events(events: Any) -> None:
    import yaml

    open_keys = list[_Keys | None]()
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"an anchor or alias in line {line} (settings are written out in full)")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise ValueError(f"a merge key in line {line} (settings are written out in full)")
        if isinstance(event, yaml.NodeEvent) and open_keys and (keys := open_keys[-1]) is not None:
            keys.take(getattr(event, "value", None), line)
        if isinstance(event, yaml.CollectionStartEvent):
            open_keys.append(_Keys() if isinstance(event, yaml.MappingStartEvent) else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_keys.pop()
        if len(open_keys) > DEEPEST:
            raise ValueError(f"lists and mappings {len(open_keys)} deep in line {line}")


class _Keys:
    """The keys of a mapping that is being read: every second node in it is one."""

    def __init__(self) -> None:
        self.known, self.is_key = set[str](), True

    def take(self, value: str | None, line: int) -> None:
        """Take in a node; ``value`` is that of a scalar."""
        if self.is_key and value in self.known:
            raise ValueError(f"the key {value!r} a second time in line {line}")
        if self.is_key and value is not None:
            self.known.add(value)
        self.is_key = not self.is_key


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
