"""Published numbers: what the files hold, and what is refused."""

import tomllib

import pytest

from amortized_bayes.labels import FACTORS, METRICS
from amortized_bayes.presenting.published import FOLDER, find, read_published

HEADER = "dataset,family,metric,value,source,note\n"
NAMES = sorted(path.stem for path in FOLDER.glob("cremer*.csv"))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_read(name):
    numbers = read_published(name)
    assert numbers
    for number in numbers:
        assert set(number.factors) <= set(FACTORS)
        assert number.metric in METRICS
        assert "Cremer, Li & Duvenaud" in number.source
        assert "dataset" in number.factors
    assert len({(n.metric, *sorted(n.factors.items())) for n in numbers}) == len(numbers)


def test_all_published_files_are_here():
    assert NAMES == ["cremer2018_models", "cremer2018_table4", "cremer2018_table5"]


def test_numbers_are_those_of_the_paper():
    models, table5 = read_published("cremer2018_models"), read_published("cremer2018_table5")
    at = {"dataset": "fashion-mnist", "family": "auxiliary", "encoder": "standard", "annealed": False, "seed": 3}
    assert find(models, "amortization_gap", at).value == 2.29
    assert "2.99" in find(models, "amortization_gap", at).note
    assert find(models, "elbo_star", {**at, "searched": "gaussian"}).value == -105.80
    assert find(table5, "log_p_lower", {"dataset": "binarized-mnist", "decoder_layers": 4}).value == -82.19


def test_gaps_of_table_4_are_the_differences_of_its_bounds():
    numbers = read_published("cremer2018_table4")
    for family in ("gaussian", "auxiliary", "realnvp"):
        at = {"dataset": "binarized-mnist", "encoder": "linear", "family": family}
        best = find(numbers, "elbo_star", {"dataset": "binarized-mnist", "searched": family}).value
        own = find(numbers, "elbo", at).value
        gaps = [find(numbers, f"{gap}_gap", at).value for gap in ("approximation", "amortization", "inference")]
        assert gaps == pytest.approx([-84.70 - best, best - own, -84.70 - own])


def test_all_factors_must_match():
    numbers = read_published("cremer2018_models")
    at = {"dataset": "binarized-mnist", "family": "gaussian", "encoder": "standard", "annealed": True}
    assert find(numbers, "elbo", at).value == -92.57
    for wrong in ({"dataset": "digits"}, {"annealed": False, "encoder": "wide"}, {"network": "convolutional"}):
        assert find(numbers, "elbo", {**at, **wrong}) is None
    assert find(numbers, "elbo", {key: at[key] for key in ("family", "encoder", "annealed")}) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("dataset,flavour,metric,value,source,note\n", r"bad\.csv.*'flavour', which is no factor"),
        ("dataset,metric,value,source\n", r"bad\.csv.*no column 'note'"),
        (HEADER + "mnist,gaussian,eblo,1,s,\n", r"bad\.csv line 2.*column 'metric', got 'eblo'"),
        (
            HEADER + "mnist,gaussian,elbo,1,s,\nmnist,gaussian,elbo,one,s,\n",
            r"bad\.csv line 3.*column 'value', got 'one'",
        ),
    ],
)
def test_a_file_that_cannot_be_joined_is_refused(tmp_path, text, wrong):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=wrong):
        read_published("bad", tmp_path)


def test_the_files_are_installed_with_the_package():
    declared = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert declared["amortized_bayes.presenting"] == ["published/*.csv"]
