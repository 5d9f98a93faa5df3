"""One step of variational inference: the captured Pyro step beside Pyro's own, plain PyTorch and NumPyro under jit.

All sides fit the same model with the same guide family to the same 10,000 binary images of 784 pixels, kept as uint8:
an encoder 784-64-64-(2 x 64) and a decoder 64-256-784 with LeakyReLU(0.2), 64 latents, Bernoulli pixels, and decoder
weights that are point estimates or have Gaussian priors and mean-field Gaussian factors (drawn once per step, outside
the plate). Every step gathers a fresh minibatch, draws one particle, takes the gradient of the Monte Carlo ELBO (no
analytic KL, unless a row says so) and moves all parameters by Adam.

- *captured*: the library's `Training`, as `fit` uses it, averages of iterates included; replayed, or compiled by
  Inductor, gather, Adam and averages with the gradients. On a GPU the replay is a CUDA graph.
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
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyro
import pyro.infer
import pyro.optim
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from _measure import (
    Side,
    Times,
    find_device,
    show_table,
    side_by_side,
    surroundings,
    use_threads,
    wait_for,
    wide_console,
    write_json,
)

from amortized_bayes.guides import Amortized, MeanField
from amortized_bayes.inference.options import FitOptions, WarmUp, linear
from amortized_bayes.inference.streams import Batches
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

NUM_DATA, PIXELS, LATENTS = 10_000, 784, 64
ENCODER = (PIXELS, 64, 64, 2 * LATENTS)
DECODER = (LATENTS, 256, PIXELS)
RATE = 1e-3
LOG_SCALE = -4.5  # of the factors of decoder weights, at the start
PYRO, NUMPYRO, PRODUCTS = "Pyro, SVI.step", "NumPyro, jit", "matrix products"
REPLAYED, COMPILED, MOMENTS = "captured, replayed", "captured, compiled", "local reparam."
SWEEP_ENCODER, SWEEP_DECODER, SWEEP_BATCH = (PIXELS, 32, 2 * 16), (16, 64, PIXELS), 250
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


@dataclass(frozen=True)
class Setting:
    """One problem: which decoder, which batch, which images."""

    bayesian: bool
    batch_size: int
    images: Tensor  # (N, 784), uint8, on the device
    encoder: tuple[int, ...] = ENCODER
    decoder: tuple[int, ...] = DECODER

    @property
    def num_parameters(self) -> int:
        """Parameters that every side must fit."""
        return _size(self.encoder) + _size(self.decoder) * (2 if self.bayesian else 1)

    @property
    def sweep(self) -> bool:
        """Whether this is a step of the sweep."""
        return self.decoder == SWEEP_DECODER

    @property
    def name(self) -> str:
        """For people."""
        if self.sweep:
            return f"the sweep's step, k = {SWEEP_ENCODER[1]}, batch {self.batch_size:,}"
        decoder = "Bayesian decoder" if self.bayesian else "point-estimated decoder"
        return f"{decoder}, batch {self.batch_size:,}"

    def programs(self) -> tuple[DeepGenerative, Amortized]:
        """Model and guide, fresh."""
        torch.manual_seed(0)
        latents, *hidden, _ = self.decoder
        model = DeepGenerative(PIXELS, latents, hidden, NUM_DATA, bayesian=self.bayesian)
        sites = latent_sites(model, torch.zeros(2, PIXELS), torch.arange(2))
        shared = MeanField(sites.shared, locs=sites.shared_draw, log_scale=LOG_SCALE) if self.bayesian else None
        guide = Amortized(sites.local, NUM_DATA, PIXELS, self.encoder[1], len(self.encoder) - 2, shared=shared)
        return model.to(self.images.device), guide.to(self.images.device)

    def batches(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return a function that gives the next minibatch and its indices."""
        order = Batches(NUM_DATA, self.batch_size, 0, self.images.device)
        step = -1

        def following() -> tuple[Tensor, Tensor]:
            nonlocal step
            step += 1
            index = order[step]
            return self.images.index_select(0, index).float(), index

        return following


def _size(sizes: Sequence[int]) -> int:
    return sum((i + 1) * o for i, o in pairwise(sizes))


def captured_sides(name: str, setting: Setting, capture: str, **options: Any) -> list[Side]:
    """Return the library's own step, and the same without averages of iterates; none where it cannot be captured so."""
    options = {"analytic_kl": False, **options}
    pyro.clear_param_store()  # of other sides, whose parameters it holds
    fit = FitOptions(setting.batch_size, learning_rate=RATE, shared_learning_rate=RATE, capture=capture, **options)
    training = Training(*setting.programs(), setting.images, fit)
    _require_size(setting, training.variables.parameters)
    start = time.perf_counter()
    training.prepare(1)
    seconds = time.perf_counter() - start
    if training.captured is None and capture != "off":
        return []

    def run(steps: int) -> None:
        for _ in training.run(steps):
            pass
        wait_for(setting.images.device)

    operations = f"{training.captured.num_operations} operations" if training.captured else ""
    return [Side(name, run, seconds, operations)]


def pyro_side(name: str, setting: Setting, *, validate: bool) -> Side:
    """Return Pyro's own step on the same programs."""
    model, guide = setting.programs()
    modules: dict[str, nn.Module] = {"model": model, "guide": guide}

    def program(name: str, x: Tensor, index: Tensor) -> None:
        pyro.module(name, modules[name])
        modules[name](x, index)

    pyro.clear_param_store()  # the modules keep their parameters
    svi = pyro.infer.SVI(
        partial(program, "model"),
        partial(program, "guide"),
        pyro.optim.Adam({"lr": RATE}),  # pyright: ignore[reportAttributeAccessIssue]
        pyro.infer.Trace_ELBO(),
    )
    _require_size(setting, [p for m in modules.values() for p in m.parameters()])
    batch = setting.batches()

    def run(steps: int) -> None:
        with pyro.validation_enabled(validate):
            for _ in range(steps):
                svi.step(*batch())
        wait_for(setting.images.device)

    return Side(name, run, 0.0)


def torch_side(name: str, setting: Setting) -> Side:
    """Return the same loss written out in PyTorch."""
    torch.manual_seed(0)
    device = setting.images.device
    encoder = _network(ENCODER).to(device)
    decoder = None if setting.bayesian else _network(DECODER).to(device)
    factors: list[list[tuple[Tensor, Tensor, float]]] = []  # location, log scale and prior scale, a layer
    if setting.bayesian:
        for size_in, size_out in pairwise(DECODER):
            layer = [((size_out, size_in), 1 / math.sqrt(size_in)), ((size_out,), 1.0)]
            factors.append(
                [
                    (
                        torch.randn(shape, device=device).mul_(prior).requires_grad_(),
                        torch.full(shape, LOG_SCALE, device=device, requires_grad=True),
                        prior,
                    )
                    for shape, prior in layer
                ]
            )
    weights = [t for layer in factors for loc, log_scale, _ in layer for t in (loc, log_scale)]
    parameters = [*encoder.parameters(), *(decoder.parameters() if decoder else ()), *weights]
    _require_size(setting, parameters)
    adam = torch.optim.Adam(parameters, lr=RATE, fused=True)
    batch = setting.batches()

    def draw_weights() -> tuple[list[list[Tensor]], Tensor]:
        drawn, log_ratio = [], torch.zeros((), device=device)
        for layer in factors:
            drawn.append([])
            for loc, log_scale, prior in layer:
                noise = torch.randn_like(loc)
                value = loc + log_scale.exp() * noise
                drawn[-1].append(value)
                log_ratio = log_ratio + (0.5 * noise**2 + log_scale - 0.5 * (value / prior) ** 2).sum()
                log_ratio = log_ratio - loc.numel() * math.log(prior)
        return drawn, log_ratio

    def loss() -> Tensor:
        x, _ = batch()
        loc, log_scale = encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        local = (0.5 * noise**2 + log_scale - 0.5 * z**2).sum()
        if decoder is not None:
            log_likelihood = -F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            return -(log_likelihood + local) / len(x)
        drawn, shared = draw_weights()
        for weight, bias in drawn[:-1]:
            z = F.leaky_relu(F.linear(z, weight, bias), 0.2)
        log_likelihood = -F.binary_cross_entropy_with_logits(F.linear(z, *drawn[-1]), x, reduction="sum")
        return -(log_likelihood + local) / len(x) - shared / NUM_DATA

    def run(steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            loss().backward()
            adam.step()
        wait_for(device)

    return Side(name, run, 0.0)


def _network(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def numpyro_side(name: str, setting: Setting) -> Side:
    """Return the same programs in NumPyro, gather and update inside one jitted function."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist

    images = jnp.asarray(setting.images.cpu().numpy())
    batch, scale = setting.batch_size, NUM_DATA / setting.batch_size
    layers = list(enumerate(pairwise(DECODER)))

    def uniform(size_in: int, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        bound = 1 / math.sqrt(size_in)
        return lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    def forward(y: Any, weights: Sequence[tuple[Any, Any]]) -> Any:
        for weight, bias in weights[:-1]:
            y = jax.nn.leaky_relu(y @ weight + bias, 0.2)
        return y @ weights[-1][0] + weights[-1][1]

    def linear(prefix: str, size_in: int, size_out: int) -> tuple[Any, Any]:
        weight = numpyro.param(f"{prefix}.weight", uniform(size_in, (size_in, size_out)))
        return weight, numpyro.param(f"{prefix}.bias", uniform(size_in, (size_out,)))

    def decoder_shapes(size_in: int, size_out: int) -> list[tuple[str, tuple[int, ...], float]]:
        return [("weight", (size_in, size_out), 1 / math.sqrt(size_in)), ("bias", (size_out,), 1.0)]

    def decoder_weights() -> list[tuple[Any, ...]]:
        if not setting.bayesian:
            return [linear(f"decoder.{l}", *sizes) for l, sizes in layers]
        return [
            tuple(
                numpyro.sample(f"decoder.{l}.{part}", dist.Normal(0, prior).expand(shape).to_event(len(shape)))
                for part, shape, prior in decoder_shapes(*sizes)
            )
            for l, sizes in layers
        ]

    def model(x: Any) -> None:
        weights = decoder_weights()
        with numpyro.plate("data", batch), numpyro.handlers.scale(scale=scale):
            z = numpyro.sample("z", dist.Normal(0, 1).expand((LATENTS,)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=forward(z, weights)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        for l, sizes in layers if setting.bayesian else []:
            for part, shape, prior in decoder_shapes(*sizes):
                start = partial(_normal_start, jax, shape, prior)
                loc = numpyro.param(f"decoder.{l}.{part}.loc", start)
                log_scale: Any = numpyro.param(f"decoder.{l}.{part}.log_scale", jnp.full(shape, LOG_SCALE))
                numpyro.sample(f"decoder.{l}.{part}", dist.Normal(loc, jnp.exp(log_scale)).to_event(len(shape)))
        encoder = [linear(f"encoder.{l}", *sizes) for l, sizes in enumerate(pairwise(ENCODER))]
        loc, log_scale = jnp.split(forward(x, encoder), 2, -1)
        with numpyro.plate("data", batch), numpyro.handlers.scale(scale=scale):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(RATE), numpyro.infer.Trace_ELBO())

    def update(state: Any, index: Any) -> Any:
        return svi.update(state, images[index].astype(jnp.float32))

    jitted = jax.jit(update)
    generator = np.random.default_rng(0)
    order: list[Any] = []

    def following() -> Any:
        if not order:
            whole = NUM_DATA // batch * batch
            order.extend(generator.permutation(NUM_DATA).astype(np.int32)[:whole].reshape(-1, batch))
        return order.pop()

    state = svi.init(jax.random.PRNGKey(0), images[:batch].astype(jnp.float32))
    fitted = sum(p.size for p in jax.tree_util.tree_leaves(svi.get_params(state)))
    if fitted != setting.num_parameters:
        raise AssertionError(f"NumPyro fits {fitted} parameters, not {setting.num_parameters}")
    start = time.perf_counter()
    state, loss = jitted(state, following())
    jax.block_until_ready(loss)
    seconds = time.perf_counter() - start

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, loss = jitted(state, following())
        jax.block_until_ready((state, loss))

    return Side(name, run, seconds, f"on {jax.devices()[0].platform}")


def _normal_start(jax: Any, shape: tuple[int, ...], scale: float, key: Any) -> Any:
    return scale * jax.random.normal(key, shape)


def products_side(name: str, setting: Setting, *, moments: bool = False) -> Side:
    """Return the matrix products of a step and nothing else, each by the quickest kernel there is.

    Args:
        name: of the row.
        setting: which step.
        moments: those of local reparametrization, which multiplies in the decoder by means and by variances.
    """
    device, batch = setting.images.device, setting.batch_size
    shapes: list[tuple[int, int, int]] = []
    decoder = list(pairwise(setting.decoder))
    for l, (size_in, size_out) in enumerate([*pairwise(setting.encoder), *decoder * (1 + moments)]):
        shapes += [(batch, size_in, size_out), (size_out, batch, size_in)]
        if l > 0:  # nobody needs the gradient of the images
            shapes.append((batch, size_out, size_in))
    products = [_quickest(_product_candidates(shape, device), device) for shape in shapes]
    flops = sum(2 * m * k * n for m, k, n in shapes)

    def run(steps: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                for product in products:
                    product()
        wait_for(device)

    return Side(name, run, 0.0, f"{flops / 1e6:.0f} Mflop")


def _product_candidates(shape: tuple[int, int, int], device: torch.device) -> list[Callable[[], Tensor]]:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    transposed = right.t().contiguous()
    found: list[Callable[[], Tensor]] = [lambda: left @ right, lambda: left @ transposed.t()]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        found.append(lambda: onednn(left, transposed, None, "none", [], ""))
        found.append(lambda: onednn(left, right.t(), None, "none", [], ""))
    return found


def _quickest(candidates: Sequence[Callable[[], Tensor]], device: torch.device) -> Callable[[], Tensor]:
    best, shortest = candidates[0], float("inf")
    with torch.no_grad():
        for _ in range(5):
            for candidate in candidates:
                candidate()
                start = time.perf_counter()
                for _ in range(3):
                    candidate()
                wait_for(device)
                seconds = time.perf_counter() - start
                if seconds < shortest:
                    best, shortest = candidate, seconds
    return best


def _require_size(setting: Setting, parameters: Sequence[Tensor]) -> None:
    fitted = sum(p.numel() for p in parameters)
    if fitted != setting.num_parameters:
        raise AssertionError(f"expected all sides to fit {setting.num_parameters} parameters, one fits {fitted}")


def build_sides(setting: Setting, *, numpyro: bool) -> list[Side]:
    """Build everything that is compared in one setting; compiling happens here."""
    sides = [
        pyro_side(PYRO, setting, validate=True),
        pyro_side("Pyro, validation off", setting, validate=False),
        torch_side("PyTorch by hand", setting),
    ]
    if numpyro:
        sides.append(numpyro_side(NUMPYRO, setting))
    sides += captured_sides("uncaptured", setting, "off")
    sides += captured_sides(REPLAYED, setting, "replay")
    sides += captured_sides(COMPILED, setting, "inductor")
    if setting.bayesian:
        options = {"analytic_kl": True, "local_reparametrization": True}
        sides += captured_sides(f"{COMPILED}, {MOMENTS}", setting, "inductor", **options)
        sides.append(products_side(f"{PRODUCTS}, {MOMENTS}", setting, moments=True))
    else:
        sides += captured_sides(f"{COMPILED}, analytic KL", setting, "inductor", analytic_kl=True)
    return [*sides, products_side(PRODUCTS, setting)]


def sweep_sides(setting: Setting) -> list[Side]:
    """Build what is compared in a step of the sweep: ours, with draws of outputs and with quadrature; and products."""
    recipe = {"analytic_kl": True, "local_reparametrization": True, "average": None, "adam_beta2": 0.99}
    recipe |= {"schedule": linear, "kl_weight": WarmUp(0.2), "shared_kl_weight": WarmUp(0.2)}
    quadrature = {**recipe, "quadrature_nodes": 3}
    return [
        *captured_sides(f"{REPLAYED}, quadrature, {MOMENTS}", setting, "replay", **quadrature),
        *captured_sides(f"{COMPILED}, quadrature, {MOMENTS}", setting, "inductor", **quadrature),
        *captured_sides(f"{COMPILED}, {MOMENTS}", setting, "inductor", **recipe),
        products_side(f"{PRODUCTS}, {MOMENTS}", setting, moments=True),
    ]


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
        products = f"{PRODUCTS}, {MOMENTS}" if side.name.endswith(MOMENTS) else PRODUCTS
        for key, other in (("of_pyro", PYRO), ("of_numpyro", NUMPYRO), ("of_products", products)):
            row[key] = times.ratio(side.name, other) if other in times.milliseconds else None
        rows.append(row)
    return rows


def verdicts(setting: Setting, times: Times) -> list[str]:
    """Say whether the compiled step reaches its targets, in words."""
    targets = [
        (COMPILED, other, of_batch[setting.batch_size])
        for other, of_batch in TARGETS.items()
        if setting.batch_size in of_batch
    ]
    kind = "bayesian" if setting.bayesian else "point"
    if (kind, setting.batch_size) in OF_PRODUCTS:
        targets.append((COMPILED, PRODUCTS, OF_PRODUCTS[kind, setting.batch_size]))
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
        import numpyro  # noqa: F401
    except ImportError:
        print("NumPyro is not here, so its rows are left out; to have them: pip install numpyro")
        return False
    if device.type == "cuda":
        import jax

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
    rows, said = [], []
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
    print("one step each: the times mean nothing" if flags.quick else "\n".join(said))
    described = {**asdict(flags), "json": None, "targets": TARGETS}
    around = surroundings(threads, device, ("numpyro", "jax", "jaxlib"))
    write_json(flags.json, {"benchmark": "step", "environment": around, "settings": described, "rows": rows})


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
