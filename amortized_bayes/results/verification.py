"""Verification of a run folder: everything in it that differs from what was recorded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from amortized_bayes.results.checkpoints import checkpoint_names
from amortized_bayes.results.durable import check_generations, sha256
from amortized_bayes.results.environment_file import parse_environment
from amortized_bayes.results.packing import is_there, packed_file
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.rows import check_mark, check_row, read_lines
from amortized_bayes.results.seals import Seals, read_file

__all__ = ["checksums", "covered", "damage", "lost_files", "problems", "refused", "without"]

_ASIDE = ("lock", "FINISHED", "STARTED")
"""Files of a run that are not results."""


def checksums(run: Path, seals: Seals) -> dict[str, str]:
    """Return the checksum of every file that a run consists of, as written to ``FINISHED``.

    Raises:
        ValueError: one is not what it was kept as: its checksum would make it pass for that.
    """
    return {file: sha256(seals.read(file)) for file in _results(run)}


def damage(run: Path) -> list[str]:
    """Return a line for each change that would give other results than those recorded.

    What a kill may leave is no damage: a torn last line, a job half done. Nor are files of a job of an unfinished run
    that are gone: it is run again.
    """
    try:
        seals = Seals(run)
    except ValueError as error:
        return [without(run, error)]
    if seals.finished:
        found = refused(seals, seals.of_files)
        added = [file for file in _results(run) if file not in seals.of_files]
        found += [f"{file}: not there when the run was finished" for file in added]
    else:
        found = refused(seals, (file for file in seals.of_files if file in REQUIRED or os.path.lexists(run / file)))
    for check in (seals.rows, lambda: parse_environment(seals.read("environment.json"), run / "environment.json")):
        try:
            check()
        except ValueError as error:
            found.append(without(run, error))
    return list(dict.fromkeys(found))


def lost_files(seals: Seals) -> dict[str, str]:
    """Return the jobs of an unfinished run with missing files, and the first such file."""
    lost = {}
    for key, mark in seals.marks.items():
        gone = [file for file in mark["files"] if not os.path.lexists(seals.run / file)]
        if gone:
            lost[key] = f"{gone[0]}: missing"
    return lost


def problems(run: Path) -> list[str]:
    """Return a line for each problem of the run folder; see ``RunFolder.verify``."""
    found = [f"{file}: missing" for file in REQUIRED if not is_there(run, file)]
    found += [*damage(run), *_strange(run)]
    for file, check in (("rows.jsonl", check_row), ("done.jsonl", check_mark)):
        try:
            data = read_file(run, file)
        except ValueError:
            continue  # said already
        bad = [line for line in read_lines(data, run / file, check) if isinstance(line, ValueError)]
        found += [without(run, error) for error in bad]
        found += [f"{file}: the last line is incomplete"] if data and not data.endswith(b"\n") else []
    for name in sorted(checkpoint_names(run)):
        found += check_generations(run / "checkpoints" / f"{name}.safetensors")
    with suppress(ValueError):  # said already
        seals = Seals(run)
        found += [] if seals.finished else lost_files(seals).values()
    return list(dict.fromkeys(found))


def covered(run: Path) -> tuple[list[str], list[str]]:
    """Return the files of a run that checksums cover, and those that they do not, such as figures."""
    seals = Seals(run)
    known = {*seals.of_files, "rows.jsonl", "done.jsonl"}
    packed = packed_file(run, "rows.jsonl")
    aside = (*_ASIDE, *([] if packed is None else [packed.name]))
    rest = [file for file, _ in _all(run) if file not in known and file not in aside]
    return sorted(known), [file for file in rest if not file.endswith(".sha256")]


def refused(seals: Seals, files: Iterable[str]) -> list[str]:
    """Return a line for each of some files that differs from what was recorded."""
    found = []
    for file in files:
        try:
            seals.read(file)
        except ValueError as error:
            found.append(without(seals.run, error))
    return found


def without(run: Path, error: ValueError) -> str:
    """The message of an error, without the path of the run in front."""
    return f"{error}".removeprefix(f"{run}/")


def _results(run: Path) -> Iterator[str]:
    yield from REQUIRED
    for pattern in ("STARTED", "summary.csv", "checkpoints/[!.]*.safetensors", "arrays/[!.]*.npz", "[!.]*.safetensors"):
        yield from (path.relative_to(run).as_posix() for path in sorted(run.glob(pattern)))


def _all(run: Path) -> Iterator[tuple[str, int]]:
    """Every file below, with its mode; links to folders are files."""
    for folder, folders, files in os.walk(run):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*files, *links]):
            path = Path(folder, name)
            yield path.relative_to(run).as_posix(), path.lstat().st_mode


def _strange(run: Path) -> list[str]:
    return [
        f"{file}: expected a plain file, got a link, pipe or device"
        for file, mode in _all(run)
        if not stat.S_ISREG(mode)
    ]
