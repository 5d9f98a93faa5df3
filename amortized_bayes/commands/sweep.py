"""``sweep``: run the width sweep, draw its figures and say what was found."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from amortized_bayes.commands.progress import SweepProgress, duration
from amortized_bayes.configuration import load_config, replace_from_mapping, to_mapping
from amortized_bayes.data import DataUnavailable, load_dataset
from amortized_bayes.experiments.sweep import PRESETS, SweepConfig, grid
from amortized_bayes.results import RunFolder, environment, find_run

if TYPE_CHECKING:
    import torch

    from amortized_bayes.types import Row

__all__ = ["Sweep", "sweep_defaults"]


@dataclass(frozen=True)
class Sweep:
    """Sweep encoder widths against F-VI and constant VI; quick on MNIST and FashionMNIST unless told otherwise.

    Args:
        setting: What to run.
        config: YAML file to start from, such as a run's config.yaml; flags given beside it win.
        resume: Run to go on with: its path, its name, or latest. Finished fits are kept, its own configuration is used.
        device: Where to run; auto takes a GPU if there is one.
        data_dir: Folder with data sets; else AMORTIZED_BAYES_DATA, the cache, a download.
        out: Folder for results.
    """

    setting: SweepConfig = field(default_factory=SweepConfig)
    config: Path | None = None
    resume: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    out: Path = Path("results")

    def run(self, given: list[str]) -> None:
        """Run, or go on with, a sweep."""
        print(f"amortized_bayes: {'resuming' if self.resume else 'starting'} a sweep; torch is loading", flush=True)
        if self.resume is not None:
            folder = RunFolder.open(find_run(self.out, self.resume))
            if folder.finished:
                raise ValueError(f"expected an unfinished run to resume, got {folder.path}, which is finished")
            setting = load_config(SweepConfig, folder.path / "config.yaml")
            note = str(_read_environment(folder).get("note", ""))
        else:
            named = "--dataset" in given or self.config is not None
            setting, note = _with_data_at_hand(self.setting, self.data_dir, named)
            folder = None
        device, machine = _machine(self.device)
        if setting.tune:
            setting = self._tune(setting, device, machine)
        if folder is None:
            described = environment(machine["threads"]) | machine | {"note": note, "command": " ".join(given)}
            folder = RunFolder.create(self.out, "sweep", to_mapping(setting), described)
        self._sweep(folder, setting, device, note)

    def _sweep(self, folder: RunFolder, setting: SweepConfig, device: torch.device, note: str) -> None:
        from amortized_bayes.commands.figures import draw_all
        from amortized_bayes.commands.findings import print_table, sentences
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
        print_table(frame)
        for sentence in sentences(frame):
            print(sentence)
        print(f"figures: {', '.join(sorted({p.name for p in figures if p.suffix == '.png'}))} in {folder.path}")
        if note:
            print(note)

    def _tune(self, setting: SweepConfig, device: torch.device, machine: dict[str, Any]) -> SweepConfig:
        from amortized_bayes.experiments.tune import GRID, tune, with_winners

        folder = RunFolder.create(self.out, "tune", to_mapping(setting), environment(machine["threads"]) | machine)
        trials = sum(len(g) for g in GRID.values()) * len(setting.dataset)
        print(f"tuning: {trials} trials on {device}, into {folder.path}", flush=True)
        with folder:
            with SweepProgress(trials) as progress:
                for row in tune(setting, folder, device=device, data_dir=self.data_dir, watch=progress):
                    value = "failed" if row.value is None else f"{row.value:.2f} nats a point"
                    progress.say(f"{row.dataset} {row.guide} rates {row.note}: {value}")
            folder.finish()
        chosen = with_winners(setting, folder.rows())
        for family in GRID:
            shared, local = getattr(chosen, f"rates_{family}")
            print(f"chosen for {family}: {shared:g} (q(theta)), {local:g} (local)")
        return chosen


def sweep_defaults(given: list[str]) -> Sweep:
    """The command's defaults, from ``--preset`` and ``--config`` where they are given.

    Raises:
        ValueError: an unknown preset, or a file that is no configuration.
    """
    preset = _value_of(given, "--preset")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"expected --preset {' or '.join(PRESETS)}, got {preset!r}")
    path = _value_of(given, "--config")
    setting = PRESETS[preset or "quick"]
    if path is not None:
        loaded = load_config(SweepConfig, Path(path))
        setting = loaded if preset is None else replace(loaded, preset=preset)  # type: ignore[arg-type]
    return Sweep(setting=setting)


def _value_of(given: list[str], flag: str) -> str | None:
    for i, argument in enumerate(given):
        if argument == flag and i + 1 < len(given):
            return given[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def _with_data_at_hand(setting: SweepConfig, data_dir: Path | None, named: bool) -> tuple[SweepConfig, str]:
    """Check that the data can be had before anything else; an unnamed default falls back to the embedded digits."""
    try:
        for dataset in setting.dataset:
            load_dataset(dataset, data_dir=data_dir)
    except DataUnavailable as error:
        if named:
            raise
        print(f"no images: {error}", file=sys.stderr)
        note = "embedded digits (scikit-learn, 8x8) stand in for MNIST and FashionMNIST, which could not be had"
        print(note, flush=True)
        return replace_from_mapping(setting, {"dataset": ["digits"], "epochs": 4 * setting.epochs}), note
    return setting, ""


def _machine(device: str) -> tuple[torch.device, dict[str, Any]]:
    """The device to run on, and what environment.json says of it."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for --device cuda, got none")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu"
    return chosen, {"device": name, "threads": torch.get_num_threads()}


def _read_environment(folder: RunFolder) -> dict[str, Any]:
    import json

    return json.loads((folder.path / "environment.json").read_text())


def _worth_saying(row: Row) -> str | None:
    name = row.guide if row.k is None else f"{row.guide} k = {row.k}"
    if row.metric == "final_elbo" and row.value is not None:
        mark = "" if row.status == "ok" else f"  ({row.status})"
        return f"{row.dataset} seed {row.seed} {name}: ELBO {row.value:.2f} nats a point, {duration(row.seconds)}{mark}"
    if row.metric == "failure":
        return f"{row.dataset} seed {row.seed} {name}: failed at step {row.step}, {row.note}"
    return None
