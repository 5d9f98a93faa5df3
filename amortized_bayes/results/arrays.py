"""The arrays of a run, which figures need, as compressed numpy files. Nothing is ever unpickled."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from amortized_bayes.numpy_files import read_numpy
from amortized_bayes.results.durable import write_atomically
from amortized_bayes.results.encoding import one_line
from amortized_bayes.results.places import check_name, file_inside

if TYPE_CHECKING:
    import numpy as np

__all__ = ["arrays_of", "save_arrays"]


def save_arrays(run: Path, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
    """Save ``arrays/<name>.npz`` of the run folder ``run``, and return its path; see ``RunFolder.save_arrays``."""
    import numpy as np

    path = file_inside(run, "arrays", f"{check_name('arrays', name)}.npz")
    plain = {key: np.asarray(value) for key, value in arrays.items()}
    bad = [key for key, value in plain.items() if value.dtype.hasobject or key in ("file", "allow_pickle")]
    if bad:
        raise ValueError(f"arrays {name!r}: expected arrays of numbers or texts, got {bad[0]!r}")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **plain)  # pyright: ignore[reportArgumentType]
    write_atomically(path, buffer.getvalue())
    return path


def arrays_of(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of an ``.npz`` file; ``path`` is named in errors."""
    try:
        return read_numpy(io.BytesIO(data))
    except Exception as error:  # zip, zlib and the npy header each raise types of their own
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
