"""A relay: legs that read each other's results, meet, hold, fail or are killed, as signs in a folder say.

``python run_experiments.py relay`` takes a second.
"""

import os
import signal
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from amortized_bayes import cli, experiments
from amortized_bayes.configuration import Settings
from amortized_bayes.experiments.spec import Arrays, Checkpoint, FailedAt, Job, Measured, Table, Work


class Wet(RuntimeWarning):
    """The track is."""


@dataclass(frozen=True)
class Config(Settings):
    """Run a relay.

    Args:
        signs: Folder with signs; hold.2 holds leg 2, kill.2 kills its process once, fail.2 fails it, wet warns.
        meet: Whether leg 0 waits for leg 1 to end.
    """

    signs: str = "signs"
    meet: bool = False


PRESETS = {"quick": Config()}
TABLES = (Table(("leg",), ("drawn",), "Legs", apart=()),)
FIGURES = {}
LEGS = 4


def datasets(config, lab):
    return ()


def jobs(config, lab):
    work = [Work("running", 1, lambda: 10.0)]
    for leg in range(LEGS):
        after = ["leg=0", "leg=1"] if leg == 2 else []
        yield Job({"leg": leg}, partial(run, config, leg, after, lab), work=work, after=after)


def run(config, leg, after, lab):
    signs = Path(config.signs)
    (signs / f"pid.{leg}").write_text(str(os.getpid()))
    before = sum(int(lab.arrays(key)["drawn"].sum()) for key in after)
    yield Measured("before", float(before))
    yield Checkpoint({"half": torch.arange(leg + 1).numpy()}, name="half")
    lab.watch("running", 1, 2)
    if (signs / "wet").exists():
        warnings.warn("the track is wet", Wet, stacklevel=1)
    if (signs / f"fail.{leg}").exists():
        raise FailedAt(7, f"leg {leg} stumbled")
    if (signs / f"kill.{leg}").exists():
        (signs / f"kill.{leg}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    while (signs / f"hold.{leg}").exists():
        time.sleep(0.02)
    while config.meet and leg == 0 and not (signs / "over.1").exists():
        time.sleep(0.02)
    drawn = torch.randint(1_000, (5,), generator=torch.Generator().manual_seed(leg))
    yield Measured("drawn", float(drawn.sum()))
    yield Measured("threads", float(torch.get_num_threads()))
    yield Arrays({"drawn": drawn.numpy()})
    (signs / f"over.{leg}").touch()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where whoever started the tests ignores it
    experiments.EXPERIMENTS["relay"] = "toy.relay"
    cli.main()
