"""Whether a run folder is whole: the checksums of a finished run, and everything that is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from amortized_bayes.results.checkpoints import checkpoint_names
from amortized_bayes.results.durable import check_generations, sha256
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.rows import bad_lines, check_mark, check_row

__all__ = ["checksums", "problems", "wrong_files"]


def checksums(run: Path) -> dict[str, str]:
    """Return the checksum of every file that a finished run consists of, as written to ``FINISHED``."""
    return {file: sha256((run / file).read_bytes()) for file in _results(run)}


def problems(run: Path) -> list[str]:
    """Return a line for each thing that is wrong with the run folder; see ``RunFolder.verify``."""
    found = [f"{file}: missing" for file in REQUIRED if not (run / file).is_file()]
    for file, check in (("rows.jsonl", check_row), ("done.jsonl", check_mark)):
        found += bad_lines(run / file, check)
    for name in checkpoint_names(run):
        found += check_generations(run / "checkpoints" / f"{name}.safetensors")
    if not (run / "FINISHED").exists():
        return found
    try:
        expected = dict(json.loads((run / "FINISHED").read_bytes())["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return [*found, "FINISHED: cannot be read"]
    return list(dict.fromkeys([*found, *wrong_files(run, expected)]))


def wrong_files(run: Path, expected: Mapping[str, str]) -> list[str]:
    """Return a line for each file that is missing, or has another checksum than it was kept with."""
    found = []
    for file, checksum in expected.items():
        if not (run / file).is_file():
            found.append(f"{file}: missing")
        elif sha256((run / file).read_bytes()) != checksum:
            found.append(f"{file}: changed since it was written")
    return found


def _results(run: Path) -> Iterator[str]:
    yield from (*REQUIRED, "summary.csv")
    for path in sorted(
        [*run.glob("checkpoints/[!.]*.safetensors"), *run.glob("arrays/[!.]*.npz"), *run.glob("[!.]*.safetensors")]
    ):
        yield path.relative_to(run).as_posix()
