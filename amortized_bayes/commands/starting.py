"""What commands that run an experiment have in common before and around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from amortized_bayes.configuration import load_config, replace_from_mapping
from amortized_bayes.data import DataUnavailable, load_dataset
from amortized_bayes.results import RunFolder

if TYPE_CHECKING:
    import torch

__all__ = ["Experiment", "machine", "preset_setting", "saying_how_to_go_on", "value_of", "with_binarized_images"]

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Experiment:
    """What every command that runs an experiment can be told.

    Args:
        config: YAML file to start from, such as a run's config.yaml; flags given beside it win.
        resume: Run to go on with: its path, its name, or latest. What is finished is kept, its own configuration used.
        device: Where to run; auto takes a GPU if there is one.
        data_dir: Folder with data sets; else AMORTIZED_BAYES_DATA, the cache, a download.
        out: Folder for results.
    """

    config: Path | None = None
    resume: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    out: Path = Path("results")


def preset_setting(given: list[str], presets: Mapping[str, Setting]) -> Setting:
    """The setting that flags start from: that of ``--preset`` and ``--config`` where they are given, else *quick*.

    Raises:
        ValueError: an unknown preset, or a file that is no configuration.
    """
    preset = value_of(given, "--preset")
    if preset is not None and preset not in presets:
        raise ValueError(f"expected --preset {' or '.join(presets)}, got {preset!r}")
    path = value_of(given, "--config")
    if path is None:
        return presets[preset or "quick"]
    cls: Any = type(presets["quick"])
    loaded = load_config(cls, Path(path))  # checks the file
    import yaml

    mapping = yaml.safe_load(Path(path).read_bytes().decode("utf-8-sig"))
    if preset not in (None, mapping.get("preset", preset)):
        raise ValueError(f"expected --preset {loaded.preset}, as {path} says, got {preset}")
    base: Any = presets[preset or loaded.preset]
    return replace_from_mapping(base, mapping, path)


def value_of(given: list[str], flag: str) -> str | None:
    """What a flag was given on the command line; ``None`` without it."""
    for i, argument in enumerate(given):
        if argument == flag and i + 1 < len(given):
            return given[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def machine(device: str) -> tuple[torch.device, dict[str, Any]]:
    """The device to run on, and what environment.json says of it.

    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for --device cuda, got none")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu"
    return chosen, {"device": name, "threads": torch.get_num_threads()}


@contextmanager
def saying_how_to_go_on(folder: RunFolder, command: str) -> Iterator[None]:
    """Say, when interrupted, how to take the run up again."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"what is finished is kept: `{command} --resume {folder.path}` goes on", file=sys.stderr)
        raise


def with_binarized_images(setting: Setting, data_dir: Path | None, given: list[str]) -> tuple[Setting, str]:
    """The setting with data that can be had, and a note where others stand in for them.

    An unnamed default falls back from fixed binarized MNIST to MNIST, drawn once by seed, and from that to the digits.

    Raises:
        DataUnavailable: data that were named cannot be had.
    """
    config: Any = setting
    wanted = config.dataset if isinstance(config.dataset, tuple) else (config.dataset,)
    named = any(value_of(given, flag) is not None for flag in ("--dataset", "--config", "--preset"))
    note, found = "", wanted
    for others, words in (
        (("mnist",), "MNIST, drawn once by seed,"),
        (("digits",), "embedded digits (scikit-learn, 8x8)"),
    ):
        try:
            for dataset in found:
                load_dataset(dataset, data_dir=data_dir)
            break
        except DataUnavailable as error:
            if named:
                raise
            print(f"no images: {error}", file=sys.stderr)
            note, found = f"{words} stand in for {' and '.join(wanted)}, which could not be had", others
            print(note, flush=True)
    dataset = found if isinstance(config.dataset, tuple) else found[0]
    return replace(config, dataset=dataset), note
