"""The tables of figures in the docs, from what the benchmarks wrote into results/benchmarks.

    python benchmarks/step.py --threads 1 --json results/benchmarks/step.json
    python benchmarks/tables.py

Each table stands between two comments of its page, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``, and is replaced
there. A test holds the pages to the files.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tyro
from _sides import COMPILED, LAST, MOMENTS, NUMPYRO, PRODUCTS, PYRO, REPLAYED, TORCH
from step import OF_PRODUCTS, OF_PRODUCTS_SWEEP, TARGETS

from amortized_bayes.presenting.cells import listed
from amortized_bayes.presenting.markdown import markdown_table, with_block

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "benchmarks"
Figures = dict[str, Any]


def read(name: str) -> Figures:
    """Figures that are kept."""
    return json.loads((KEPT / f"{name}.json").read_bytes())


def measured_on(*names: str) -> str:
    """Files and where they were measured: a line per machine and commit, for below a table."""
    files: dict[str, list[str]] = {}
    for name in names:
        env = read(name)["environment"]
        threads = "one thread" if env["threads"] == 1 else f"{env['threads']} threads"
        versions = ", ".join(f"{p} {env['packages'][p]}" for p in ("torch", "numpyro") if env["packages"].get(p))
        where = f"{env['processor']}, {env['cpu_count']} cores, {threads}, {versions}"
        where += f", commit {env['git']['commit'][:7]}, {env['date'][:10]}"
        files.setdefault(where, []).append(f"`{name}.json`")
    return "\n".join(f"Measured: {listed(of)} of `results/benchmarks` ({where})." for where, of in files.items())


def step() -> str:
    """Milliseconds per step of all sides, and the ratios that have aims."""
    settings: dict[tuple[str, int], dict[str, Figures]] = {}
    sweep: dict[str, Figures] = {}
    for row in read("step")["rows"]:
        of = sweep if row["sweep"] else settings.setdefault((row["decoder"], row["batch_size"]), {})
        of[row["side"]] = row
    sides = (PYRO, TORCH, NUMPYRO, REPLAYED, COMPILED, LAST, PRODUCTS)
    times = [
        [f"{decoder}, {batch:,}", *(f"{rows[side]['milliseconds']:.2f}" for side in sides)]
        for (decoder, batch), rows in settings.items()
    ]
    headings = ["decoder, batch", "Pyro `SVI.step`", "PyTorch by hand", "NumPyro, jit"]
    headings += ["replayed", "compiled", "compiled, no averages", "matrix products alone"]
    ratios = [
        [
            f"{decoder}, {batch:,}",
            of_aim(rows[LAST]["of_pyro"], TARGETS[PYRO].get(batch)),
            of_aim(rows[LAST]["of_numpyro"], TARGETS[NUMPYRO].get(batch)),
            of_aim(rows[LAST]["of_products"], OF_PRODUCTS.get((decoder, batch))),
        ]
        for (decoder, batch), rows in settings.items()
    ]
    for how in (f"{COMPILED}, {MOMENTS}", f"{COMPILED}, quadrature, {MOMENTS}"):
        row = sweep[how]
        what = how.removeprefix(f"{COMPILED}, ").replace(MOMENTS, "local reparametrization")
        what = f"step of the sweep, {what}: {row['milliseconds']:.2f} ms"
        ratios.append([what, "", "", of_aim(row["of_products"], OF_PRODUCTS_SWEEP)])
    of = ["compiled, no averages, over", "Pyro", "NumPyro", "its matrix products"]
    return "\n\n".join([markdown_table(headings, times), markdown_table(of, ratios), measured_on("step")])


def of_aim(number: float, aim: float | None, form: str = ".2f") -> str:
    """A number, and in brackets the most it should be."""
    return f"{number:{form}}{'' if aim is None else beside(aim, number <= aim)}"


def beside(aim: float, met: bool) -> str:
    """An aim in brackets, after what was measured."""
    return f" (aim {aim:,g}{'' if met else ', not met'})"


def estimators() -> str:
    """Seconds of estimators and calls, with their aims."""
    local, ais, iwae, calls, race = map(read, ("local", "ais", "iwae", "calls", "race"))
    certified, memory = ais["certified"], ais["peak_memory_mb"]
    both = certified["ais_seconds"] + certified["bdmc_seconds"]
    gap = f"{certified['gap']:.3f}±{certified['gap_error']:.3f}"
    behind = f"{local['behind_mean']:.3f}±{local['behind_error']:.3f}"
    mnist, hashing = read("calls-mnist"), read("hashing")
    lines = [
        (
            "`local.py`: q* of 1,000 points from the encoder",
            (60, local["seconds"]),
            f"{behind} nats behind a search twenty times as long, on {local['long_points']} points"
            f"{beside(0.05, local['behind_mean'] <= 0.05)}; "
            f"{local['evaluations_mean']:,.0f} decoder evaluations per point, at most "
            f"{of_aim(local['evaluations_most'], 5_000, ',')}",
        ),
        (
            "`local.py`: best real-NVP flow of each of 1,000 points, from q*",
            (120, local["flow_seconds"]),
            f"gain {local['flow_gain_mean']:.3f}±{local['flow_gain_error']:.3f} nats per point; "
            f"{local['flow_processor_seconds']:.0f} s of processor time",
        ),
        (
            "`ais.py`: AIS of 1,000 points, 16 chains, with its certificate on 200 simulated points",
            (40, both),
            f"bidirectional gap {gap} nats{beside(0.1, certified['gap'] <= 0.1)}; "
            f"{certified['gradients']} gradients per chain",
        ),
        (
            "`iwae.py`: IWAE of 1,000 points, 5,000 particles",
            (35, iwae["seconds"]),
            f"{iwae['over_products']:.2f} times the decoder's matrix products; {iwae['over_seam']:.2f} of the time of "
            "running the encoder for each particle",
        ),
        (
            "`calls.py`: first guide of `compare` on 1,000 points, a VAE 64-32-10",
            (30, calls["compare_first"][0]),
            f"all guides in {calls['compare_seconds'][0]:.1f} s",
        ),
        (
            "`calls.py`: `diagnose` of 100 of them",
            (10, calls["diagnose_seconds"][0]),
            f"of the best guide, {calls['best']}",
        ),
        (
            "the same, full covariance of 16 latents",
            (10, calls["correlated_seconds"][0]),
            f"64 pixels; {calls['correlated_temperatures']} temperatures",
        ),
        (
            "`calls.py --only-diagnose --mnist`: the same on binarized MNIST",
            (10, mnist["correlated_seconds"][0]),
            f"784 pixels, 200 hidden units; the certificate needs {mnist['correlated_temperatures']:,} temperatures",
        ),
        ("`hashing.py`: an epoch of 11,314 documents, 64 bits, DisARM", *over_sides(hashing)),
    ]
    table = [[what, of_aim(seconds, aim, ".3g"), more] for what, (aim, seconds), more in lines]
    said = [
        markdown_table(["what", "seconds", "more"], table),
        f"A gradient of AIS with 10,000 chains takes {ais['gradient_over_products']:.2f} times as long as its own "
        f"matrix products{beside(2, ais['gradient_over_products'] <= 2)}. The peak memory of AIS is "
        f"{memory['10']:,.0f} MB with 10 temperatures and {memory['1000']:,.0f} MB with 1,000.",
        "`race.py`: seconds to the ELBO that the published method (full batch, Adam at 1e-3, plain PyTorch) reaches "
        "after 2,500 steps, its time extrapolated from some of them: " + "; ".join(map(raced, race["rows"])) + ".",
        measured_on("local", "ais", "iwae", "calls", "calls-mnist", "hashing", "race"),
    ]
    return "\n\n".join(said)


def over_sides(hashing: Figures) -> tuple[tuple[float, float], str]:
    """Aim and seconds of an epoch, and its time over that of each other side."""
    ratios = {name.partition(" / ")[2]: statistics.median(rounds) for name, rounds in hashing["ratios"].items()}
    ours = hashing["this library"]["seconds_per_epoch"]
    return (2, ours), "; ".join(f"{ratio:.2f} times {name}" for name, ratio in ratios.items())


def raced(row: Figures) -> str:
    """One family's race."""
    ours, theirs = row["ours"], row["published"]
    name = {"amortized": "A-VI with k = 64", "factorized": "F-VI"}[row["family"]]
    return (
        f"{name} takes {ours['reached_step']} steps and {ours['seconds']:.2f} s against "
        f"{theirs['seconds']:.0f} s: {row['times_sooner']:.0f} times faster{beside(50, row['times_sooner'] >= 50)}"
    )


def semi_amortized() -> str:
    """A training step with T per-point steps over a plain one."""
    figures = read("semi_amortized")
    sides: dict[str, dict[int, str]] = {}
    for name, found in figures.items():
        if name.startswith("T = "):
            steps, way = name.removeprefix("T = ").split(", ")
            sides.setdefault(way, {})[int(steps)] = of_aim(found["ratio"], found["aim"])
    meaning = {
        "all": "to guide and model (`all`)",
        "guide": "to the guide alone (`guide`), as `train`, `sweep` and `close-the-gap` have it",
        "straight": "none (`straight`)",
    }
    numbers = sorted({t for found in sides.values() for t in found})
    headings = ["gradients through the steps", *(f"T = {t}" for t in numbers)]
    lines = [[meaning[way], *(found[t] for t in numbers)] for way, found in sides.items()]
    return f"{markdown_table(headings, lines)}\n\n{measured_on('semi_amortized')}"


def scale() -> str:
    """A step of F-VI by the number of points."""
    rows = read("scale")["rows"]
    by_kind: dict[bool, dict[int, Figures]] = {True: {}, False: {}}
    for row in rows:
        by_kind[row["side"].startswith("rows")][row["N"]] = row
    lines = [
        [
            f"{n:,}",
            f"{row['milliseconds']:.2f}",
            f"{row['of_first']:.2f}",
            f"{by_kind[False][n]['milliseconds']:.2f}" if n in by_kind[False] else "",
        ]
        for n, row in by_kind[True].items()
    ]
    headings = ["N", "F-VI, ms per step", "over the smallest N", "dense Adam through `table[index]`, ms per step"]
    return f"{markdown_table(headings, lines)}\n\n{measured_on('scale')}"


def refined() -> str:
    """What per-point steps win back."""
    figures = read("refine")
    steps = sorted({int(key.split("_")[1]) for key in figures if key.startswith("natural_")} - {0})
    whole = figures["gap"]

    def line(what: str, text: Callable[[int], str]) -> list[str]:
        return [what, *map(text, steps)]

    def won(optimizer: str) -> Callable[[int], str]:
        return lambda s: f"{figures[f'{optimizer}_{s}_gain']:.2f}±{figures[f'{optimizer}_{s}_error']:.2f}"

    lines = [
        line("natural gradients, nats won per point", won("natural")),
        line("of what q\\* wins", lambda s: f"{figures[f'natural_{s}_gain'] / whole:.1%}"),
        line("seconds, all points, with the encoder", lambda s: f"{figures[f'natural_{s}_seconds']:.2g}"),
        line("Adam in the same coordinates, nats won", won("adam")),
    ]
    said = f"q\\* wins {whole:.2f} nats per point, in {figures['best_seconds']:.0f} s with its scoring."
    return f"{markdown_table(['steps', *map(str, steps)], lines)}\n\n{said} {measured_on('refine')}"


TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "step": (ROOT / "docs/benchmarks.md", step),
    "estimators": (ROOT / "docs/benchmarks.md", estimators),
    "semi_amortized": (ROOT / "docs/benchmarks.md", semi_amortized),
    "scale": (ROOT / "docs/benchmarks.md", scale),
    "refine": (ROOT / "docs/diagnose.md", refined),
}


def pages(names: Iterable[str] = TABLES) -> dict[Path, str]:
    """Pages with tables, as they should be."""
    found: dict[Path, str] = {}
    for name in names:
        path, table = TABLES[name]
        found[path] = with_block(found.get(path) or path.read_text(), name, table())
    return found


def main() -> None:
    """Write the pages that have other tables."""
    for path, text in pages().items():
        if text != path.read_text():
            path.write_text(text)
            print(f"{path.relative_to(ROOT)}: tables written")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
