"""What only later points show, and options that a model has for arguments too: refused before anything is fitted."""

import functools
import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab
from amortized_bayes.calls import bind_points, trials

N = 150
LATE = torch.where(torch.arange(N) < 110, torch.zeros(N), 1.0 + torch.arange(N))
X = torch.linspace(-2, 2, N)
QUICK = ab.ComparisonSettings(epochs=2, rungs=1)


def shifted(x, shift, size=None):
    with pyro.plate("data", size or len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(size or len(x)), 1.0))
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x[:size])


def by_places(x):
    with pyro.plate("data", len(x)) as places:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + LATE[places], 1.0), obs=x)


def unsized(x):
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z + LATE[: len(x)], 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: shifted(x, LATE[: len(x)]), "does not follow its rows of x: pass all data as arguments"),
        (by_places, "does not follow its rows of x"),
        (unsized, "does not follow its rows of x"),
        (lambda x: shifted(x, LATE if len(x) == N else 0.0), "does not follow its rows of x"),
        (lambda x: shifted(x, 0.0, min(len(x), 100)), "got 100 of them where 150 were passed"),
        (lambda x: shifted(x, torch.zeros(min(len(x), 100))), "takes 64 rows of x and not 150 of them"),
    ],
    ids=["closed over", "by places", "a plate without a size", "all alone", "size of the plate", "too few rows"],
)
@pytest.mark.parametrize("call", ["compare", "diagnose"])
def test_what_only_later_points_show_is_refused(model, words, call):
    more = (X,) if call == "compare" else (guide, X)
    with pytest.raises(ValueError, match=words) as refused:
        getattr(ab, call)(model, *more, progress=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("call", ["compare", "diagnose", "elbo"])
def test_columns_that_would_meet_all_points_are_refused(call):
    """(N, 1) beside (N,) is (N, N): each latent would be given all of the data."""
    more = (X[:, None],) if call == "compare" else (lambda x: guide(x[:, 0]), X[:, None])
    words = r"'x' have shape \(64, 1\), its distribution has \(64,\): .* for each pair of points"
    with pytest.raises(ValueError, match=words) as refused:
        getattr(ab, call)(lambda x: shifted(x, 0.0), *more)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("call", ["compare", "diagnose", "elbo"])
def test_rows_at_another_dimension_than_the_plate_are_refused(call):
    """Values of (N,) under a plate at dim -2 are (N, N) with its latents."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def at_two(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))

    more = (X,) if call == "compare" else (at_two, X)
    with pytest.raises(
        ValueError, match=r"'x' have shape \(64,\), its distribution has \(64, 1\): .* points at dim -2"
    ):
        getattr(ab, call)(model, *more)


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("call", ["compare", "diagnose", "elbo"])
def test_as_many_points_as_columns_are_no_columns(call, latent):
    """Without ``to_event`` a plate of N points holds the last dimension, the columns: only N = P lets that run."""

    def model(x):
        with pyro.plate("data", len(x)):
            prior = dist.Normal(torch.zeros(5), 1.0)
            z = pyro.sample("z", prior.expand([len(x), 5]) if latent else prior.expand([len(x), 5]).to_event(1))
            seen = dist.Normal(z, 1.0)
            pyro.sample("x", seen.to_event(1) if latent else seen, obs=x)

    def rows(x):
        with pyro.plate("data", len(x)):
            q = dist.Normal(x / 2, 1.0)
            pyro.sample("z", q if latent else q.to_event(1))

    x = torch.randn(5, 5)
    site = "z" if latent else "x"
    words = rf"site '{site}' has batch shape \(5, 5\), of which plate 'data' holds dim -1 alone.*\.to_event\(1\)"
    with pytest.raises(ValueError, match=words) as refused:
        getattr(ab, call)(model, *((x,) if call == "compare" else (rows, x)))
    assert "\n" not in str(refused.value)


def test_several_values_of_one_distribution_are_no_pairs():
    """(N, P) values of a distribution of (N, 1), a row per point at dim -2: each point has P of its own."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    bind_points(model, (torch.zeros(10, 3),), {})


def test_one_value_for_all_is_no_pair():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("zero", dist.Normal(x - z, 1.0), obs=torch.tensor(0.0))

    bind_points(model, (torch.zeros(10, 3),), {})


def test_large_data_are_tried_in_part(monkeypatch):
    seen = []

    def model(x):
        seen.append(len(x))
        shifted(x, 0.0)

    bind_points(model, (X,), {})
    assert max(seen) == N
    seen.clear()
    monkeypatch.setattr(trials, "MOST_NUMBERS", 100)
    bind_points(model, (X,), {})
    assert max(seen) == 100


def test_what_depends_on_the_batch_alone_follows_its_rows():
    norm = torch.nn.BatchNorm1d(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(norm(z[:, None])[:, 0], 1.0), obs=x)

    assert bind_points(model, (X,), {}).plate == "data"


def like_options(
    x,
    plate="rows",
    per_point=0.0,
    encoder_input=0.0,
    widths=0.0,
    guides=0.0,
    settings=0.0,
    seed=0.0,
    progress=0.0,
    on_row=0.0,
):
    """Each of our options is an argument of this model too: the offsets of x add up."""
    offset = per_point + encoder_input + widths + guides + settings + seed + progress + on_row
    with pyro.plate(plate, len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z + offset, 1.0), obs=x)


def its_guide(x, plate="rows", *offsets, **named):
    """The posterior."""
    with pyro.plate(plate, len(x)):
        pyro.sample("z", dist.Normal(0.5 * (x - sum(offsets) - sum(named.values())), 0.5**0.5))


def own_names(call):
    return [p.name for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY]


def compare(model, *args, **options):
    return ab.compare(model, *args, guides=("constant",), settings=QUICK, progress=False, **options)


CALLS = {
    **{call.__name__: functools.partial(call, like_options) for call in (ab.compare, ab.latent_sites, ab.log_joint)},
    **{
        call.__name__: functools.partial(call, like_options, its_guide)
        for call in (ab.diagnose, ab.fit, ab.elbo, ab.iwae, ab.log_predictive, ab.log_weights, ab.ais, ab.bdmc)
    },
    "optimize_local": functools.partial(ab.optimize_local, like_options, its_guide),
    "optimize_flow": functools.partial(ab.optimize_flow, like_options, None),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_option_with_the_name_of_the_models_argument_is_refused(call):
    taken = set(inspect.signature(like_options).parameters)
    shared = taken.intersection(own_names(CALLS[call].func))
    assert len(shared) >= 2
    for name in shared:
        value = "rows" if name == "plate" else 1.0
        words = (
            rf"{name}=, which is an option of {call} and an argument of the model as well; .*partial\(model, {name}="
        )
        with pytest.raises(TypeError, match=words) as refused:
            CALLS[call](X, **{name: value})
        assert "\n" not in str(refused.value)
    with pytest.raises(TypeError, match="argument of the model as well"):
        CALLS[call].func(model=like_options, plate="rows")


def test_a_model_has_each_option_of_both_calls_for_an_argument():
    names = {*own_names(ab.compare), *own_names(ab.diagnose)}
    assert names == set(inspect.signature(like_options).parameters) - {"x"}


def test_arguments_of_the_model_that_are_told_apart():
    """By their position, or bound before: the same numbers, beside our options of these names."""
    ours = {"plate": "cases", "seed": 3, "widths": (2,)}
    names = [name for name in inspect.signature(like_options).parameters if name not in ("x", "plate")]
    offsets = [0.25] * len(names)
    bound = functools.partial(like_options, plate="cases", **dict(zip(names, offsets, strict=True)))
    unmoved = functools.partial(like_options, plate="cases", **dict.fromkeys(names, 0.0))
    reports = [compare(like_options, X, "cases", *offsets, **ours), compare(bound, X, **ours), compare(unmoved, X)]
    assert [report.seed for report in reports] == [3, 3, 0]
    means = [report.to_frame()["elbo"].item() for report in reports]
    assert means[0] == means[1] != means[2]
    x = X.double()
    exact = dist.Normal(torch.tensor(0.25 * len(names)).double(), 2**0.5).log_prob(x)
    with_guide = functools.partial(its_guide, plate="cases", **dict(zip(names, offsets, strict=True)))
    for programs, more in (((like_options, its_guide), ("cases", *offsets)), ((bound, with_guide), ())):
        found = ab.iwae(*programs, x, *more, num_particles=3, plate="cases")
        torch.testing.assert_close(found.value.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("call", ["compare", "diagnose", "elbo"])
def test_a_loop_over_points_is_told_as_one(call):
    def model(x):
        for n in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{n}", dist.Normal(z, 1.0), obs=x[n])

    with pytest.raises(ValueError, match="plate 'data' is sequential"):
        getattr(ab, call)(model, *((X,) if call == "compare" else (guide, X)))
