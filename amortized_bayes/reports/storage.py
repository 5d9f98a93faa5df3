"""A report as one safetensors file: tensors, and everything else as JSON in its header. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from amortized_bayes.plain_files import read_plain
from amortized_bayes.results.checkpoints import metadata_of
from amortized_bayes.results.durable import sha256
from amortized_bayes.results.encoding import one_line

__all__ = ["dump", "load"]

_BLANK = "0" * 64
"""Stands for the checksum in the bytes that it is of: it covers every bit of the file, names and shapes too."""


def dump(kind: str, groups: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> bytes:
    """The file of a report of some kind: of groups of tensors, and of a header of what JSON can hold."""
    tensors = {
        f"{group}/{name}": t.contiguous().clone() for group, found in groups.items() for name, t in found.items()
    }
    metadata = {"format": _format(kind), kind: json.dumps(header), "sha256": _BLANK}
    data = safetensors.torch.save(tensors, metadata)
    return data.replace(_BLANK.encode(), sha256(data).encode(), 1)


def load(kind: str, path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what ``dump`` made: groups of tensors, without those that were empty, and the header.

    Raises:
        ValueError: no such file, or one that is truncated, changed or of another kind.
    """
    try:
        data = read_plain(Path(path), links=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    metadata = metadata_of(data, f"{path} is truncated or no safetensors file: it")
    if metadata.get("format") != _format(kind):
        raise ValueError(f"expected {path} to hold {_format(kind)!r}, got {metadata.get('format')!r}")
    checksum = metadata.get("sha256", "")
    if sha256(data.replace(checksum.encode(), _BLANK.encode(), 1)) != checksum:
        raise ValueError(f"{path} was changed after it was written: its checksum does not match")
    try:
        tensors, header = safetensors.torch.load(data), json.loads(metadata[kind])
    except Exception as error:  # the checksum holds, so it was never a report
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, header


def _format(kind: str) -> str:
    return f"amortized_bayes {kind} 2"
