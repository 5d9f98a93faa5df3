"""``test-set-gaps``, ``frozen-decoder`` and ``toy-posteriors``: the experiments of *Inference Suboptimality*."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from amortized_bayes.experiments.suboptimality import (
    FROZEN_PRESETS,
    SET_PRESETS,
    TOY_PRESETS,
    FrozenDecoderConfig,
    TestSetGapsConfig,
    ToyConfig,
)
from amortized_bayes.results import RunFolder, environment, find_run

if TYPE_CHECKING:
    from amortized_bayes.types import Row

__all__ = ["FrozenDecoder", "TestSetGaps", "ToyPosteriors", "frozen_defaults", "set_defaults", "toy_defaults"]


@dataclass(frozen=True)
class TestSetGaps(Experiment):
    """Train models with and without flows and annealing; say where each loses nats on training points (Tables 2 and 3).

    Args:
        setting: What to run.
    """

    __test__ = False  # a name that pytest would take for a test

    setting: TestSetGapsConfig = field(default_factory=TestSetGapsConfig)

    def run(self, given: list[str]) -> None:
        """Run, or go on."""
        _run(self, "test-set-gaps", TestSetGapsConfig, given)


@dataclass(frozen=True)
class FrozenDecoder(Experiment):
    """Hold one decoder fixed, train encoders of every family and size for it, and measure their gaps (Table 4).

    Args:
        setting: What to run.
    """

    setting: FrozenDecoderConfig = field(default_factory=FrozenDecoderConfig)

    def run(self, given: list[str]) -> None:
        """Run, or go on."""
        _run(self, "frozen-decoder", FrozenDecoderConfig, given)


@dataclass(frozen=True)
class ToyPosteriors(Experiment):
    """Draw posteriors over two latents beside what each family makes of them, amortized and at its best.

    Args:
        setting: What to run.
    """

    setting: ToyConfig = field(default_factory=ToyConfig)

    def run(self, given: list[str]) -> None:
        """Run, or go on."""
        _run(self, "toy-posteriors", ToyConfig, given)


def set_defaults(given: list[str]) -> TestSetGaps:
    """Defaults of ``test-set-gaps`` from ``--preset`` and ``--config``; errors as in ``preset_setting``."""
    return TestSetGaps(setting=preset_setting(given, SET_PRESETS))


def frozen_defaults(given: list[str]) -> FrozenDecoder:
    """Defaults of ``frozen-decoder``, likewise."""
    return FrozenDecoder(setting=preset_setting(given, FROZEN_PRESETS))


def toy_defaults(given: list[str]) -> ToyPosteriors:
    """Defaults of ``toy-posteriors``, likewise."""
    return ToyPosteriors(setting=preset_setting(given, TOY_PRESETS))


def _run(command: TestSetGaps | FrozenDecoder | ToyPosteriors, name: str, cls: type[Any], given: list[str]) -> None:
    """Run an experiment into a folder of its own, and show what came out."""
    print(f"amortized_bayes: {'resuming' if command.resume else 'starting'} {name}; torch is loading", flush=True)
    from amortized_bayes.commands.drawing import draw_all
    from amortized_bayes.commands.tables import print_run
    from amortized_bayes.experiments.forecast import forecast
    from amortized_bayes.experiments.trained import TrainingFailed

    device, about = machine(command.device)
    if command.resume is None:
        setting, note = with_binarized_images(command.setting, command.data_dir, given)
        folder = None
    else:
        folder = RunFolder.open(find_run(command.out, command.resume, name))
        if folder.experiment != name or folder.finished:
            raise ValueError(f"expected an unfinished run of {name} to resume, got {folder.path}")
        setting, note = load_config(cls, folder.path / "config.yaml"), ""
    here, there = forecast(setting, command.out, device, command.data_dir)
    if folder is None:
        described = environment(about["threads"]) | about | {"note": note, "command": " ".join(given)}
        folder = RunFolder.create(command.out, name, to_mapping(setting), described)
    print(f"{name} on {device}, into {folder.path}", flush=True)
    print(
        f"time: at most about {duration(here)} here, by a few steps; {duration(there)} on a GPU, by arithmetic",
        flush=True,
    )
    with saying_how_to_go_on(folder, name), folder, StageProgress() as progress:
        rows = _runner(name)(setting, folder, command.out, device, command.data_dir, progress)
        try:
            for row in rows:
                if (line := _worth_saying(row)) is not None:
                    progress.say(line)
        except TrainingFailed as error:
            raise ValueError(str(error)) from error
        folder.finish()
    print_run(folder)
    for path in draw_all(folder, folder.rows()):
        print(path)


def _runner(name: str) -> Callable[..., Any]:
    from amortized_bayes.experiments.frozen_decoder import run_frozen_decoder
    from amortized_bayes.experiments.set_gaps import run_set_gaps
    from amortized_bayes.experiments.toy_posteriors import run_toy

    runners = {"test-set-gaps": run_set_gaps, "frozen-decoder": run_frozen_decoder, "toy-posteriors": run_toy}

    def run(setting: Any, folder: RunFolder, out: Path, device: Any, data_dir: Path | None, progress: Any) -> Any:
        return runners[name](setting, folder, out=out, device=device, data_dir=data_dir, watch=progress)

    return run


def _worth_saying(row: Row) -> str | None:
    if row.metric == "failure":
        return f"{row.dataset} {row.model} {row.guide}: failed at step {row.step}, {row.note}"
    if row.value is not None and row.metric in ("inference_gap", "amortized_gap", "best_gap"):
        return f"{row.dataset} {row.model} {row.guide} {row.metric.replace('_', ' ')}: {row.value:.2f} nats"
    return None
