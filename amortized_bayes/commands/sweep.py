"""``sweep``: run the width sweep, draw its figures and say what was found."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized_bayes.commands.progress import SweepProgress, duration
from amortized_bayes.commands.starting import Experiment, machine, preset_setting, saying_how_to_go_on, value_of
from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.data import DataUnavailable, load_dataset
from amortized_bayes.experiments.sweep import PRESETS, SweepConfig, grid
from amortized_bayes.results import RunFolder, environment, find_run

if TYPE_CHECKING:
    import torch

    from amortized_bayes.types import Row

__all__ = ["Sweep", "sweep_defaults"]


@dataclass(frozen=True)
class Sweep(Experiment):
    """Sweep encoder widths against F-VI and constant VI; quick on MNIST and FashionMNIST unless told otherwise.

    Args:
        setting: What to run.
    """

    setting: SweepConfig = field(default_factory=SweepConfig)

    def run(self, given: list[str]) -> None:
        """Run, or go on with, a sweep."""
        print(f"amortized_bayes: {'resuming' if self.resume else 'starting'} a sweep; torch is loading", flush=True)
        device, about = machine(self.device)
        if self.resume is not None:
            folder = RunFolder.open(find_run(self.out, self.resume))
            setting, data, note = self._taken_up(folder)
        else:
            folder = None
            setting, data, note = _with_data_at_hand(self.setting, self.data_dir, given)
        described = environment(about["threads"]) | about | {"data": data, "note": note, "command": " ".join(given)}
        if setting.tune:
            if folder is None:
                folder = RunFolder.create(self.out, "tune", to_mapping(setting), described)
            with saying_how_to_go_on(folder, "sweep"):
                setting = self._tune(folder, setting, device, note)
            folder = None
        if folder is None:
            folder = RunFolder.create(self.out, "sweep", to_mapping(setting), described)
        with saying_how_to_go_on(folder, "sweep"):
            self._sweep(folder, setting, device, note)

    def _taken_up(self, folder: RunFolder) -> tuple[SweepConfig, dict[str, Any], str]:
        """Configuration, checksums of the data and note of an unfinished run."""
        if folder.finished:
            raise ValueError(f"expected an unfinished run to resume, got {folder.path}, which is finished")
        if folder.experiment not in ("sweep", "tune"):
            raise ValueError(f"expected a sweep to resume, got {folder.path}")
        setting = load_config(SweepConfig, folder.path / "config.yaml")
        before = json.loads((folder.path / "environment.json").read_text())
        data = _load_data(setting, self.data_dir)
        if before.get("data", data) != data:
            changed = [name for name in data if before["data"].get(name) != data[name]]
            raise ValueError(f"expected the data that {folder.path} was started on, got other files of {changed}")
        if self.setting != SweepConfig():
            print("a resumed run keeps its own configuration: other flags of the setting are ignored", file=sys.stderr)
        return setting, data, str(before.get("note", ""))

    def _sweep(self, folder: RunFolder, setting: SweepConfig, device: torch.device, note: str) -> None:
        from amortized_bayes.commands.drawing import draw_all
        from amortized_bayes.commands.tables import print_run
        from amortized_bayes.experiments.estimate import estimate_seconds
        from amortized_bayes.experiments.sweep_run import run

        with folder:
            fits = [f for f in grid(setting) if f.key not in folder.done()]
            doubled = 2 * len(setting.dataset) * len(setting.seeds)
            print(f"{len(fits)} fits and {doubled} continuations on {device}, into {folder.path}", flush=True)
            if fits:
                print(estimate_seconds(setting, device, self.data_dir, len(fits)), flush=True)
            with SweepProgress(len(fits) + doubled) as progress:
                for row in run(setting, folder, device=device, data_dir=self.data_dir, note=note, watch=progress):
                    if (line := _worth_saying(row)) is not None:
                        progress.say(line)
            folder.finish()
        frame = folder.rows()
        figures = draw_all(folder, frame)
        print_run(folder)
        print(f"figures: {', '.join(sorted({p.name for p in figures if p.suffix == '.png'}))} in {folder.path}")
        if note:
            print(note)

    def _tune(self, folder: RunFolder, setting: SweepConfig, device: torch.device, note: str) -> SweepConfig:
        from amortized_bayes.experiments.tune import GRID, num_trials, tune, with_winners

        trials = num_trials(setting) - len(folder.done())
        print(f"tuning: {trials} trials on {device}, into {folder.path}", flush=True)
        with folder:
            with SweepProgress(trials) as progress:
                for row in tune(setting, folder, device=device, data_dir=self.data_dir, note=note, watch=progress):
                    value = "failed" if row.value is None else f"{row.value:.2f} nats a point"
                    progress.say(f"{row.dataset} {row.guide} rates {row.note}: {value}")
            folder.finish()
        chosen = with_winners(setting, folder.rows())
        for family in GRID:
            shared, local = getattr(chosen, f"rates_{family}")
            print(f"chosen for {family}: {shared:g} (q(theta)), {local:g} (local)")
        return chosen


def sweep_defaults(given: list[str]) -> Sweep:
    """The command's defaults, from ``--preset`` and ``--config``; errors as in ``preset_setting``."""
    return Sweep(setting=preset_setting(given, PRESETS))


def _load_data(setting: SweepConfig, data_dir: Path | None) -> dict[str, Any]:
    """Check that all data can be had and fit the likelihood, and return the sha256 of their files."""
    from amortized_bayes.experiments.setup import check_pixels

    sums: dict[str, Any] = {}
    for dataset in setting.dataset:
        found = load_dataset(dataset, data_dir=data_dir)
        check_pixels(found, setting.likelihood)
        sums[found.name] = dict(found.sha256)
    return sums


def _with_data_at_hand(
    setting: SweepConfig, data_dir: Path | None, given: list[str]
) -> tuple[SweepConfig, dict[str, Any], str]:
    """Check the data before anything else; an unnamed default falls back to the embedded digits."""
    try:
        return setting, _load_data(setting, data_dir), ""
    except DataUnavailable as error:
        if any(value_of(given, flag) is not None for flag in ("--dataset", "--config")):
            raise
        print(f"no images: {error}", file=sys.stderr)
        note = "embedded digits (scikit-learn, 8x8) stand in for MNIST and FashionMNIST, which could not be had"
        print(note, flush=True)
        # fewer images: more passes over them, unless they were asked for
        epochs = setting.epochs if value_of(given, "--epochs") is not None else 4 * setting.epochs
        setting = replace(setting, dataset=("digits",), epochs=epochs)
        return setting, _load_data(setting, data_dir), note


def _worth_saying(row: Row) -> str | None:
    name = row.guide if row.k is None else f"{row.guide} k = {row.k}"
    if row.metric == "final_elbo" and row.value is not None:
        mark = "" if row.status == "ok" else f"  ({row.status})"
        return f"{row.dataset} seed {row.seed} {name}: ELBO {row.value:.2f} nats a point, {duration(row.seconds)}{mark}"
    if row.metric == "failure":
        return f"{row.dataset} seed {row.seed} {name}: failed at step {row.step}, {row.note}"
    return None
