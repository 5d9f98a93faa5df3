"""``gaps`` and ``qstar``: what a trained model loses, and how far the best q of a point can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized_bayes.commands.stages import StageProgress
from amortized_bayes.commands.starting import Experiment, machine, preset_setting, saying_how_to_go_on
from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.experiments.gap_study import GAPS_PRESETS, GapsConfig
from amortized_bayes.experiments.qstar_study import QSTAR_PRESETS, QStarConfig
from amortized_bayes.results import RunFolder, environment, find_run, list_runs

if TYPE_CHECKING:
    from amortized_bayes.experiments.trained import Trained
    from amortized_bayes.types import Row

__all__ = ["GapsCommand", "QStarCommand", "gaps_defaults", "qstar_defaults"]


@dataclass(frozen=True)
class GapsCommand(Experiment):
    """Say where a trained model loses nats: family or amortization, on training and test points, overall and by class.

    Args:
        setting: What to measure.
    """

    setting: GapsConfig = field(default_factory=GapsConfig)

    def run(self, given: list[str]) -> None:
        """Measure, or go on with measuring."""
        from amortized_bayes.experiments.gap_study import run_gaps

        def rows(setting: GapsConfig, trained: Trained, folder: RunFolder, progress: StageProgress) -> Iterator[Row]:
            return run_gaps(setting, trained, folder, data_dir=self.data_dir, watch=progress)

        _study(self, "gaps", GapsConfig, rows, given)


@dataclass(frozen=True)
class QStarCommand(Experiment):
    """Say how far q*, the best q of a point, can be trusted: restarts, initial spreads, starts and budgets.

    Args:
        setting: What to measure.
    """

    setting: QStarConfig = field(default_factory=QStarConfig)

    def run(self, given: list[str]) -> None:
        """Measure, or go on with measuring."""
        from amortized_bayes.experiments.qstar_study import run_qstar

        def rows(setting: QStarConfig, trained: Trained, folder: RunFolder, progress: StageProgress) -> Iterator[Row]:
            return run_qstar(setting, trained, folder, watch=progress)

        _study(self, "qstar", QStarConfig, rows, given)


def gaps_defaults(given: list[str]) -> GapsCommand:
    """The command's defaults, from ``--preset`` and ``--config``; errors as in ``preset_setting``."""
    return GapsCommand(setting=preset_setting(given, GAPS_PRESETS))


def qstar_defaults(given: list[str]) -> QStarCommand:
    """The command's defaults, from ``--preset`` and ``--config``; errors as in ``preset_setting``."""
    return QStarCommand(setting=preset_setting(given, QSTAR_PRESETS))


def _study(
    command: GapsCommand | QStarCommand,
    name: str,
    cls: type[Any],
    rows: Callable[..., Iterator[Row]],
    given: list[str],
) -> None:
    """Load a checkpoint, run a study of it into a folder of its own, and show what came out."""
    print(f"amortized_bayes: {'resuming' if command.resume else 'starting'} {name}; torch is loading", flush=True)
    from amortized_bayes.commands.drawing import draw_all
    from amortized_bayes.commands.tables import print_run
    from amortized_bayes.experiments.trained import load_trained

    device, about = machine(command.device)
    folder = None
    if command.resume is None:
        setting = replace(command.setting, checkpoint=str(_checkpoint(command.out, command.setting.checkpoint)))
    else:
        folder = RunFolder.open(find_run(command.out, command.resume, name))
        if folder.experiment != name or folder.finished:
            raise ValueError(f"expected an unfinished run of {name} to resume, got {folder.path}")
        setting = load_config(cls, folder.path / "config.yaml")
    trained = load_trained(RunFolder.open(Path(setting.checkpoint)), device=device, data_dir=command.data_dir)
    if folder is None:
        described = environment(about["threads"]) | about | {"command": " ".join(given)}
        folder = RunFolder.create(command.out, name, to_mapping(setting), described)
    print(f"{trained.config.name} on {trained.data.name}, {device}, into {folder.path}", flush=True)
    with saying_how_to_go_on(folder, name), folder, StageProgress() as progress:
        for row in rows(setting, trained, folder, progress):
            if row.metric.endswith(("inference_gap", "behind_reference")) and "class" not in row.metric:
                progress.say(f"{row.guide} {row.step or ''} {row.metric}: {row.value:.3f} nats")
        folder.finish()
    print_run(folder)
    for path in draw_all(folder, folder.rows()):
        print(path)


def _checkpoint(out: Path, text: str) -> Path:
    """The training run that is meant, as a full path; ``latest`` is the last one that finished."""
    if text == "latest":
        finished = [info.path for info in list_runs(out) if info.experiment == "train" and info.status == "finished"]
        found = [path for path in finished if (path / "checkpoints" / "model.safetensors").exists()]
        if not found:
            raise ValueError(f"expected a finished run of `train` under {out}, got none; train one first")
        return found[-1].resolve()
    return find_run(out, text).resolve()
