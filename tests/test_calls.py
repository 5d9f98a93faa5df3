"""How models are called: forms of arguments and plates, each of which must give the exact answer; what is refused."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized_bayes as ab
from amortized_bayes.calls import bind_points
from amortized_bayes.calls import with_index as with_places_added
from amortized_bayes.point_programs import PointProgram

pytestmark = pytest.mark.usefixtures("float64")

N = 12
NOISE = 0.5
X = torch.linspace(-1.5, 2.0, N, dtype=torch.float64)
SLOPES = torch.linspace(0.5, 2.0, N, dtype=torch.float64)  # a covariate of each point
EVIDENCE = dist.Normal(torch.zeros(N), (SLOPES**2 + NOISE**2).sqrt()).log_prob(X)
QUICK = ab.DiagnosisSettings(
    num_particles=25,
    ais=ab.AISSettings(num_chains=2, num_temperatures=2, num_pilot=2),
    local=ab.LocalSettings(max_steps=10, max_rounds=1, num_samples=4),
    certificate=ab.CertificateSettings(2, 0.5, 2),
)


def posterior(x, slope):
    precision = 1 + slope**2 / NOISE**2
    return dist.Normal(x * slope / NOISE**2 / precision, precision**-0.5)


def two(x, slope, *, plate="data", dim=-1, size=True, extra=None):
    """x and its covariate; ``extra`` holds no rows."""
    shape = (-1,) + (1,) * (-dim - 1)
    with pyro.plate(plate, len(x) if size else None, dim=dim):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).reshape(shape), 1.0))
        pyro.sample("x", dist.Normal(z * slope.reshape(shape), NOISE), obs=x.reshape(shape))


def two_guide(x, slope, *, plate="data", dim=-1, size=True, extra=None):
    q = posterior(x, slope)
    shape = (-1,) + (1,) * (-dim - 1)
    with pyro.plate(plate, len(x) if size else None, dim=dim):
        pyro.sample("z", dist.Normal(q.loc.reshape(shape), q.scale.reshape(shape)))


def of_dict(batch):
    two(batch["x"], batch["slope"])


def of_dict_guide(batch):
    two_guide(batch["x"], batch["slope"])


def of_list(tensors, noise):
    two(*tensors)


def of_list_guide(tensors, noise):
    two_guide(*tensors)


def with_table(x, slope, table):
    """A table with as many rows as there are points, which holds none of theirs."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z * slope + table.sum() - table[0] * N, NOISE), obs=x)


def with_table_guide(x, slope, table):
    two_guide(x, slope)


def whole_numbers(x, slope):
    two(x.double() / 4, slope.double())


def whole_numbers_guide(x, slope):
    two_guide(x.double() / 4, slope.double())


def with_index(x, slope, index):
    with pyro.plate("data", N, subsample=index):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z * slope, NOISE), obs=x)


def with_places(x, slope, places):
    with pyro.plate("data", N, subsample=places):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z * slope, NOISE), obs=x)


def with_places_guide(x, slope, places):
    two_guide(x, slope)


FORMS = {
    "positional": (two, two_guide, (X, SLOPES), {}),
    "keywords": (two, two_guide, (), {"x": X, "slope": SLOPES}),
    "numpy": (two, two_guide, (X.numpy(), SLOPES.numpy()), {}),
    "another plate": (
        functools.partial(two, plate="rows"),
        functools.partial(two_guide, plate="rows"),
        (X, SLOPES),
        {},
    ),
    "an option that is no data": (two, two_guide, (X, SLOPES), {"extra": "words"}),
    "a tensor that holds no rows": (two, two_guide, (X, SLOPES), {"extra": torch.zeros(3)}),
    "dim": (two, two_guide, (X, SLOPES), {"dim": -2}),
    "unsized": (two, two_guide, (X, SLOPES), {"size": False}),
    "dict": (of_dict, of_dict_guide, ({"x": X, "slope": SLOPES},), {}),
    "list": (of_list, of_list_guide, ([X, SLOPES], 3), {}),
    "a table of N rows": (with_table, with_table_guide, (X, SLOPES, torch.ones(N)), {"per_point": ("x", 1)}),
    "whole numbers": (
        *(whole_numbers, whole_numbers_guide),
        ((4 * X).round().long(), SLOPES.round().long()),
        {},
    ),
    "index": (with_index, two_guide, (X, SLOPES), {}),
    "places": (with_places, with_places_guide, (X, SLOPES, torch.arange(N)), {}),
}


def evidence_of(name):
    if name != "whole numbers":
        return EVIDENCE
    x, slope = FORMS[name][2]
    return dist.Normal(torch.zeros(N), (slope.double() ** 2 + NOISE**2).sqrt()).log_prob(x / 4)


@pytest.mark.parametrize("name", FORMS)
def test_the_exact_posterior_weighs_the_evidence_in_every_form(name):
    model, guide, args, kwargs = FORMS[name]
    kwargs = dict(kwargs)
    data, plate, _ = bind_points(model, args, kwargs, per_point=kwargs.pop("per_point", None))
    data = with_places_added(data, model)
    programs = PointProgram(model, data), PointProgram(guide, data, drop=["index"])
    evidence = evidence_of(name)
    found = ab.log_weights(*programs, data.rows, num_particles=3, plate=plate)
    torch.testing.assert_close(found.local[0], evidence.expand(3, N))
    few = data.rows[torch.tensor([7, 2, 9])]
    found = ab.log_weights(*programs, few, plate=plate)
    torch.testing.assert_close(found.local[0, 0], evidence[[7, 2, 9]])


@pytest.mark.parametrize("name", ["keywords", "dim", "unsized", "index"])
def test_diagnose_meets_the_evidence(name):
    model, guide, args, kwargs = FORMS[name]
    report = ab.diagnose(model, guide, *args, settings=QUICK, **kwargs)
    for bound in ("elbo", "iwae"):
        torch.testing.assert_close(report.values[bound][0], evidence_of(name))


def test_a_model_that_reads_its_rows_by_the_plate_s_places_may_get_any_of_them(monkeypatch):
    def model(x):
        with pyro.plate("data", len(x)) as places:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x[places])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(posterior(x, torch.ones(())).loc, posterior(x, torch.ones(())).scale))

    monkeypatch.setattr("amortized_bayes.diagnosis.estimates.POINTS", 5)  # points go in chunks
    found = ab.diagnose(model, guide, X, settings=QUICK)
    exact = dist.Normal(torch.zeros(N), (1 + NOISE**2) ** 0.5).log_prob(X)
    torch.testing.assert_close(found.values["elbo"][0], exact)
    torch.testing.assert_close(found.values["elbo_star"][0], exact, atol=1e-3, rtol=1e-3)


def rows(model, *args, **kwargs):
    data, plate, _ = bind_points(model, args, kwargs)
    return {name for name, flag in zip(data.names, data.is_data, strict=True) if flag}, plate


def test_rows_are_told_from_what_has_as_many_rows_by_chance():
    table = torch.randn(N)
    assert rows(with_table, X, SLOPES, table) == ({"x", "slope"}, "data")
    square = torch.randn(N, N)

    def model(x, weight):
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), N), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    assert rows(model, torch.randn(N, N), square) == ({"x"}, "points")
    assert rows(lambda weight, x: model(x, weight), square, torch.randn(N, N)) == ({"x"}, "points")
    assert rows(lambda weight, x: model(x, weight), torch.randn(N, 3), torch.randn(40, 3)) == ({"x"}, "points")


def nested(x):
    with pyro.plate("people", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
        with pyro.plate("items", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def both_ways(x):
    people, items = pyro.plate("people", len(x), dim=-2), pyro.plate("items", x.shape[1], dim=-1)
    with people:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
    with items:
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0))
    with people, items:
        pyro.sample("x", dist.Normal(z * w, 1.0), obs=x)


def test_the_plate_is_the_only_one_with_latent_and_observed_sites():
    assert rows(nested, torch.randn(N, 3))[1] == "people"
    with pytest.raises(ValueError, match=r"got several that may be: 'people', 'items'; pass plate='people', say"):
        rows(both_ways, torch.randn(N, 3))
    assert bind_points(both_ways, (torch.randn(N, 3),), {}, plate="people").plate == "people"


def closed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, SLOPES[: len(x)]), obs=x)


def of_fixed_size(x):
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z[: len(x)], 1.0), obs=x)


def unsized_scalar(x):
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_nan(x, slope):
    two(torch.where(x > 1, x / 0, x).sub(x).add(x), slope)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rows(closed, X), ValueError, "does not follow its rows of x: pass all data as arguments"),
        (lambda: rows(unsized_scalar, X), ValueError, r"plate 'data' has no size and 'z' in it no row per point"),
        (lambda: rows(two, X), TypeError, r"got \(Tensor\): missing a required argument: 'slope'"),
        (lambda: rows(two, X, SLOPES[:4]), ValueError, r"cannot take x of shape \(12,\), slope of shape \(4,\)"),
        (lambda: rows(two, 3.0, 4.0), ValueError, "expected data as an argument of the model"),
        (
            lambda: ab.diagnose(two, two_guide, X[:1], SLOPES[:1]),
            ValueError,
            "expected data of two points or more, got",
        ),
        (lambda: rows(two, np.array(["a", "b"]), SLOPES), TypeError, "expected arrays of numbers, got one of <U1"),
        (
            lambda: rows(two, X.masked_fill(X > 1, torch.nan), SLOPES),
            ValueError,
            r"expected finite data, got 4 values that are nan or infinite, at 4 points, which make log p of 'x' so",
        ),
        (lambda: bind_points(two, (X, SLOPES), {}, per_point="y"), ValueError, "name tensors among x, slope, got 'y'"),
        (
            lambda: ab.diagnose(two, two_guide, X, SLOPES, setings=QUICK),
            TypeError,
            r"got setings=, which is neither an option of diagnose nor .* of the model; did you mean settings=\?",
        ),
        (
            lambda: ab.diagnose(lambda x, *, seed: None, two_guide, X, seed=3),
            TypeError,
            r"seed=, which is an option of diagnose and an argument .* functools.partial\(model, seed=...\)",
        ),
        (
            lambda: ab.diagnose(two, of_dict_guide, X, SLOPES),
            TypeError,
            r"expected the arguments of the guide, \(batch\), got \(Tensor, Tensor\)",
        ),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_nan_that_a_mask_hides_is_no_error():
    seen = X.masked_fill(X > 1, torch.nan)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            with pyro.poutine.mask(mask=~x.isnan()):
                pyro.sample("x", dist.Normal(z, NOISE), obs=x.nan_to_num())

    assert rows(model, seen) == ({"x"}, "data")


def test_a_model_is_left_as_it_was():
    norm = nn.BatchNorm1d(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(norm(z[:, None])[:, 0], NOISE), obs=x)

    state = torch.get_rng_state()
    assert rows(model, X) == ({"x"}, "data")
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.num_batches_tracked == 0


def test_rows_are_put_back_where_they_were():
    seen = []

    def model(batch, *, scale, index=None):
        seen.append((batch, scale, index))
        two(batch["x"][0], batch["slope"])

    batch = {"x": [X, "words"], "slope": SLOPES}
    data, *_ = bind_points(model, (batch,), {"scale": torch.ones(3)})
    PointProgram(model, data)(data.rows[torch.tensor([4, 1])], torch.tensor([4, 1]))
    got, scale, index = seen[-1]
    assert torch.equal(got["x"][0], X[[4, 1]])
    assert got["x"][1] == "words"
    assert torch.equal(got["slope"], SLOPES[[4, 1]])
    assert scale.shape == (3,)
    assert index.tolist() == [4, 1]
    again, _ = data.take((), {"batch": {"x": [2 * X[:3], "others"], "slope": SLOPES[:3]}, "scale": None})
    assert torch.equal(again.tensors[0], 2 * X[:3])
    with pytest.raises(ValueError, match="in the form of"):
        data.take(({"x": X},), {"scale": None})


def test_a_model_of_all_rows_alone_is_told_how_to_be_sized():
    def eight(sigma, y):
        with pyro.plate("schools", 8):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), sigma), obs=y)

    with pytest.raises(ValueError, match=r"takes all 8 rows of sigma, y and not 7 of them; size its plate by the data"):
        bind_points(eight, (torch.ones(8), torch.zeros(8)), {})
