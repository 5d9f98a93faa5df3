"""Valid names of files in a run folder, and the paths of these files."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from amortized_bayes.plain_files import check_folder
from amortized_bayes.results.durable import sync_folder, writing

__all__ = ["REQUIRED", "check_name", "file_inside", "saved_file"]

REQUIRED = ("config.yaml", "environment.json", "rows.jsonl", "done.jsonl")
"""The files that every run has from its start."""

_NAME = re.compile(r"(?!.*\.previous$)[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,149}", re.ASCII)


def check_name(what: str, name: str) -> str:
    """Return ``name`` if a file or folder can have it. Raises ``ValueError``, which says ``what`` it names."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "latest":
        raise ValueError(f"expected a name for the {what} of letters, digits and _.=+- (at most 150), got {name!r}")
    return name


def file_inside(run: Path, folder: str, file: str) -> Path:
    """Return the path of ``file`` in ``folder`` of ``run``; the folder is created if needed."""
    path = run / folder / file
    check_folder(path.parent)
    if not path.parent.is_dir():
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            sync_folder(run)
    return path


def saved_file(run: Path, folder: str, name: str, names: Collection[str], ending: str) -> Path:
    """Return the path of what was saved as ``name``. Raises ``ValueError`` where it is not among ``names``."""
    if name not in names:
        there = ", ".join(sorted(names)) or "nothing"
        raise ValueError(f"{run / folder} holds no {name!r}: expected one of {there}")
    return run / folder / f"{name}.{ending}"
