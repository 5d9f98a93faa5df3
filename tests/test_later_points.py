"""What only later points show, and options that a model has for arguments too: refused before anything is fitted."""

import functools

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


def with_options(x, widths=None, seed=0.0, epochs=3):
    del widths, epochs
    shifted(x, seed)


def compare(model, *args, **options):
    return ab.compare(model, *args, guides=("constant",), settings=QUICK, progress=False, **options)


def test_an_option_with_the_name_of_the_models_argument_is_refused():
    for call in (
        lambda: ab.compare(with_options, X, widths=(2,)),
        lambda: ab.compare(with_options, X, 1.0, seed=3),
        lambda: ab.compare(model=with_options, seed=3),  # pyright: ignore
        lambda: ab.diagnose(with_options, guide, X, seed=3),
    ):
        with pytest.raises(TypeError, match=r"is an option of \w+ and an argument of the model as well; .*partial\(mo"):
            call()


def test_arguments_of_the_model_that_are_told_apart():
    assert compare(with_options, X).seed == 0  # at the model's own defaults
    assert compare(with_options, X, epochs=5).seed == 0  # no option of ours
    by_position = compare(with_options, X, None, 1.0, seed=3)
    bound = compare(functools.partial(with_options, seed=1.0), X, seed=3)
    assert by_position.seed == bound.seed == 3
    means = [report.to_frame()["elbo"].item() for report in (by_position, bound, compare(with_options, X))]
    assert means[0] == means[1] != means[2]
