"""Bytes of ``config.yaml`` and of the JSON files, and errors in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["json_bytes", "one_line", "yaml_bytes"]


def yaml_bytes(config: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``config.yaml``. Raises ``ValueError`` for what YAML cannot hold as plain values."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # a list that comes twice is written twice
            return True

    try:
        # escaped, because PyYAML writes some line ends of Unicode (U+0085) so that they come back as blanks
        return yaml.dump(dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=False, width=100).encode()
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config: expected texts, numbers, lists and mappings, got {one_line(error)}") from error


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file such as ``environment.json``. Raises ``ValueError`` for what JSON cannot hold."""
    try:
        return f"{json.dumps(content, indent=2, allow_nan=False)}\n".encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"environment: expected what JSON can hold, got {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` in one line; its type where it has none."""
    return " ".join(f"{error}".split()) or type(error).__name__
