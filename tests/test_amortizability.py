"""Whether one network of each point's own data can do: right on models of which it is known, or not told at all."""

import pyro
import pyro.distributions as dist
import pytest
import tied_models
import torch
from torch import nn

from amortized_bayes import can_amortize
from amortized_bayes.amortizability.probing import halves
from amortized_bayes.models import DeepGenerative, LinearGaussian

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(10, generator=GENERATOR)
ROWS = torch.randn(10, 3, generator=GENERATOR)
COUNTS = torch.randint(0, 6, (10,), generator=GENERATOR)

INDEPENDENT = {
    "linear": ((X,), {"z"}),
    "two_levels": ((ROWS,), {"eta", "z"}),
    "members_of_groups": ((X, COUNTS % 3), {"z"}),
    "random_effects": ((ROWS, COUNTS), {"z"}),
    "mixture": ((X[:7],), {"k"}),
    "local_discrete": ((X[:7],), {"k", "z"}),
    "sequences": ((ROWS,), {"z_0", "z_1", "z_2"}),
    "unrolled_without_ties": ((X,), {f"z{n + 1}" for n in range(10)}),
    "turns_of_a_plate": ((X,), {f"z_{n}" for n in range(10)}),
    "draw_outside": ((X,), {"f"}),
}
TIED = {
    "saw": ((X,), {"x"}, "neighbours", (0, 1)),
    "two_rows_before": ((X,), {"x"}, "window", (-2, 0)),
    "data_norm": ((ROWS,), {"z"}, "whole series", ()),
    "walk": ((X,), {"steps"}, "whole series", ()),
    "markov_walk": ((X[:7],), {f"z_{n}" for n in range(7)}, "whole series", ()),
    "gaussian_process": ((X,), {"f"}, "whole series", ()),
    "whitened_process": ((X,), {"x"}, "whole series", ()),
    "running_sum": ((X,), {"x"}, "whole series", ()),
    "batch_norm": ((ROWS,), {"x"}, "whole series", ()),
    "ising": ((X[:7],), {"pairs"}, "whole series", ()),
    "discrete_neighbour": ((COUNTS[:7],), {"x"}, "whole series", ()),
    "by_step": ((X,), {"x"}, "whole series", ()),
    "pairs_of_points": ((X,), {"x"}, "group", ()),
    "far_partners": ((X,), {"x"}, "group", ()),
}
CHAINED = {"walk", "markov_walk", "ising", "discrete_neighbour", "by_step"}


def verdict(name, args, **options):
    if name == "two_levels":
        options = {"plate": "groups"}
    return can_amortize(getattr(tied_models, name), *args, **options)


def as_float64(args):
    return tuple(a.double() if a.is_floating_point() else a for a in args)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_points_that_are_independent(name):
    args, sites = INDEPENDENT[name]
    report = verdict(name, args)
    assert report.can is True, report
    assert report
    assert (set(report.sites), report.sees, report.offsets) == (sites, "own point", ())


@pytest.mark.parametrize("name", TIED)
def test_points_that_are_tied(name):
    args, sites, sees, offsets = TIED[name]
    report = verdict(name, args)
    assert report.can is False, report
    assert not report
    assert (set(report.sites), report.sees, report.offsets) == (sites, sees, offsets)
    assert ("chains" in report.reason) is (name in CHAINED)


@pytest.mark.parametrize("name", ["members_of_groups", "two_levels", "saw", "gaussian_process", "batch_norm", "ising"])
def test_the_same_in_float64(name, float64):
    args = (INDEPENDENT[name] if name in INDEPENDENT else TIED[name])[0]
    report = verdict(name, as_float64(args))
    assert report.can is (name in INDEPENDENT)
    assert report.sees == ("own point" if name in INDEPENDENT else TIED[name][2])


@pytest.mark.parametrize("name", ["linear", "gaussian_process", "walk", "saw"])
@pytest.mark.parametrize("x", [torch.ones(12), torch.zeros(12), torch.randn(400, generator=GENERATOR)])
def test_data_that_are_all_alike_or_many(name, x):
    assert verdict(name, (x,)).can is (name == "linear")


def test_a_vae_is_independent_and_its_weights_are_no_points():
    """N is the number of hidden units too: weights outside the plate have as many entries as there are points."""
    torch.manual_seed(1)
    model = DeepGenerative(observed=12, latent_dim=2, hidden=[10], num_data=10)
    report = can_amortize(model, torch.rand(10, 12).round())
    assert (report.can, report.sites) == (True, ("z",))


def test_linear_gaussian_by_images_of_bytes():
    model = LinearGaussian(torch.randn(6, 2, generator=GENERATOR), torch.zeros(6), 0.5)
    x = torch.randint(0, 256, (300, 6), generator=GENERATOR, dtype=torch.uint8)
    assert can_amortize(lambda x: model(x.float() / 255), x).can is True


def test_regression_has_nothing_to_amortize():
    report = verdict("regression", (ROWS, X))
    assert (report.can, report.sites, report.sees) == (True, (), "nothing")


def test_points_that_are_independent_but_not_alike():
    report = verdict("own_parameters", (X,))
    assert (report.can, report.sites, report.sees) == (False, ("z",), "place")
    passed = can_amortize(tied_models.parameters_passed, X, torch.linspace(-1, 1, 10))
    assert (passed.can, passed.sees) == (True, "own point")


def test_a_network_in_training_mode_ties_points_by_its_batch_norm():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z), 1.0).to_event(1), obs=x)

    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert can_amortize(model, ROWS).can is False
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    assert can_amortize(model, ROWS).can is True


def test_the_call_leaves_the_random_generator_and_says_the_same_again():
    state = torch.get_rng_state()
    first = verdict("saw", (X,))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert verdict("saw", (X,)) == first


# Where it cannot be told ----------------------------------------------------------------------------------------------


def test_data_that_are_closed_over_cannot_be_told_unless_latents_tie_points():
    report = can_amortize(lambda: tied_models.linear(X))
    assert (report.can, report.sites, report.sees) == (None, ("x",), "")
    assert "no argument" in report.reason
    assert not report
    assert can_amortize(lambda: tied_models.running_sum(X)).can is False
    outside = can_amortize(lambda: tied_models.gaussian_process(X))
    assert (outside.can, outside.sites) == (None, ("f",))


def test_one_of_two_data_closed_over_cannot_be_told():
    def model(x):
        with pyro.plate("data", 10):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=X)

    assert (can_amortize(model, ROWS[:, 0]).can, can_amortize(model, ROWS[:, 0]).sites) == (None, ("y",))


def test_integers_that_are_all_alike_cannot_be_told():
    report = verdict("discrete_neighbour", (torch.full((10,), 2),))
    assert report.can is False  # by the latents
    report = can_amortize(tied_models.counted, torch.full((10,), 2))
    assert (report.can, report.sites) == (None, ("x",))


def test_stochastic_control_flow_cannot_be_told():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if z[0] > 0:
                z = z + pyro.sample("more", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    report = can_amortize(model, X)
    assert report.can is None
    assert "other sites" in report.reason


def test_dropout_cannot_be_told():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(nn.functional.dropout(z), 1.0), obs=x)

    report = can_amortize(model, X)
    assert report.can is None
    assert "pyro.sample" in report.reason


def test_a_log_density_that_is_not_finite_cannot_be_told():
    x = X.clone()
    x[3] = torch.nan
    report = can_amortize(tied_models.linear, x)
    assert report.can is None
    assert "not finite" in report.reason


def test_a_tie_as_small_as_rounding_cannot_be_told():
    def model(x, weight):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z + weight * z.roll(1), 1.0), obs=x)

    report = can_amortize(model, X, 5e-6)
    assert (report.can, report.sites) == (None, ("z",))
    assert "float64" in report.reason
    assert can_amortize(model, X.double(), 5e-6).can is False
    assert can_amortize(model, X.double(), 1e-11).can is None


# Bad input ------------------------------------------------------------------------------------------------------------


def without_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def with_two_plates(x):
    with pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_a_subsample(x):
    with pyro.plate("data", len(x), subsample_size=4) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


@pytest.mark.parametrize(
    ("model", "args", "options", "error", "words"),
    [
        (without_plate, (X,), {}, ValueError, "found plates: none"),
        (with_two_plates, (ROWS,), {}, ValueError, "got several that may be: 'rows', 'columns'"),
        (with_a_subsample, (X,), {}, ValueError, "takes 4 of 10"),
        (tied_models.linear, (X,), {"plate": "points"}, ValueError, "'points'"),
        (tied_models.linear, (X[:1],), {}, ValueError, "two points or more, got 1"),
        (tied_models.linear, (X, X), {}, TypeError, "arguments of the model"),
        (tied_models.linear, (X,), {"plat": "data"}, TypeError, "did you mean plate="),
        (tied_models.linear, (X,), {"per_point": "y"}, ValueError, "per_point"),
        (tied_models.linear, (X,), {"plate": 3}, TypeError, "plate"),
        (tied_models.linear, ([0.0, 1.0],), {}, TypeError, "got a list at 'x'"),
    ],
)
def test_bad_input_is_one_line(model, args, options, error, words):
    with pytest.raises(error, match=words) as refused:
        can_amortize(model, *args, **options)
    assert "\n" not in str(refused.value)


def test_points_are_the_rows_of_data():
    assert can_amortize(with_two_plates, ROWS, plate="rows").can is True
    assert can_amortize(with_two_plates, ROWS, plate="columns").can is None


def test_rows_may_be_named():
    """The second argument is a table of parameters that has as many rows as there are points."""

    def model(x, table):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * table.sum(), 1.0), obs=x)

    assert can_amortize(model, X, ROWS).can is False
    assert can_amortize(model, X, ROWS, per_point="x").can is True


@pytest.mark.parametrize("count", [2, 3, 8, 13])
def test_halves_part_each_point_from_each_other(count):
    masks = list(halves(count))
    for n in range(count):
        for m in range(count):
            assert n == m or any(mask[m] and not mask[n] for mask in masks)


def shifted(rows):
    """Points whose data are other rows; nothing else of x is in their densities."""

    def model(x):
        seen = rows(x)
        with pyro.plate("data", len(seen)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=seen)

    return model


def of_next(x):
    for n in range(len(x) - 1):
        z = pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x_{n}", dist.Normal(z, 1.0), obs=x[n + 1])


def autoregressive(x):
    """The next row less its own."""
    with pyro.plate("data", len(x) - 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(x[:-1] + z, 1.0), obs=x[1:])


ROW_OF_OTHERS = {
    "the next": (shifted(lambda x: x[1:]), (1,), "f must see x_(n+1) alone: pass that as the row of point n."),
    "the next, in a loop": (of_next, (1,), "f must see x_(n+1) alone: pass that as the row of point n."),
    "the next but one": (shifted(lambda x: x[2:]), (2,), "f must see x_(n+2) alone: pass that as the row of point n."),
    "in a circle": (
        shifted(lambda x: x.roll(2)),
        (-2,),
        "f must see x_(n-2) alone: pass that as the row of point n, where the first row follows the last.",
    ),
    "its own too": (autoregressive, (0, 1), "f must see x_n, x_(n+1), and no more."),
}


@pytest.mark.parametrize("name", ROW_OF_OTHERS)
def test_f_is_told_the_rows_that_it_needs_and_no_others(name):
    """The optimum of point n is a function of its row in the likelihood alone, half of it."""
    model, offsets, words = ROW_OF_OTHERS[name]
    report = can_amortize(model, X, per_point="x")
    assert (report.can, report.offsets) == (False, offsets)
    assert report.reason.endswith(words)


def test_rows_beyond_those_of_the_points_are_no_matter():
    """A series of one row more than points, each of which sees its own."""
    report = can_amortize(shifted(lambda x: x[:-1]), X)
    assert (report.can, report.sees) == (True, "own point")


def test_a_point_without_data_is_not_like_the_others():
    report = can_amortize(shifted(lambda x: torch.cat([x, torch.zeros(1)])), X)
    assert (report.can, report.sees) == (False, "place")
