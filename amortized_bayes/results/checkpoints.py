"""Checkpoints of a run: arrays and metadata as safetensors, in two generations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from amortized_bayes.results.durable import save_generation
from amortized_bayes.results.encoding import one_line
from amortized_bayes.results.places import check_name, file_inside

if TYPE_CHECKING:
    import numpy as np

__all__ = ["checkpoint_names", "metadata_of", "save_tensors", "tensors_of"]


def save_tensors(
    run: Path, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    """Save the checkpoint ``name`` of the run folder ``run``, and return its path; see ``RunFolder.save_tensors``."""
    import numpy as np
    from safetensors.numpy import save

    path = file_inside(run, "checkpoints", f"{check_name('checkpoint', name)}.safetensors")
    if "__metadata__" in tensors:
        raise ValueError(f"checkpoint {name!r}: expected another name for an array than '__metadata__'")
    try:
        plain = {key: np.asarray(value, order="C") for key, value in tensors.items()}
        data = save(plain, dict(metadata or {}))
    except Exception as error:  # safetensors raises types of its own, and KeyError for a dtype
        raise ValueError(f"checkpoint {name!r}: expected arrays of numbers, got {one_line(error)}") from error
    save_generation(path, data)
    return path


def tensors_of(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of checkpoint ``name``."""
    from safetensors.numpy import load

    try:
        return load(data)
    except Exception as error:  # the checksum holds, so this was never a checkpoint
        raise ValueError(f"checkpoint {name!r} cannot be read: {one_line(error)}") from error


def metadata_of(data: bytes, what: str) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file: eight bytes give its length, then it follows as JSON.

    Raises ``ValueError`` that says of ``what``.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        texts = header.get("__metadata__", {})
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("expected texts")
    except (ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read: {one_line(error)}") from error
    return texts


def checkpoint_names(run: Path) -> set[str]:
    """Return the names of all checkpoints, including those whose file is lost and only the checksums remain."""
    folder = run / "checkpoints"
    files = [*folder.glob("[!.]*.safetensors"), *folder.glob("[!.]*.sha256")]
    return {file.stem for file in files if not file.stem.endswith(".previous")}
