"""The recorded checksums of a run's files, and the one way to read such a file.

::

    STARTED      of config.yaml and environment.json, written when the run is made
    done.jsonl   in the mark of each job: of its rows, of its files, and of the mark itself
    FINISHED     of every file, written when the run is over; from then on it alone counts

A file is read once, and its bytes are compared before anything is made of them. What is still being written has no
checksum yet: rows of a job that is not done, which a resume drops, and its checkpoints, which have their own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amortized_bayes.plain_files import check_folder, read_plain
from amortized_bayes.results.durable import sha256
from amortized_bayes.results.encoding import json_bytes
from amortized_bayes.results.packing import MOST_BYTES, packed_file, unpack
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.rows import Line, check_mark, check_row, good_lines, rows_checksums

__all__ = ["FORMAT", "Seals", "finish_record", "read_file", "read_kept", "read_seal", "seal"]

FORMAT = 2
"""Format of run folders. Finished runs of format 1, which lack this number, are read too."""
CHANGED = "changed since it was written"
_MOST_BYTES = 10_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def seal(when: str, checksums: Mapping[str, str], time: str = "") -> bytes:
    """The bytes of ``STARTED`` or ``FINISHED``; ``when`` names the time in it, UTC in ISO form, by default now."""
    content = {when: time or datetime.now(UTC).isoformat(), "format": FORMAT, "sha256": dict(checksums)}
    return json_bytes(content | {"seal": _own(content)})


def read_seal(run: Path, name: str) -> dict[str, str]:
    """Return the checksums in ``STARTED`` or ``FINISHED``, by file.

    Raises:
        ValueError: it is missing, damaged, or of a newer version.
    """
    path = run / name
    data = read_file(run, name, _MOST_BYTES)
    try:
        content = json.loads(data)
        checksums, number = content["sha256"], content.get("format", 1)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read") from error
    if type(number) is not int or number > FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT} or older, got {number!r}: a newer version wrote it")
    expected = REQUIRED if name == "FINISHED" else REQUIRED[:2]
    good = isinstance(checksums, dict) and all(
        isinstance(value, str) and _SHA256.fullmatch(value) and _is_inside(file) for file, value in checksums.items()
    )
    if not good or not set(expected) <= checksums.keys():
        raise ValueError(f"{path}: cannot be read")
    if (number > 1 or "seal" in content) and content.get("seal") != _own(content):
        raise ValueError(f"{path}: {CHANGED}")
    return checksums


def finish_record(run: Path) -> tuple[str, dict[str, str]]:
    """Return when a run finished, UTC in ISO form, and the checksums recorded then; empty for an unfinished run.

    Raises:
        ValueError: as :func:`read_seal`.
    """
    if not os.path.lexists(run / "FINISHED"):
        return "", {}
    checksums = read_seal(run, "FINISHED")
    return str(json.loads(read_file(run, "FINISHED", _MOST_BYTES)).get("finished", "")), checksums


def _own(content: Mapping[str, Any]) -> str:
    """The checksum of a seal itself."""
    plain = {name: value for name, value in content.items() if name != "seal"}
    return sha256(json.dumps(plain, sort_keys=True).encode())


def read_file(run: Path, file: str, most: int | None = None) -> bytes:
    """Return the bytes of a file of a run, unchecked, but of a plain file in plain folders of the run.

    Of rows that are packed, what they unpack to.

    Raises:
        ValueError: that it is not, cannot be read, or has more than ``most`` bytes.
    """
    path = run / file
    try:
        for folder in list(Path(file).parents)[:-1]:
            check_folder(run / folder)
        if (packed := packed_file(run, file)) is not None:
            path = packed
            return unpack(read_plain(path, most=MOST_BYTES), path)
        return read_plain(path, most=most)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def read_kept(run: Path, file: str, checksums: Mapping[str, str]) -> bytes:
    """Return the bytes of a file of a run, which have the checksum that is among ``checksums``, if one is.

    Raises:
        ValueError: they have another, or the file cannot be read.
    """
    data = read_file(run, file)
    if file in checksums and sha256(data) != checksums[file]:
        raise ValueError(f"{run / file}: {CHANGED}")
    return data


class Seals:
    """The checksums that the files of a run must have, as they are known now.

    Args:
        run: its folder.

    Raises:
        ValueError: they cannot be read.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.finished = os.path.lexists(run / "FINISHED")
        self.of_files = read_seal(run, "FINISHED" if self.finished else "STARTED")
        self.marks: dict[str, dict[str, Any]] = {}
        for line in good_lines(self.read("done.jsonl"), run / "done.jsonl", check_mark):
            mark = line.content
            if not self.finished and "sha256" not in mark:
                raise ValueError(f"{run / 'done.jsonl'}: expected marks with checksums, got one of an older version")
            if not all(map(_is_inside, mark["files"])):
                raise ValueError(f"{run / 'done.jsonl'}: expected files of the run in the mark of {mark['job']}")
            self.marks[mark["job"]] = mark
            if not self.finished:
                self.of_files |= mark["files"]

    def read(self, file: str) -> bytes:
        """Return the bytes of a file of the run, which are those that it was kept with.

        Raises:
            ValueError: they are not, or it cannot be read.
        """
        if self.finished and file not in self.of_files:
            raise ValueError(f"{self.run / file}: not there when the run was finished")
        return read_kept(self.run, file, self.of_files)

    def rows(self, job: str | None = None) -> list[Line]:
        """Return the lines of ``rows.jsonl``, of which those of each job that is done are those that it was kept with.

        With the key of a ``job``, its own lines alone are returned, and compared.

        Raises:
            ValueError: they are not, or a line is no row.
        """
        lines = good_lines(self.read("rows.jsonl"), self.run / "rows.jsonl", check_row, job)
        changed = [] if self.finished else self.changed_rows(lines)
        if changed and job in (None, *changed):
            raise ValueError(f"{self.run / 'rows.jsonl'}: rows of {job or changed[0]} {CHANGED}")
        return lines

    def changed_rows(self, lines: list[Line]) -> list[str]:
        """Return the jobs whose rows differ from those in their marks."""
        found, nothing = rows_checksums(lines), sha256(b"")
        return [job for job, mark in self.marks.items() if found.get(job, nothing) != mark["rows_sha256"]]


def _is_inside(file: Any) -> bool:
    """Whether a name is the path of a file inside a run."""
    parts = Path(file).parts if isinstance(file, str) and "\0" not in file else ()
    return bool(parts) and not Path(file).is_absolute() and ".." not in parts
