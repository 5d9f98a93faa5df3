"""``--resume RUN`` beside other flags: a run keeps its settings, so flags that ask for others are refused."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized_bayes.commands.flags import value_of, words_about
from amortized_bayes.configuration import flag, to_mapping

if TYPE_CHECKING:
    from amortized_bayes.results import RunFolder

__all__ = ["refuse_other_settings", "run_to_resume"]


def run_to_resume(name: str, given: Sequence[str], out: Path) -> RunFolder | None:
    """The run of an experiment that a command line asks to resume, ``None`` where it asks for none.

    Raises:
        ValueError: no such run.
    """
    text = value_of(given, "--resume")
    if text is None:
        return None
    from amortized_bayes.results import RunFolder, find_run

    return RunFolder.open(find_run(Path(value_of(given, "--out") or out), text, name, ("unfinished",)))


def refuse_other_settings(
    folder: RunFolder, given: Sequence[str], others: Collection[str], asked: Any, own: Any
) -> None:
    """Refuse flags that ask for other settings than those of a run; the flags that it was started with are accepted.

    Args:
        folder: the run.
        given: the command line.
        others: flags that are not about settings.
        asked: the settings of the run, with those of the flags and files on the command line instead.
        own: the settings of the run.

    Raises:
        ValueError: those flags, with what the run has.
    """
    about, preset = folder.environment(), value_of(given, "--preset")
    if words_about(given, others) in ([], words_about(_words(str(about.get("command", ""))), others)):
        return
    differing = [f"{flag(name)} {new}, which is {old} there" for name, old, new in _differences(own, asked)]
    if preset not in (None, before := about.get("preset")):
        differing.insert(0, f"--preset {preset}, which is {before or 'unknown'} there")
    if differing:
        raise ValueError(
            f"expected the settings of {folder.path} beside --resume, or none, got {'; '.join(differing)}; a new run "
            "can have others"
        )


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _differences(own: Any, asked: Any) -> Iterator[tuple[str, str, str]]:
    """Names of settings that differ, with both values."""
    before, now = dict(_flat(to_mapping(own))), dict(_flat(to_mapping(asked)))
    yield from ((name, before.get(name, "none"), value) for name, value in now.items() if before.get(name) != value)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings by the names of their flags, nested ones included."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, " ".join(map(str, value)) if isinstance(value, list) else str(value)
