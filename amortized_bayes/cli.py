"""The command line: ``amortized-bayes`` or ``python run_experiments.py``.

Typed dataclasses are the only configuration: their fields are the flags, and their docstrings the help. There is one
command per entry of ``EXPERIMENTS``, all with the same flags for how to run it, and a few commands that show runs.
Nothing here imports torch, which keeps ``--help`` fast.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from inspect import getdoc
from typing import Annotated, Any

import tyro

from amortized_bayes import __version__
from amortized_bayes.commands.claims import Claims
from amortized_bayes.commands.download import Download
from amortized_bayes.commands.keep import Keep
from amortized_bayes.commands.mistakes import check_command, check_flags, flags_of, in_one_line
from amortized_bayes.commands.report import Report
from amortized_bayes.commands.run import Run, defaults
from amortized_bayes.commands.runs import List, Plot, Table, Verify
from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import ALIASES, EXPERIMENTS, experiment
from amortized_bayes.memory import is_out_of_memory
from amortized_bayes.stopping import EXIT_CODE, Stopped, heeding
from amortized_bayes.terminal import close_quietly, open_missing, plain, plain_output

__all__ = ["main"]

LOOKING: dict[str, type] = {
    "list": List,
    "plot": Plot,
    "table": Table,
    "verify": Verify,
    "keep": Keep,
    "report": Report,
    "claims": Claims,
    "download": Download,
}
"""Commands that are not experiments."""
DESCRIPTION = (
    "Amortized against factorized and constant variational inference: what does amortized inference cost? "
    "Without a command, `sweep` is run. `COMMAND --help` explains a command, `--version` prints the version."
)
TRACEBACK = "AMORTIZED_BAYES_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when it worked, 2 with one line when its input was wrong, 130 when interrupted.

    On SIGTERM or SIGUSR1, a run saves its state and exits within ten seconds, with one line and exit code 75.

    Set the environment variable ``AMORTIZED_BAYES_TRACEBACK`` to see where an error was raised.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_missing()
    if given == ["--version"]:
        print(f"amortized_bayes {__version__}")
        sys.exit(0)
    try:
        with heeding():
            command = _parse(given)
            with plain_output():
                command.run(given)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        close_quietly()
        sys.exit(141)
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if is_out_of_memory(error):
            lines = [f"the memory ran out ({lines[0][:200]}); use fewer or smaller layers, draws, chains, or --jobs"]
        print(f"error: {plain(lines[0])}", file=sys.stderr)
        close_quietly()
        sys.exit(2)
    except Stopped as stop:
        print(f"stopped by {plain(str(stop))}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _parse(given: list[str]) -> Any:
    """The command with its fields filled from flags; a bare call, or one that starts with a flag, is a sweep."""
    asks_for_help = bool(given) and given[0] in ("-h", "--help")
    if not asks_for_help and (not given or given[0].startswith("-")):
        given = ["sweep", *given]
    given = [ALIASES.get(given[0], given[0]), *given[1:]]
    flags: dict[str, Any] = {}
    if not asks_for_help:
        check_command(given[0], [*EXPERIMENTS, *LOOKING])
        flags = _flags(given[0])
        check_flags(given[0], given[1:], flags)
    union: Any = None
    for name in EXPERIMENTS:
        member = _command(name, given if given[0] == name else [])
        union = member if union is None else union | member
    for name, cls in LOOKING.items():
        union = union | Annotated[cls, tyro.conf.subcommand(name)]
    form = tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[union]]
    options: dict[str, Any] = {"args": given, "prog": "run_experiments.py", "description": DESCRIPTION}
    if {"-h", "--help"} & set(given):
        return tyro.cli(form, **options)
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return tyro.cli(form, **options)
    except SystemExit as stop:
        _raise_refusal(stop)
        raise SettingError(in_one_line(said.getvalue(), given[0], given[1:], flags)) from None


def _flags(name: str) -> dict[str, Any]:
    """The flags of a command, with their annotations."""
    return flags_of(LOOKING[name]) if name in LOOKING else flags_of(Run, experiment(name).Config)


def _command(name: str, given: list[str]) -> Any:
    """The subcommand of an experiment, whose flags start from its preset; its help is that of its settings."""
    module: Any = experiment(name)
    text = (getdoc(module.Config) or "").split("\n\n")[0].replace("\n", " ")
    text += f" Presets: {', '.join(module.PRESETS)}." if given else ""
    return Annotated[Run[module.Config], tyro.conf.subcommand(name, default=defaults(name, given), description=text)]


def _raise_refusal(stop: SystemExit) -> None:
    """Raise the error of the configuration itself, which tyro would show in a box of several lines."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, SettingError):
            raise SettingError(str(cause)) from None
        cause = cause.__context__


if __name__ == "__main__":
    main()
