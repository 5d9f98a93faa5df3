"""Where a command runs its jobs: in this process, in others, or on a Ray cluster, as its flags say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from amortized_bayes.experiments.plans import Plan

__all__ = ["Flags", "check_runner", "placed"]


class Flags(NamedTuple):
    """The flags that say where the jobs of a command run."""

    runner: Literal["inline", "processes", "ray"] | None
    address: str | None
    gpus_per_job: float | None
    jobs: int | None
    device: Literal["auto", "cpu", "cuda"]
    accept_changes: bool


def check_runner(flags: Flags) -> None:
    """Refuse flags of another runner, and a cluster that does not exist; otherwise connect this process to it.

    Raises:
        ValueError: such flags, or no cluster.
    """
    for flag, value in {"--address": flags.address, "--gpus-per-job": flags.gpus_per_job}.items():
        if value is not None and flags.runner != "ray":
            raise ValueError(f"expected --runner ray with {flag}, got {flags.runner or 'none'}")
    if flags.runner == "inline" and (flags.jobs or 1) > 1:
        raise ValueError(f"expected --jobs of 1 with --runner inline, got {flags.jobs}")
    share = flags.gpus_per_job
    if share is not None and not (0 < share <= 1 or (share > 1 and share.is_integer())):
        raise ValueError(f"expected --gpus-per-job above 0, up to 1 or a whole number, got {share:g}")
    if share is not None and flags.device == "cpu":
        raise ValueError("expected no --gpus-per-job with --device cpu")
    if flags.runner == "ray":
        from amortized_bayes.experiments.cluster import Cluster

        Cluster(flags.address or "auto").connect()


def placed(plan: Plan, flags: Flags) -> Plan:
    """The plan, with where its jobs run and how many at a time.

    Raises:
        ValueError: a cluster without room for a single job.
    """
    if flags.runner != "ray":
        return replace(plan, runner=flags.runner or "")
    from amortized_bayes.experiments.cluster import Cluster

    on_gpu = plan.lab.device.type == "cuda"
    if flags.gpus_per_job is not None and not on_gpu:
        raise ValueError("expected a GPU for --gpus-per-job on the machine that starts the run too, got none")
    gpus = (flags.gpus_per_job or 1.0) if on_gpu else 0.0
    cluster = Cluster(flags.address or "auto", gpus, flags.accept_changes)
    slots = cluster.slots(plan.threads)
    plan = replace(plan, runner="ray", cluster=cluster, most=flags.jobs or slots)
    return plan if plan.folder is not None else replace(plan, about={**plan.about, "jobs": plan.workers})
