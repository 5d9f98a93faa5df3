"""A report as one safetensors file: tensors, and everything else as JSON in its header. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from amortized_bayes.results.checkpoints import metadata_of
from amortized_bayes.results.durable import sha256

__all__ = ["dump", "load"]


def dump(kind: str, groups: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> bytes:
    """The file of a report of some kind: of groups of tensors, and of a header of what JSON can hold."""
    tensors = {
        f"{group}/{name}": t.contiguous().clone() for group, found in groups.items() for name, t in found.items()
    }
    text = json.dumps(header)
    metadata = {"format": _format(kind), kind: text, "sha256": _checksum(tensors, text)}
    return safetensors.torch.save(tensors, metadata)


def load(kind: str, path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what ``dump`` made: groups of tensors, without those that were empty, and the header.

    Raises:
        ValueError: no such file, or one that is truncated, changed or of another kind.
    """
    try:
        data = Path(path).read_bytes()
        tensors = safetensors.torch.load(data)
        metadata = metadata_of(data)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    if metadata.get("format") != _format(kind):
        raise ValueError(f"expected {path} to hold {_format(kind)!r}, got {metadata.get('format')!r}")
    if metadata["sha256"] != _checksum(tensors, metadata[kind]):
        raise ValueError(f"{path} was changed after it was written: its checksum does not match")
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, json.loads(metadata[kind])


def _format(kind: str) -> str:
    return f"amortized_bayes {kind} 1"


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    parts = [tensors[name].to(torch.float64).numpy().tobytes() for name in sorted(tensors)]
    return sha256(b"".join([text.encode(), *parts]))
