"""A diagnosis as one safetensors file: tensors, and everything else as JSON in its header. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.results.durable import sha256, write_atomically

__all__ = ["load", "save"]

FORMAT = "amortized_bayes diagnosis 1"
BOUNDS = ("lower", "upper", "lower_error", "upper_error")
PLAIN = ("mean_gap", "gap_error", "easier", "words")


def save(found: Diagnosis, path: str | os.PathLike[str]) -> None:
    """Write ``found``; see :meth:`Diagnosis.save`."""
    tensors = {f"values/{name}": t for name, t in found.values.items()}
    tensors |= {f"errors/{name}": t for name, t in found.errors.items()}
    certificate = found.certificate
    header = {
        "certificate": None if certificate is None else {name: getattr(certificate, name) for name in PLAIN},
        "why_uncertified": found.why_uncertified,
        "num_particles": found.num_particles,
        "target_gap": found.target_gap,
        "settings": dict(found.settings),
    }
    if certificate is not None:
        tensors |= {f"certificate/{name}": getattr(certificate, name) for name in BOUNDS}
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(header)
    metadata = {"format": FORMAT, "diagnosis": text, "sha256": _checksum(tensors, text)}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata))


def load(path: str | os.PathLike[str]) -> Diagnosis:
    """Read a diagnosis; see :meth:`Diagnosis.load`."""
    try:
        data = Path(path).read_bytes()
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"expected {path} to hold {FORMAT!r}, got {metadata.get('format')!r}")
    if metadata["sha256"] != _checksum(tensors, metadata["diagnosis"]):
        raise ValueError(f"{path} was changed after it was written: its checksum does not match")
    return _assemble(tensors, json.loads(metadata["diagnosis"]))


def _assemble(tensors: dict[str, Tensor], header: dict) -> Diagnosis:
    def group(name: str) -> dict[str, Tensor]:
        return {key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{name}/")}

    plain = header.pop("certificate")
    found = Diagnosis(group("values"), group("errors"), None, **header)
    return found if plain is None else replace(found, certificate=Certificate(**group("certificate"), **plain))


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    parts = [tensors[name].to(torch.float64).numpy().tobytes() for name in sorted(tensors)]
    return sha256(b"".join([text.encode(), *parts]))
