"""``train``: train the model that ``gaps`` and ``qstar`` then look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amortized_bayes.commands.progress import duration
from amortized_bayes.commands.stages import StageProgress
from amortized_bayes.commands.starting import (
    Experiment,
    machine,
    preset_setting,
    saying_how_to_go_on,
    with_binarized_images,
)
from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.data import load_dataset
from amortized_bayes.experiments.settings import VAE_PRESETS, VAEConfig
from amortized_bayes.results import RunFolder, environment, find_run

__all__ = ["Train", "train_defaults"]


@dataclass(frozen=True)
class Train(Experiment):
    """Train a VAE (or a Bayesian decoder) whose gaps are to be measured; fixed binarized MNIST unless told otherwise.

    Args:
        setting: What to train.
        tensorboard: Write the curves for TensorBoard as well, into the run's folder.
    """

    setting: VAEConfig = field(default_factory=VAEConfig)
    tensorboard: bool = False

    def run(self, given: list[str]) -> None:
        """Train, or go on with training."""
        print(f"amortized_bayes: {'resuming' if self.resume else 'starting'} training; torch is loading", flush=True)
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError(
                "expected the package tensorboard for --tensorboard: pip install 'amortized_bayes[tensorboard]'"
            )
        device, about = machine(self.device)
        if self.resume is not None:
            folder = RunFolder.open(find_run(self.out, self.resume, "train"))
            setting = _taken_up(folder, self.data_dir)
        else:
            setting, note = with_binarized_images(self.setting, self.data_dir, given)
            described = environment(about["threads"]) | about
            described |= {"data": _checksums(setting, self.data_dir), "note": note, "command": " ".join(given)}
            folder = RunFolder.create(self.out, "train", to_mapping(setting), described)
        with saying_how_to_go_on(folder, "train"):
            self._train(folder, setting, device)

    def _train(self, folder: RunFolder, setting: VAEConfig, device: Any) -> None:
        from amortized_bayes.commands.drawing import draw_all
        from amortized_bayes.commands.tables import print_run
        from amortized_bayes.experiments.trained import estimate_training
        from amortized_bayes.experiments.training import train

        print(f"{setting.name} on {setting.dataset}, {device}, into {folder.path}", flush=True)
        seconds = estimate_training(setting, device, self.data_dir)
        print(f"time: about {duration(seconds)} for {setting.epochs} epochs, from a few steps", flush=True)
        with folder, StageProgress() as progress, self._scalars(folder) as write:
            rows = list(
                train(
                    setting,
                    folder,
                    device=device,
                    data_dir=self.data_dir,
                    watch=lambda done, total, state: progress("training", done, total, state),
                    on_look=write,
                )
            )
            folder.finish()
        failed = next((row for row in rows if row.status == "failed"), None)
        if failed is not None:
            raise ValueError(f"training failed at step {failed.step}, as {folder.path} records: {failed.note}")
        print_run(folder)
        for path in draw_all(folder, folder.rows()):
            print(path)
        print(f"next: gaps {folder.path}")

    @contextmanager
    def _scalars(self, folder: RunFolder) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Where looks go for TensorBoard: nowhere unless it is asked for."""
        if not self.tensorboard:
            yield lambda *_: None
            return
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder.path / "tensorboard"))

        def write(step: int, found: dict[str, float]) -> None:
            for name, value in found.items():
                writer.add_scalar(name, value, step)

        try:
            yield write
        finally:
            writer.close()


def train_defaults(given: list[str]) -> Train:
    """The command's defaults, from ``--preset`` and ``--config``; errors as in ``preset_setting``."""
    return Train(setting=preset_setting(given, VAE_PRESETS))


def _taken_up(folder: RunFolder, data_dir: Path | None) -> VAEConfig:
    if folder.experiment != "train":
        raise ValueError(f"expected a run of `train` to resume, got {folder.path}")
    if folder.finished:
        raise ValueError(f"expected an unfinished run to resume, got {folder.path}, which is finished")
    setting = load_config(VAEConfig, folder.path / "config.yaml")
    before = json.loads((folder.path / "environment.json").read_text()).get("data")
    if before != _checksums(setting, data_dir):
        raise ValueError(f"expected the data that {folder.path} was started on, got other files")
    return setting


def _checksums(setting: VAEConfig, data_dir: Path | None) -> dict[str, str]:
    return dict(load_dataset(setting.dataset, data_dir=data_dir).sha256)
