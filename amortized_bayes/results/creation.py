"""A new run folder: its name, and the files that it starts with."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amortized_bayes.results.durable import sha256, sync_folder, write_atomically, writing
from amortized_bayes.results.encoding import json_bytes, yaml_bytes
from amortized_bayes.results.places import REQUIRED, check_name
from amortized_bayes.results.seals import seal

__all__ = ["create_run"]


def create_run(
    out: Path, experiment: str, config: Mapping[str, Any], environment: Mapping[str, Any], name: str | None
) -> Path:
    """Make the folder of a new run with its first files, or nothing at all; see ``RunFolder.create``."""
    now = datetime.now(UTC)
    files = {
        "config.yaml": yaml_bytes(config),
        "environment.json": json_bytes({"started": now.isoformat(), **environment}),
        "rows.jsonl": b"",
        "done.jsonl": b"",
    }
    files["STARTED"] = seal("started", {file: sha256(files[file]) for file in REQUIRED[:2]})  # last: it is whole
    parent = Path(out) / check_name("experiment", experiment)
    default = f"{now:%Y%m%d-%H%M%S}-{sha256(files['config.yaml'])[:8]}"
    path = _make_folder(parent, check_name("run", default if name is None else name), unique=name is None)
    try:
        for file, data in files.items():
            write_atomically(path / file, data)
        with writing(path):
            for folder in (parent, parent.parent, parent.parent.parent):
                sync_folder(folder)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def _make_folder(parent: Path, name: str, unique: bool) -> Path:
    """Make ``parent/name``, or with ``unique`` the first of ``name``, ``name-2``, ... that is not there."""
    with writing(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                if not unique:
                    break
            else:
                return path
    if (parent / name / "FINISHED").exists():
        raise ValueError(f"{parent / name} is a finished run: expected another name")
    raise ValueError(f"{parent / name} already exists: resume it, or choose another name")
