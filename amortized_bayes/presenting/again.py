"""The command that reproduces a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amortized_bayes.results import RunFolder

__all__ = ["command_again"]

PROGRAM = "python run_experiments.py"
NESTED = "--config"
"""The command that older versions recorded for a run that another run had started."""


def command_again(folder: RunFolder, about: Mapping[str, Any]) -> str:
    """The command that reproduces a run, quoted for a shell.

    A run that another run started was never typed as a command: it is reproduced from its own settings, on its device
    and with its number of threads, on which its last bits depend.

    Args:
        folder: a run.
        about: its ``environment.json``.
    """
    command = str(about.get("command", ""))
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words and command != NESTED:
        return f"{PROGRAM} {shlex.join(words)}"
    given = [folder.experiment, "--config", str(folder.path / "config.yaml")]
    device, threads = about.get("device"), int(about.get("threads") or 0)
    given += ["--device", "cpu"] if device == "cpu" else []
    threads *= len(folder.done()) if threads > 1 else 1  # which a new run shares out among its jobs
    return f"{f'OMP_NUM_THREADS={threads} ' if threads else ''}{PROGRAM} {shlex.join(given)}"
