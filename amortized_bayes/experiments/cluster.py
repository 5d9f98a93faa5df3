"""The Ray cluster that jobs run on: whether it is there, and how much room it has. Ray is imported where it is used."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

__all__ = ["Cluster", "Share", "ray_module"]

CONNECTING = 15.0
"""Seconds after which a cluster that does not answer is none; Ray itself tries for minutes."""


class Share(NamedTuple):
    """What a worker takes of the machine that it is on."""

    cpus: int
    gpus: float


class Cluster(NamedTuple):
    """A Ray cluster that jobs run on.

    Args:
        address: where it is, ``"auto"`` or ``"HOST:PORT"``.
        gpus: how much of a GPU each job gets.
        accept_changes: whether machines may differ in what numbers depend on.
    """

    address: str
    gpus: float = 0.0
    accept_changes: bool = False

    def connect(self) -> None:
        """Connect this process.

        Raises:
            ValueError: without Ray, or without a cluster there.
        """
        ray = ray_module()
        if ray.is_initialized():
            here = ray.get_runtime_context().gcs_address
            if self.address not in ("auto", here):
                raise ValueError(f"expected --address {here}, where this process is connected, got {self.address}")
            return
        _try_to_connect(self.address)
        with _signals_kept():
            ray.init(address=self.address, logging_level="ERROR", log_to_driver=False)

    def share(self, threads: int) -> Share:
        """What a worker takes whose jobs have so many threads."""
        return Share(threads, self.gpus)

    def slots(self, threads: int) -> int:
        """How many jobs of so many threads the whole cluster can hold.

        Raises:
            ValueError: none.
        """
        share, nodes = self.share(threads), [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
        found = sum(_fits(share, node) for node in nodes)
        if found == 0:
            most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
            gpus = f" and {share.gpus:g} GPUs" if share.gpus else ""
            raise ValueError(
                f"expected a machine in the Ray cluster with {share.cpus} CPUs{gpus} for a job, got at most {most} CPUs"
                f"{' and no such share of a GPU' if share.gpus else ''}; OMP_NUM_THREADS sets how many a new run takes"
            )
        return found


def _fits(share: Share, node: dict[str, float]) -> int:
    """How many workers a machine can hold."""
    by_cpus = node.get("CPU", 0.0) // share.cpus
    if not share.gpus:
        return int(by_cpus)
    each = math.floor(1 / share.gpus) if share.gpus < 1 else 1 / share.gpus
    return int(min(by_cpus, math.floor(node.get("GPU", 0.0) * each)))


def ray_module() -> ModuleType:
    """Ray.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module("ray")
    except ImportError:
        raise ValueError("expected the package ray for --runner ray: pip install 'amortized_bayes[ray]'") from None


def _try_to_connect(address: str) -> None:
    """Connect in another process, which can be ended: Ray tries for minutes, deaf to all."""
    command = [sys.executable, "-c", CONNECT, address]
    refusal = f"expected a Ray cluster at --address {address}, got none"
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=CONNECTING, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{refusal}: no answer within {CONNECTING:g} s") from None
    if found.returncode:
        said = [line for line in found.stderr.splitlines() if line.startswith("refused: ")]
        raise ValueError(f"{refusal}{said[-1].removeprefix('refused') if said else ''}")


CONNECT = """
import sys, ray
try:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
except Exception as error:
    words = str(error).strip() or type(error).__name__
    sys.exit(f"refused: {words.splitlines()[0]}")
"""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Undo what is done to the handlers of signals meanwhile: Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
