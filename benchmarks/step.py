"""One step of variational inference: the captured Pyro step beside Pyro's own, plain PyTorch and NumPyro under jit.

All sides fit the same model with the same guide family to the same 10,000 binary images of 784 pixels, kept as uint8:
an encoder 784-64-64-(2 x 64) and a decoder 64-256-784 with LeakyReLU(0.2), 64 latents, Bernoulli pixels, and decoder
weights that are point estimates or have Gaussian priors and mean-field Gaussian factors (drawn once per step, outside
the plate). Every step gathers a fresh minibatch, draws one particle, takes the gradient of the Monte Carlo ELBO (no
analytic KL, unless a row says so) and moves all parameters by Adam.

- *captured*: the library's `Training`, as `fit` uses it, averages of iterates included; replayed, or compiled by
  Inductor, Adam and averages with the gradients. On a GPU the replay is a CUDA graph. *Last iterate* keeps no averages,
  as the other sides keep none: that is the row which is held against theirs.
- *Pyro*: `pyro.infer.SVI` with `Trace_ELBO` and `pyro.optim.Adam` on the same Pyro programs, as shipped (arguments are
  validated), and with validation off. Ratios are to the first.
- *PyTorch*: the same loss written out by hand, `torch.optim.Adam(fused=True)`.
- *NumPyro*: the same programs in NumPyro, gather and `SVI.update` inside one `jax.jit`, on JAX's device.
- *matrix products*: those of the step alone, forward and backward, each by the quickest of torch's kernels.

A last table has a step of the sweep (batch 250, encoder 784-32-(2 x 16), Bayesian decoder 16-64-784, KL warm-up) beside
its own matrix products, by local reparametrization with a draw of each output or with quadrature over it.

Sides take turns in blocks of steps; times are medians over blocks, and ratios medians over rounds of the ratio within a
round. Compiling is timed apart. `--clock processor` counts the seconds that the processor works for this process, of
all its threads: with one thread they are what a quiet machine would take, and others' work touches them less.

    python benchmarks/step.py --batch-sizes 128 1000 --json step.json
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _measure import (
    Side,
    Times,
    find_device,
    show_table,
    side_by_side,
    surroundings,
    use_threads,
    wide_console,
    write_json,
)
from _sides import (
    COMPILED,
    LAST,
    MOMENTS,
    NUM_DATA,
    NUMPYRO,
    PIXELS,
    PRODUCTS,
    PYRO,
    REPLAYED,
    SWEEP_BATCH,
    SWEEP_DECODER,
    SWEEP_ENCODER,
    Setting,
    build_sides,
    sweep_sides,
)

TARGETS = {PYRO: {128: 0.4, 1000: 0.75}, NUMPYRO: {128: 1.0, 1000: 1.0}}
"""Largest share of Pyro's and of NumPyro's time that the compiled step is meant to take, by batch size."""
OF_PRODUCTS = {("point", 128): 1.5, ("point", 1000): 1.5, ("bayesian", 128): 2.2}
"""Largest multiple of the time of its own matrix products that it is meant to take, by decoder and batch size."""
OF_PRODUCTS_SWEEP = 2.0


@dataclass(frozen=True)
class Flags:
    """Time one step of variational inference in this library, Pyro, PyTorch and NumPyro, side by side.

    Args:
        batch_sizes: Points in a minibatch.
        decoders: Decoder weights: point estimates, or latent with priors.
        repeats: Rounds; each times every side once.
        block_seconds: Length of one timed block.
        threads: Threads of torch and JAX; 0 for all cores.
        device: Where torch works; NumPyro works where JAX does.
        sweep: Time a step of the sweep as well.
        numpyro: Include NumPyro.
        clock: What is timed: the clock on the wall, or the seconds that the processor works for this process.
        quick: One step a side at the first batch size, to see that everything runs; the times mean nothing.
        json: File to write the figures to.
    """

    batch_sizes: tuple[int, ...] = (128, 1000)
    decoders: tuple[Literal["point", "bayesian"], ...] = ("point", "bayesian")
    repeats: int = 11
    block_seconds: float = 0.2
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sweep: bool = True
    numpyro: bool = True
    clock: Literal["wall", "processor"] = "wall"
    quick: bool = False
    json: Path | None = None

    def __post_init__(self) -> None:
        if not self.batch_sizes or not all(1 <= b <= NUM_DATA for b in self.batch_sizes):
            raise ValueError(f"expected --batch-sizes of 1 to {NUM_DATA}, got {self.batch_sizes}")
        if self.repeats < 1 or self.block_seconds <= 0 or not self.decoders:
            raise ValueError("expected --repeats, --block-seconds and --decoders of at least one")


def measure(setting: Setting, flags: Flags, *, numpyro: bool) -> tuple[list[Side], Times]:
    """Time all sides of one setting."""
    sides = sweep_sides(setting) if setting.sweep else build_sides(setting, numpyro=numpyro)
    clock = time.process_time if flags.clock == "processor" else time.perf_counter
    repeats = 1 if flags.quick else flags.repeats
    return sides, side_by_side(sides, repeats, flags.block_seconds, one_step=flags.quick, clock=clock)


def figures_of(setting: Setting, sides: Sequence[Side], times: Times) -> list[dict[str, Any]]:
    """One row a side, for JSON."""
    rows = []
    for side in sides:
        first, third = times.quartiles(side.name)
        row: dict[str, Any] = {
            "decoder": "bayesian" if setting.bayesian else "point",
            "sweep": setting.sweep,
            "batch_size": setting.batch_size,
            "side": side.name,
            "milliseconds": times.median(side.name),
            "first_quartile": first,
            "third_quartile": third,
            "prepare_seconds": side.prepare_seconds,
            "note": side.note,
        }
        for key, other in zip(("of_pyro", "of_numpyro", "of_products"), others_of(side.name), strict=True):
            row[key] = times.ratio(side.name, other) if other in times.milliseconds else None
        rows.append(row)
    return rows


def others_of(side: str) -> tuple[str, str, str]:
    """What a side is held against: Pyro's step, NumPyro's, and the products of the same kind of step."""
    return PYRO, NUMPYRO, f"{PRODUCTS}, {MOMENTS}" if side.endswith(MOMENTS) else PRODUCTS


def ratios_of(setting: Setting, times: Times) -> dict[str, list[float]]:
    """Of the library's captured steps to the other sides."""
    own = [side for side in times.milliseconds if side.startswith((REPLAYED, COMPILED))]
    found: dict[str, list[float]] = {}
    for side in own:
        found |= times.against([side], others_of(side), setting.name)
    return found


def verdicts(setting: Setting, times: Times) -> list[str]:
    """Say whether the compiled step reaches its targets, in words."""
    targets = [
        (LAST, other, of_batch[setting.batch_size])
        for other, of_batch in TARGETS.items()
        if setting.batch_size in of_batch
    ]
    kind = "bayesian" if setting.bayesian else "point"
    if (kind, setting.batch_size) in OF_PRODUCTS:
        targets.append((LAST, PRODUCTS, OF_PRODUCTS[kind, setting.batch_size]))
    if setting.sweep:
        own = f"{PRODUCTS}, {MOMENTS}"
        targets = [(f"{COMPILED}{how}, {MOMENTS}", own, OF_PRODUCTS_SWEEP) for how in (", quadrature", "")]
    found = []
    for name, other, most in targets:
        if name in times.milliseconds and other in times.milliseconds:
            ratio = times.ratio(name, other)
            word = "met" if ratio <= most else "fallen short of"
            found.append(f"{setting.name}: {name} takes {ratio:.2f} of {other}; target {most:.2f} {word}")
    return found or [f"{setting.name}: no target is set for this batch size"]


def have_numpyro(flags: Flags, device: torch.device) -> bool:
    """Whether NumPyro takes part; if not though it was asked for, say why."""
    if not flags.numpyro:
        return False
    try:
        import numpyro  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("NumPyro is not here, so its rows are left out; to have them: pip install numpyro")
        return False
    if device.type == "cuda":
        import jax  # pyright: ignore[reportMissingImports]

        if jax.devices()[0].platform == "cpu":
            print("JAX finds no GPU, so NumPyro's rows are left out; to have them: pip install 'jax[cuda12]'")
            return False
    return True


def main(flags: Flags) -> None:
    """Measure every setting, print tables and verdicts, and write the figures."""
    logging.basicConfig(format="%(message)s")
    threads, device = use_threads(flags.threads), find_device(flags.device)
    numpyro = have_numpyro(flags, device)
    console = wide_console()
    torch.manual_seed(0)
    images = (torch.rand(NUM_DATA, PIXELS) < 0.3).to(torch.uint8).to(device)
    rows, said, ratios = [], [], {}
    sizes = flags.batch_sizes[: 1 if flags.quick else None]
    settings = [Setting(decoder == "bayesian", size, images) for decoder in flags.decoders for size in sizes]
    if flags.sweep:
        settings.append(Setting(True, SWEEP_BATCH, images, SWEEP_ENCODER, SWEEP_DECODER))
    for setting in settings:
        console.print(f"{setting.name}: compiling and timing ...", highlight=False)
        sides, times = measure(setting, flags, numpyro=numpyro)
        found = figures_of(setting, sides, times)
        show(setting, found, threads, device, console)
        rows += found
        said += verdicts(setting, times)
        ratios |= ratios_of(setting, times)
    print("one step each: the times mean nothing" if flags.quick else "\n".join(said))
    described = {**asdict(flags), "json": None, "targets": TARGETS}
    around = surroundings(threads, device, ("numpyro", "jax", "jaxlib"))
    figures = {"benchmark": "step", "clock": flags.clock, "settings": described, "rows": rows, "environment": around}
    write_json(flags.json, figures, ratios, quick=flags.quick)


def show(setting: Setting, rows: Sequence[dict[str, Any]], threads: int, device: torch.device, console: Any) -> None:
    """Print one setting's table."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells = [
        (
            row["side"],
            f"{row['milliseconds']:.2f}",
            f"{row['first_quartile']:.2f} to {row['third_quartile']:.2f}",
            number(row["of_pyro"], ".2f"),
            number(row["of_numpyro"], ".2f"),
            number(row["of_products"], ".1f"),
            number(row["prepare_seconds"] or None, ".1f"),
            row["note"],
        )
        for row in rows
    ]
    where = f"{threads} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    headings = ("side", "ms per step", "quartiles", "of Pyro's", "of NumPyro's", "of products", "to compile, s", "")
    show_table(f"{setting.name} ({setting.num_parameters:,} parameters, {where})", headings, cells, console)


if __name__ == "__main__":
    try:
        main(tyro.cli(Flags, description=__doc__))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
