"""A job as it travels to another machine: with what it reads, as files, and nothing else of its run.

A parcel is unpacked to a folder of results that holds this job's share: the settings of its run, results of the jobs
that it runs after, the trained models that it reads, and what it had kept of itself. All of it is checked there as it
is here, by the checksums that came along. Data sets do not travel: they are found on each machine, and compared.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from amortized_bayes.data import DataUnavailable
from amortized_bayes.experiments.changes import differences
from amortized_bayes.experiments.plans import Plan, checksums
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.trained import copy_name, model_key
from amortized_bayes.results import RunFolder
from amortized_bayes.results.durable import release_lock, take_lock
from amortized_bayes.results.excerpts import excerpt, finished_excerpt

__all__ = ["Parcel", "check_data", "own_folder", "pack", "unpacked"]


class Parcel(NamedTuple):
    """A job with what it reads.

    Args:
        run: the folder of its run, in a folder of results.
        job: its key.
        files: bytes by name, in a folder of results.
        labels: by data set, checksums of what its labels come from; ``None`` where that is not there.
    """

    run: str
    job: str
    files: Mapping[str, bytes]
    labels: Mapping[str, Mapping[str, str] | None]


def pack(plan: Plan, key: str) -> Parcel:
    """The job of a plan with this key, with all that it may ask its lab for.

    Raises:
        ValueError: something of it is damaged.
    """
    folder, lab = plan.folder, plan.lab
    assert folder is not None
    (job,) = (job for job in plan.jobs if job.key == key)
    place = _place(folder)
    files = {f"{place}/{name}": data for name, data in excerpt(folder.path, job.after, key).items()}
    models = {config: found for config in job.needs if (found := lab.find(config)) is not None}
    copies = {found.path: {copy_name(epoch) for epoch in config.keep_epochs} for config, found in models.items()}
    for path, names in [*copies.items(), *((lab.run_named(name), set[str]()) for name in job.reads)]:
        files |= _model(RunFolder.open(path), names)
    return Parcel(place, key, files, {name: lab.label_sums(name) for name in plan.about.get("data", {})})


def _model(folder: RunFolder, copies: set[str]) -> dict[str, bytes]:
    """A run of ``train``: its model, and copies of it that were kept on the way."""
    key = model_key(folder.config(VAEConfig))
    found = finished_excerpt(folder.path, [key, *(f"{key}.{name}" for name in sorted(copies))])
    return {f"{_place(folder)}/{name}": data for name, data in found.items()}


def _place(folder: RunFolder) -> str:
    return f"{folder.experiment}/{folder.name}"


@contextmanager
def unpacked(parcel: Parcel, out: Path) -> Iterator[Path]:
    """Put the files of a parcel into the folder ``out``, which is gone afterwards, and say where its run is."""
    out.mkdir(mode=0o700, parents=True)
    try:
        for name, data in parcel.files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield out / parcel.run
    finally:
        shutil.rmtree(out, ignore_errors=True)


def check_data(plan: Plan, labels: Mapping[str, Mapping[str, str] | None]) -> None:
    """Refuse other data than those that a run was started on.

    Raises:
        ValueError: they are missing, or others.
    """
    try:
        found = checksums(plan.module, plan.config, plan.lab)
    except DataUnavailable as error:
        raise ValueError(f"expected the data of the run on every machine, got none: {error}") from error
    if differing := differences({"data": plan.about.get("data", {})}, {"data": found}):
        raise ValueError(f"expected the data of the run on every machine, got other files of {', '.join(differing)}")
    for name, sums in labels.items():
        if plan.lab.label_sums(name) != sums:
            raise ValueError(f"expected labels of {name} on every machine, or on none: got them on some, or others")


def own_folder(prefix: str) -> Path:
    """A place for a folder of this process, which takes it along; what killed processes left behind is removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if os.path.lexists(left / "lock"):
            with suppress(ValueError, OSError):  # in use, or somebody else's
                release_lock(take_lock(left / "lock"))
                shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=prefix))
    take_lock(place / "lock")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place / "results"
