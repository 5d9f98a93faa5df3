"""One command per experiment: read its settings, forecast it, run or resume it, and show what came out."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

from amortized_bayes.commands.flags import given_flags, value_of
from amortized_bayes.commands.resuming import refuse_other_settings, run_to_resume
from amortized_bayes.commands.runners import Flags, check_runner, placed
from amortized_bayes.configuration import load_config
from amortized_bayes.experiments import experiment
from amortized_bayes.refusals import did_you_mean
from amortized_bayes.stopping import EVERY, Stopped

if TYPE_CHECKING:
    from amortized_bayes.experiments.plans import Plan
    from amortized_bayes.results import RunFolder

__all__ = ["Run", "defaults"]

C = TypeVar("C")
WEEK = 7 * 86_400
"""Seconds above which a run must be confirmed."""


@dataclass(frozen=True)
class Run(Generic[C]):
    """Run an experiment.

    Args:
        setting: Settings of the experiment. A preset or a file sets all of them; flags change single ones.
        preset: Settings that all other flags start from.
        config: YAML file of settings to start from, such as a run's config.yaml; flags override it.
        resume: Run to resume: its path, its name, or latest. It keeps its settings (flags that ask for others are
            refused) and its finished jobs.
        fresh: Start a new run, even if the same command left an unfinished one, which would otherwise be resumed.
        accept_changes: Resume a run even if the machine, the packages or the data have changed since its start, or use
            machines of a Ray cluster that differ from this one; rows added this way are marked.
        yes: Start a run even if its forecast is longer than a week.
        dry_run: Print the jobs, the time and the disk space that the run would take, and stop.
        device: Device to run on; auto uses a GPU if there is one.
        jobs: Number of jobs to run at a time, each in its own process; by default the number of cores, or
            OMP_NUM_THREADS if that is set, and 1 on a GPU; on a Ray cluster as many as it has room for. Results do
            not depend on it.
        runner: Where jobs run: in this process, in processes of this machine, or on a Ray cluster; by default in
            processes if several jobs run at a time. Results do not depend on it.
        address: Ray cluster to run on, HOST:PORT, or auto for the one that this machine is part of (docs/cluster.md).
        gpus_per_job: Share of a GPU that each job on a Ray cluster gets; by default 1 with --device cuda.
        data_dir: Folder with data sets; by default AMORTIZED_BAYES_DATA, then the cache, then a download.
        out: Folder for results; models that were trained there before are shared.
        checkpoint_every: Seconds between two checkpoints of a running job; fewer are written if writing is slow.
        wide: Print every table, including those that need a wide terminal.
        log: Also write curves, and images with their reconstructions, for TensorBoard, into the run's folder.
    """

    setting: C
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = "quick"
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    accept_changes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    runner: Literal["inline", "processes", "ray"] | None = None
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    gpus_per_job: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = EVERY
    wide: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    log: Annotated[Literal["tensorboard"] | None, tyro.conf.arg(metavar="tensorboard")] = None
    name: tyro.conf.Suppress[str] = ""

    def run(self, given: Sequence[str]) -> None:
        """Run or resume the experiment, and show what came out.

        Raises:
            ValueError: whatever is wrong with the input, in one line.
        """
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"expected --jobs of 1 or more, got {self.jobs}")
        if not self.checkpoint_every >= 0:
            raise ValueError(f"expected --checkpoint-every of 0 seconds or more, got {self.checkpoint_every}")
        if self.fresh and self.resume is not None:
            raise ValueError(f"expected --resume or --fresh, a new run, got both: --resume {self.resume} --fresh")
        check_runner(self._where)
        print(f"{self.name}: {'resuming' if self.resume else 'starting'}; loading torch", flush=True)
        plan = self._plan(given)
        for said in filter(None, (plan.about.get("note"), plan.about.get("settings"))):
            print(said, flush=True)
        folder = self._carry_out(plan)
        if folder is None:
            return
        from amortized_bayes.presenting import present

        figures = present(plan.module, folder, wide=self.wide)
        names = sorted({path.name for path in figures if path.suffix == ".png"})
        print(f"figures: {', '.join(names) or 'none'}")
        print(f"results: {folder.path}")
        if all(status == "failed" for status in folder.done().values()):
            raise ValueError(f"every job of {folder.path} failed, as its rows record")

    @property
    def _where(self) -> Flags:
        return Flags(**{name: getattr(self, name) for name in Flags._fields})

    def _plan(self, given: Sequence[str], *, nested: bool = False) -> Plan:
        """The run to carry out; ``nested``: with settings made by another run, whatever the flags say."""
        return placed(self._planned(given, nested=nested), self._where)

    def _planned(self, given: Sequence[str], *, nested: bool = False) -> Plan:
        from amortized_bayes.experiments.lab import Lab
        from amortized_bayes.experiments.plans import new_plan, resumed_plan, same_again
        from amortized_bayes.results import environment

        device, about = _machine(self.device)
        most = 1 if self.runner == "inline" else self.jobs or _jobs_at_once(device)
        lab = Lab(self.out, device, self.data_dir, self.checkpoint_every)
        lab.nested = self._nested
        if self.resume is not None:
            plan = resumed_plan(self.name, self.resume, lab, most, environment() | about, accept=self.accept_changes)
            assert plan.folder is not None
            refuse_other_settings(plan.folder, given, SHARED, self.setting, plan.config)
            print(f"resuming {plan.folder.path} with the settings of its config.yaml", flush=True)
            return plan
        now = environment() | about
        about = now | {"preset": self.preset} | ({} if nested else {"command": shlex.join(given)})
        flags = [flag.replace("-", "_") for flag in given_flags(given)]
        if self.preset == "quick" and "dataset" in flags:  # the default: to name it asks for nothing else
            flags = [flag for flag in flags if flag != "preset"]
        plan = new_plan(self.name, self.setting, lab, ["config"] if nested else flags, about, most)
        if self.fresh:
            return plan
        plan, said = same_again(plan, now, accept=self.accept_changes)
        if said:
            print(said, flush=True)
        return plan

    def _nested(self, name: str, config: Any) -> RunFolder | None:
        """Run another experiment to its end first, unless that was done before; in a dry run, do nothing.

        If a command is given again after its run was killed, it uses what it had found for that run.
        """
        from amortized_bayes.experiments.plans import done_before

        plan = replace(self, name=name, setting=config, resume=None)._plan((), nested=True)
        wanted = not self.fresh and plan.folder is None  # one that is unfinished comes first
        done = done_before(plan) if wanted else None
        if done is None:
            return self._carry_out(plan)
        print(
            f"{name}: using {done.path}, which has the same settings and is finished (--fresh: a new one)", flush=True
        )
        return done

    def _carry_out(self, plan: Plan) -> RunFolder | None:
        """Run what is planned, or in a dry run print it."""
        if self.dry_run:
            _print_plan(plan)
            return None
        _check_forecast(plan, confirmed=self.yes)
        from amortized_bayes.commands.reporting import Reporting
        from amortized_bayes.experiments.running import run

        try:
            with Reporting(tensorboard=self.log == "tensorboard") as reporting:
                return run(plan, reporting)
        except (KeyboardInterrupt, Stopped) as stop:
            place = "" if self.out == Path("results") else f" --out {self.out}"
            hint = f"`{plan.name} --resume latest{place}` resumes the run"
            if isinstance(stop, Stopped):
                raise Stopped(f"{stop}: what is done is kept, {hint}") from None
            print(f"what is finished is kept: {hint}", file=sys.stderr)
            raise


SHARED = frozenset(entry.name for entry in fields(Run)) - {"setting", "preset", "config"}
"""Flags that say how to run, not what."""


def defaults(name: str, given: Sequence[str]) -> Run[Any]:
    """The command of an experiment, with the settings of ``--preset`` and ``--config``, or of the run to resume.

    Raises:
        ValueError: an unknown preset, a flag given twice, a file that is no configuration, or no such run.
    """
    module = experiment(name)
    preset = value_of(given, "--preset") or "quick"
    if preset not in module.PRESETS:
        near = did_you_mean(preset, list(module.PRESETS))
        raise ValueError(f"expected --preset {' or '.join(module.PRESETS)}, got {preset!r}{near}")
    setting = module.PRESETS[preset]
    if not {"-h", "--help"} & set(given) and (folder := run_to_resume(name, given, Run.out)) is not None:
        setting = folder.config(module.Config)
    if (path := value_of(given, "--config")) is not None:
        setting = load_config(module.Config, path, setting)
    return Run(setting, preset, name=name)


def _machine(device: str) -> tuple[Any, dict[str, Any]]:
    """The device to run on, and what ``environment.json`` says of it.

    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for --device cuda, got none")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu"
    return chosen, {"device": name}


def _jobs_at_once(device: Any) -> int:
    """How many jobs run at a time by default: one per core that torch may use, one on a GPU."""
    import torch

    return 1 if device.type == "cuda" else torch.get_num_threads()


def _check_forecast(plan: Plan, *, confirmed: bool) -> None:
    """Refuse a run that does not fit on the disk, or that takes more than a week and is not confirmed.

    Raises:
        ValueError: such a run.
    """
    from amortized_bayes.memory import in_words
    from amortized_bayes.progress import counted, duration

    forecast = plan.forecast
    free = free_bytes(plan.lab.out)
    if forecast.disk > free:
        raise ValueError(
            f"expected a run that fits on the disk, got one that leaves {in_words(forecast.disk)} in {plan.lab.out}, "
            f"where {in_words(free)} are free"
        )
    if forecast.seconds > WEEK and not confirmed:
        raise ValueError(
            f"expected a run of a week at most, got {counted(len(plan.left), 'job')} of {plan.name} that take about "
            f"{duration(forecast.seconds)}{forecast.basis}; --yes starts it anyway, --dry-run lists its jobs"
        )


def free_bytes(path: Path) -> float:
    """Free bytes on the disk of a folder, which need not exist yet."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return float(shutil.disk_usage(there).free)


def _print_plan(plan: Plan) -> None:
    from amortized_bayes.experiments.plans import training_title
    from amortized_bayes.progress import counted, duration

    forecast = plan.forecast
    for config in plan.missing:
        print(f"{training_title(config)}: {duration(forecast.seconds_of(config))}")
    for job in plan.left:
        print(f"{plan.title(job)}: {duration(forecast.seconds_of(job.key))}")
    models = f"{counted(len(plan.missing), 'model')} to train and " if plan.missing else ""
    print(f"in all {models}{counted(len(plan.left), 'job')} of {plan.name}")
    side = f"{counted(forecast.workers, 'job')} at a time, each on {counted(plan.threads, 'thread')}"
    print(f"time: about {duration(forecast.seconds)} on {plan.lab.device}, {side}{forecast.basis}")
    print(f"disk: about {forecast.disk / 1e6:,.1f} MB in {plan.lab.out}, by arithmetic")
