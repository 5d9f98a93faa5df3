"""How fast is annealed importance sampling with its certificate, and what do start and mass buy?

Four measurements on the VAE of `train` (784-200-200-50, fixed binarized MNIST):

- `ais` on 1,000 training points with 16 chains each and `bdmc` on 200 simulated points, with default settings. Aim on
  two cores: 40 seconds together, bidirectional gap of at most 0.1 nat on average;
- the gap against gradients per chain, for starts at the prior and at the guide's q and both choices of mass, on a few
  simulated points;
- a gradient of 10,000 chains over the decoder's matrix products alone, forwards and backwards. Aim: at most 2;
- the peak memory of a process with 10 and with 1,000 temperatures.

    python benchmarks/ais.py --json ais.json
    python benchmarks/ais.py --only-certified --threads 2
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from _measure import find_device, show_table, surroundings, use_threads, wait_for, wide_console, write_json
from _vae import Subject, subject
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from amortized_bayes.evaluation.ais import ais
from amortized_bayes.evaluation.annealing import Ticker, chunks
from amortized_bayes.evaluation.bdmc import bdmc
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.joint import joint_density
from amortized_bayes.plotting import save_figure, style
from amortized_bayes.plotting.annotations import format_tick

Way = tuple[Literal["guide", "prior"], Literal["guide", "unit"]]
WAYS: tuple[Way, ...] = (("guide", "guide"), ("guide", "unit"), ("prior", "guide"), ("prior", "unit"))
"""Starts and masses."""


@dataclass(frozen=True)
class Options:
    """Time AIS.

    Args:
        points: Training points.
        simulated: Points of the certificate.
        curve_points: Simulated points of the curves.
        temperatures: Numbers of temperatures on the curves.
        rows: Chains times points of the gradient that is timed.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        out: Folder with results, where the trained model is looked for or put.
        json: File for the figures.
        figure: PNG of the gap against gradients.
        drawn_from: Draw the figure from these kept figures, and measure nothing.
        only_certified: The first measurement alone: seconds of the bound and its certificate.
        quick: A small model and few temperatures, to see that everything runs.
        memory_of: Internal: print the peak memory of AIS with so many temperatures and stop.
    """

    points: int = 1_000
    simulated: int = 200
    curve_points: int = 20
    temperatures: tuple[int, ...] = (30, 100, 300, 1_000)
    rows: int = 10_000
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path = Path("results")
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    drawn_from: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    only_certified: bool = False
    quick: bool = False
    memory_of: Annotated[int, tyro.conf.arg(metavar="T")] = 0


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, points=6, simulated=4, curve_points=4, temperatures=(5, 10), rows=64)
    if options.drawn_from is not None:
        if options.figure is None:
            print("error: expected --figure FILE with --drawn-from, got none", file=sys.stderr)
            sys.exit(2)
        draw_curves(json.loads(options.drawn_from.read_bytes())["curves"], options.figure)
        return
    threads, device = use_threads(options.threads), find_device(options.device)
    about = subject(options.points, device, options.out, quick=options.quick)
    if options.memory_of:
        _run_for_memory(about, options.memory_of)
        return
    figures: dict[str, Any] = {"certified": _certified(about, options, device)}
    _show_certified(figures["certified"], about, threads, device)
    if options.only_certified:
        found = {**figures, "model": about.described, "environment": surroundings(threads, device)}
        write_json(options.json, found, quick=options.quick)
        return
    figures["curves"] = _curves(about, options)
    ratios = _gradient(about, options, device)
    figures["gradient_over_products"] = statistics.median(ratios)
    figures["peak_memory_mb"] = {t: _memory(options, t) for t in (10, 1_000)}
    _show(figures)
    if options.figure is not None:
        draw_curves(figures["curves"], options.figure)
    found = {**figures, "model": about.described, "environment": surroundings(threads, device)}
    write_json(options.json, found, {"gradient / its matrix products": ratios}, quick=options.quick)


def _certified(about: Subject, options: Options, device: torch.device) -> dict[str, Any]:
    """Both calls with default settings, timed."""
    model, guide, x = about.trained.model, about.trained.guide, about.x
    settings = AISSettings(num_temperatures=10) if options.quick else AISSettings()
    start, processor = time.perf_counter(), time.process_time()
    bound = ais(model, guide, x, settings=settings)
    wait_for(device)
    ais_seconds = time.perf_counter() - start
    start = time.perf_counter()
    both = bdmc(model, guide, x, settings=settings, certificate=CertificateSettings(options.simulated))
    wait_for(device)
    return {
        "points": len(x),
        "chains": settings.num_chains,
        "gradients": settings.num_gradients,
        "ais_seconds": ais_seconds,
        "bdmc_seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "log_p_mean": bound.log_p.mean().item(),
        "standard_error": bound.standard_error.mean().item(),
        "acceptance": bound.acceptance.mean().item(),
        "gap": both.mean_gap,
        "gap_error": both.gap_error,
        "settings": asdict(settings),
    }


def _curves(about: Subject, options: Options) -> list[dict[str, Any]]:
    """Bidirectional gap for each way to start and each number of temperatures."""
    found = []
    for start, mass in WAYS:
        for temperatures in options.temperatures:
            settings = AISSettings(num_temperatures=temperatures, start=start, mass=mass)
            begin = time.perf_counter()
            wanted = CertificateSettings(options.curve_points)
            both = bdmc(about.trained.model, about.trained.guide, about.x, settings=settings, certificate=wanted)
            found.append(
                {
                    "start": start,
                    "mass": mass,
                    "gradients": settings.num_gradients,
                    "gap": both.mean_gap if math.isfinite(both.mean_gap) else None,
                    "gap_error": both.gap_error if math.isfinite(both.gap_error) else None,
                    "seconds": time.perf_counter() - begin,
                }
            )
            line = found[-1]
            print(f"start {start}, mass {mass}, {line['gradients']} gradients: gap {both.mean_gap:.3f}", flush=True)
    return found


def _gradient(about: Subject, options: Options, device: torch.device, repeats: int = 20) -> list[float]:
    """Time of the density of a chunk and its gradient over that of its products, of paired rounds."""
    settings = AISSettings(memory_budget=1e12)  # one chunk
    points = max(1, min(len(about.x), options.rows // settings.num_chains))
    joint = joint_density(about.trained.model, about.x[:points])
    chunk = next(chunks(joint, about.trained.guide, settings, 0, Ticker(None, settings, 1)))
    z = chunk.draw_start(settings.num_chains).z
    weights = [p.detach() for p in about.trained.model.parameters() if p.dim() == 2]
    inputs = [torch.randn(z.shape[0] * z.shape[1], w.shape[1], device=device) for w in weights]
    outputs = [torch.randn(len(row), len(w), device=device) for row, w in zip(inputs, weights, strict=True)]
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        chunk.density(z)
        wait_for(device)
        middle = time.perf_counter()
        for row, weight, output in zip(inputs, weights, outputs, strict=True):
            row @ weight.T
            output @ weight
        wait_for(device)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return ratios


def _memory(options: Options, temperatures: int) -> float:
    """Peak memory in MB of a process of its own that walks so many temperatures."""
    command = [sys.executable, __file__, "--memory-of", str(temperatures), "--out", str(options.out)]
    command += ["--points", "50", "--threads", "1", "--device", "cpu", *(["--quick"] if options.quick else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _run_for_memory(about: Subject, temperatures: int) -> None:
    ais(about.trained.model, about.trained.guide, about.x, settings=AISSettings(num_temperatures=temperatures))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2))


def _show_certified(done: dict[str, Any], about: Subject, threads: int, device: torch.device) -> None:
    rows = [
        (
            f"ais, {done['points']:,} points, {done['chains']} chains, {done['gradients']} gradients",
            f"{done['ais_seconds']:.1f} s",
        ),
        ("bdmc", f"{done['bdmc_seconds']:.1f} s"),
        ("together", f"{done['ais_seconds'] + done['bdmc_seconds']:.1f} s"),
        ("together, of the processor", f"{done['processor_seconds']:.1f} s"),
        ("lower bound, mean over points", f"{done['log_p_mean']:.3f} nats"),
        ("its standard error at a point", f"{done['standard_error']:.3f} nats"),
        ("bidirectional gap", f"{done['gap']:.3f}±{done['gap_error']:.3f} nats"),
        ("acceptance", f"{done['acceptance']:.2f}"),
    ]
    show_table(
        f"AIS on {about.described['dataset']}, {threads} threads, {device}", ("", "figure"), rows, wide_console()
    )


def _show(figures: dict[str, Any]) -> None:
    memory = figures["peak_memory_mb"]
    rows = [
        ("a gradient over its matrix products", f"{figures['gradient_over_products']:.2f}"),
        ("peak memory at 10 and 1,000 temperatures", f"{memory[10]:.0f} and {memory[1_000]:.0f} MB"),
    ]
    show_table("Cost", ("", "figure"), rows, wide_console())
    curves = [
        (f"start {c['start']}, mass {c['mass']}", f"{c['gradients']:,}", f"{c['gap']:.3f}±{c['gap_error']:.3f}")
        for c in figures["curves"]
        if c["gap"] is not None
    ]
    show_table("Gap against gradients per chain", ("way", "gradients", "gap (nats)"), curves, wide_console())


def draw_curves(curves: list[dict[str, Any]], path: Path) -> None:
    """Gap against gradients per chain for each start and mass, bars one standard error over points."""
    looks = {"guide": ("#0072B2", "o"), "prior": ("#D55E00", "s")}
    with style():
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for place, (start, mass) in enumerate(WAYS):
            rows = [c for c in curves if (c["start"], c["mass"]) == (start, mass) and c["gap"] is not None]
            color, marker = looks[start]
            line = "-" if mass == "guide" else "--"
            label = (
                f"start at {'q' if start == 'guide' else 'the prior'}, {'mass from q' if mass == 'guide' else 'mass 1'}"
            )
            gaps, errors = [c["gap"] for c in rows], [c["gap_error"] for c in rows]
            where = [c["gradients"] * 1.02 ** (place - 1.5) for c in rows]  # side by side
            axes.errorbar(where, gaps, yerr=errors, color=color, marker=marker, linestyle=line, capsize=2, label=label)
        axes.axhline(0.1, color="0.4", linewidth=0.8, linestyle=":")
        axes.annotate("aim: 0.1", (0.01, 0.1), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=0.1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(format_tick))
        axes.set_xlabel("gradients per chain")
        axes.set_ylabel("bidirectional gap (nats), simulated points")
        axes.legend()
    save_figure(figure, path.parent, path.stem)


if __name__ == "__main__":
    main()
