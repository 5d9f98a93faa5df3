"""What the tests of run folders share: a row, a run, a disk that is full."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import amortized_bayes
from amortized_bayes.results import RunFolder, durable, seals
from amortized_bayes.types import ROW_FIELDS, Row

ROOT = Path(amortized_bayes.__file__).parents[1]
FACTORS = {"dataset": "digits", "guide": "amortized", "k": 4, "seed": 0}


def row(**changes: Any) -> Row:
    """A row; changes of what is no field of a row are factors, and ``None`` takes one away."""
    fields: dict[str, Any] = {"experiment": "widths", "step": 10, "seconds": 0.5, "metric": "elbo", "value": -1.25}
    factors: dict[str, Any] = {**FACTORS, **{name: changes.pop(name) for name in [*changes] if name not in ROW_FIELDS}}
    fields |= {"factors": {name: value for name, value in factors.items() if value is not None}}
    return Row(**(fields | changes))


def create(out: Path, name: str | None = "run", experiment: str = "widths") -> RunFolder:
    return RunFolder.create(out, experiment, {"seed": 0, "widths": (1, 2)}, {"device": "cpu"}, name)


def reseal(run: Path, **more: str) -> None:
    """Let a finished run pass for one that was kept as it is now."""
    known = json.loads((run / "FINISHED").read_bytes())["sha256"]
    sums = {file: durable.sha256((run / file).read_bytes()) for file in known if (run / file).exists()}
    (run / "FINISHED").write_bytes(seals.seal("finished", sums | more))


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "write", refuse)
