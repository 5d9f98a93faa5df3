"""The checkpoint of a job that is still running, in two generations; it is removed when the job ends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from amortized_bayes.results.durable import sync_folder, writing

__all__ = ["has_unfinished", "remove_unfinished", "unfinished_name"]

ENDING = ".unfinished"
FILES = (".safetensors", ".previous.safetensors")


def unfinished_name(job: str) -> str:
    """Name of the checkpoint of a running job."""
    return f"{job}{ENDING}"


def has_unfinished(run: Path, job: str) -> bool:
    """Whether a job has saved something. A kill during the first save may leave only a checksum."""
    name = unfinished_name(job)
    return any((run / "checkpoints" / f"{name}{ending}").exists() for ending in FILES)


def remove_unfinished(run: Path, job: str) -> None:
    """Remove what a job has saved, the newest first: a kill in between leaves something that loads, or nothing."""
    name, folder = unfinished_name(job), run / "checkpoints"
    files = [folder / f"{name}{ending}" for ending in (*FILES, ".sha256")]
    if not any(file.exists() for file in files):
        return
    with writing(files[0]):
        for file in files:
            with suppress(FileNotFoundError):
                file.unlink()
        sync_folder(folder)
