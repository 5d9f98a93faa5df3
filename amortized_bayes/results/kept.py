"""A small copy of a finished run: what tables, figures and sentences need, without arrays, checkpoints and figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amortized_bayes.results.durable import sha256, sync_folder, write_atomically, writing
from amortized_bayes.results.encoding import json_bytes
from amortized_bayes.results.packing import PACKED, pack
from amortized_bayes.results.places import REQUIRED, check_name
from amortized_bayes.results.reading import RunReader
from amortized_bayes.results.seals import Seals, finish_record, seal

__all__ = ["keep"]


def keep(run: RunReader, into: Path, name: str, environment: Mapping[str, Any]) -> Path:
    """Write settings, rows, marks and summary of a finished run to ``into/<experiment>/<name>``, its rows packed.

    Args:
        run: which is not changed.
        into: the folder with results.
        name: name of the new run.
        environment: what stands in ``environment.json`` there.

    Returns:
        The folder of the new run. It has the time at which ``run`` finished.

    Raises:
        ValueError: ``run`` is unfinished or damaged, something stands there already, or the disk refuses.
    """
    if not run.finished:
        raise ValueError(f"expected a finished run, got {run.path}: resume it first")
    run.check()
    seals = Seals(run.path)
    files = {file: seals.read(file) for file in (*REQUIRED, "summary.csv") if file in seals.of_files}
    files["environment.json"] = json_bytes(environment)
    finished = seal("finished", {file: sha256(data) for file, data in files.items()}, finish_record(run.path)[0])
    files[PACKED] = pack(files.pop("rows.jsonl"))
    path = Path(into) / run.experiment / check_name("run", name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            raise ValueError(f"{path} already exists: remove it, or choose another name") from None
    try:
        for file, data in (files | {"FINISHED": finished}).items():
            write_atomically(path / file, data)
        with writing(path):
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path
