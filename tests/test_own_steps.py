"""Per-point steps as guides of ``sweep``, and in ``gaps``: what is trained, asked and refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from sweeps import TINY, a_lab, start, values
from wing import go, loaded

import amortized_bayes as ab
from amortized_bayes.comparing.fitting import climb, finish_fit
from amortized_bayes.comparing.starting import start_fit
from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import gaps
from amortized_bayes.experiments.diagnosing import check_own_steps, guide_to_measure
from amortized_bayes.experiments.fit_settings import factors, rates_of
from amortized_bayes.experiments.gaps import Config
from amortized_bayes.experiments.guide_fits import Place
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.sweep import Config as Sweep
from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.plotting import family_gap_figure
from amortized_bayes.results import RunFolder, find_run

OWN = ("semi-amortized", "refined")
FEW = replace(TINY, widths=(4,), guides=("amortized", *OWN), epochs=20, rungs=1, own_steps=3)


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Each guide fitted to its end, with the ELBO that it reports."""
    problem = Place(FEW, a_lab(tmp_path_factory.mktemp("fits")), "digits", 0).problem()
    found = {}
    for guide in FEW.guides:
        fitting = start_fit(problem, Fit(guide, 4))
        begun = [p.detach().clone() for p in fitting.guide.parameters()]
        ((rung, _),) = climb(problem, fitting)
        found[guide] = fitting, begun, {**rung.measures, **finish_fit(problem, fitting).evaluation.measures}
    return found


def encoder_of(fitting):
    return list(fitting.guide.parameters())


@pytest.mark.slow
def test_all_start_where_the_amortized_guide_does(fits):
    for guide in OWN:
        for own, other in zip(fits[guide][1], fits["amortized"][1], strict=True):
            assert torch.equal(own, other)


@pytest.mark.slow
def test_a_refined_guide_is_an_amortized_one_until_it_is_asked(fits):
    """The same encoder to the bit; a semi-amortized one is another, since it is trained for the steps."""
    plain, semi, refined = (encoder_of(fits[guide][0]) for guide in FEW.guides)
    assert all(torch.equal(a, b) for a, b in zip(plain, refined, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, semi, strict=True))


@pytest.mark.slow
def test_steps_are_taken_where_the_fit_is_measured(fits):
    """Three steps win nats on the same encoder, and more where it is trained for them."""
    plain, semi, refined = (fits[guide][2]["final_elbo"].value for guide in FEW.guides)
    assert plain + 0.1 < refined < semi - 0.4
    assert type(fits["refined"][0].guide) is ab.Amortized
    assert fits["refined"][0].asked.steps == fits["semi-amortized"][0].guide.steps == 3
    assert fits["semi-amortized"][0].asked is fits["semi-amortized"][0].guide


@pytest.mark.parametrize("metric", ["elbo", "mse_test", "final_mse_train", "final_mse_test"])
@pytest.mark.slow
def test_every_measure_is_of_the_answers_after_the_steps(fits, metric):
    """Below the top and at it, on training and on test points; the encoders are the same to the bit."""
    plain, refined = (fits[guide][2][metric].value for guide in ("amortized", "refined"))
    assert (refined > plain) if metric == "elbo" else (refined < plain)


@pytest.mark.usefixtures("few_visits")
@pytest.mark.slow
def test_a_sweep_of_them_leaves_rows_and_a_figure(tmp_path):
    folder = start(tmp_path, replace(TINY, guides=("constant", "amortized", *OWN, "factorized"), own_steps=2))
    frame = folder.rows()
    assert set(folder.done().values()) == {"ok"}
    assert set(frame["own_steps"]) == {2}
    gaps = values(frame, "family_gap")
    assert {(guide, k) for guide in OWN for k in (1, 2)} < set(gaps)
    axes = family_gap_figure(frame).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["A-VI", "semi-amortized VI", "refined A-VI"]


def test_rows_of_other_sweeps_do_not_name_them():
    assert "own_steps" not in factors(TINY)
    assert factors(FEW)["own_steps"] == 3


def test_rates_are_those_of_the_amortized_guide():
    config = replace(FEW, rates_amortized=(0.5, 0.25))
    for guide in OWN:
        assert rates_of(config, guide) == (0.5, 0.25)
        assert GUIDES[guide].rates == GUIDES["amortized"].rates
        assert rates_of(Sweep(rates_others=((guide, 0.1, 0.2),)), guide) == (0.1, 0.2)


def test_a_model_of_the_readers_own_is_told_how_to_have_them():
    model, x = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5, num_data=6), torch.randn(6, 3)
    with pytest.raises(ValueError, match="got 'refined': make one that takes per-point steps") as caught:
        ab.compare(model, x, guides=("amortized", "refined"), progress=False)
    assert "\n" not in str(caught.value)


# gaps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gaps_of_a_refined_encoder(trained_results, tmp_path, monkeypatch):
    """Steps leave the model, the best q and log p as they are, and less to win."""
    out = tmp_path / "results"
    shutil.copytree(trained_results, out)
    trained = loaded(RunFolder.open(find_run(out, "latest", "train")))
    assert guide_to_measure(Config(), trained) is trained.guide
    few = Config(
        splits=("test",), points=16, particles=4000, restarts=1, local_steps=100, chains=4, temperatures=20,
        max_temperatures=20, leapfrog=1, simulated=2,
    )  # fmt: skip
    plain, refined = (go("gaps", replace(few, own_steps=steps), out) for steps in (0, 10))
    assert "own_steps" not in plain.rows().columns
    assert set(refined.rows()["own_steps"]) == {10}

    def difference(metric):
        before, after = (folder.load_arrays(next(iter(folder.done())))[metric] for folder in (plain, refined))
        return (after - before).mean(), (after - before).std(ddof=1) / 4

    won, error = difference("elbo")
    assert won > 3 * error
    assert difference("amortization_gap")[0] == pytest.approx(-won, abs=0.02)
    assert difference("elbo_star")[0] == pytest.approx(0, abs=0.02)
    blocks = go("gaps", replace(few, own_steps=10, block_size=10), out)
    assert len(blocks.done()) == 4  # what two blocks share, the blocks, and all points
    whole, joined = (folder.load_arrays(list(folder.done())[-1])["elbo"] for folder in (refined, blocks))
    assert len(joined) == len(whole) == 16
    assert joined.mean() - whole.mean() == pytest.approx(0, abs=won / 3)  # of other draws
    monkeypatch.setattr(gaps, "checkpoint_config", lambda *_: VAEConfig(semi_amortized_steps=2))
    with pytest.raises(SettingError, match="expected --own-steps 0 for a guide that takes 2 anyway"):
        next(gaps.jobs(replace(few, own_steps=1), a_lab(out)))


def test_steps_that_cannot_be_taken_are_refused():
    with pytest.raises(SettingError, match="expected --own-steps 0 for a guide that is no Gaussian"):
        check_own_steps(Config(own_steps=1), VAEConfig(family="planar"))
    with pytest.raises(SettingError, match="takes 2 anyway, got 1"):
        check_own_steps(Config(own_steps=1), VAEConfig(semi_amortized_steps=2))
    check_own_steps(Config(), VAEConfig(semi_amortized_steps=2))
    check_own_steps(Config(own_steps=1), VAEConfig())
    with pytest.raises(SettingError, match="expected --own-steps of 1 or more, got 0"):
        replace(TINY, own_steps=0)
