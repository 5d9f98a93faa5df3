"""The sweep: what a run leaves on disk, whatever happens to it on the way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sweeps import ADDED, ONE, TINY, Listener, a_lab, latest, numbers, of, resume, start, values

from amortized_bayes.comparing import between, fitting, measures, starting
from amortized_bayes.experiments import guide_fits, sweep
from amortized_bayes.guides import registry
from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.seeding import torch_seed

PLACES = (("arrays", "npz"), ("checkpoints", "safetensors"))
FITS = [
    *(("constant", None), ("amortized", 1), ("amortized", 2)),
    *(("factorized", None), ("factorized-from-amortized", None)),
]


pytestmark = pytest.mark.usefixtures("few_visits")


FINISHED = {}


@pytest.fixture
def whole(tmp_path_factory):
    """Run a sweep to its end, once for all tests, which change nothing in it."""

    def run(config=TINY):
        if str(config) not in FINISHED:
            FINISHED[str(config)] = start(tmp_path_factory.mktemp("whole"), config)
        return FINISHED[str(config)]

    return run


def test_a_run_holds_every_fit_and_gap(whole):
    folder = whole()
    frame = folder.rows()
    assert folder.verify() == []
    assert set(frame["likelihood"]) == {"bernoulli"}
    assert set(frame["decoder"]) == {"bayesian"}
    finals = values(frame, "final_elbo")
    assert list(finals) == FITS
    for metric in ("final_kl", "active_units", "final_iwae", "log_predictive", "final_mse_test", "num_parameters"):
        assert list(values(frame, metric)) == FITS, metric
    reference = values(frame, "elbo_reference")["reference", None]
    assert reference == pytest.approx(max(finals[fit] for fit in FITS[-2:]))
    for fit, gap in values(frame, "family_gap").items():
        assert gap == pytest.approx(reference - finals[fit], abs=1e-4)
    assert set(frame[frame["metric"] == "family_gap"]["error_over"]) == {"points"}
    assert list(values(frame, "unconverged_by")) == FITS[:-1]  # F-VI from A-VI has no doubling of its own
    for metric in ("elbo", "kl", "active_units", "mse_train", "behind_reference"):
        rungs = frame[(frame["metric"] == metric) & frame["epochs"].notna()]
        assert rungs["epochs"].tolist() == [1, 2] * len(FITS), metric
        # two batches an epoch; F-VI from A-VI starts with the steps and seconds of A-VI
        assert rungs["step"].tolist() == [2, 4] * len(FITS), metric
        assert rungs["seconds"].gt(0).all()
    top = frame[(frame["metric"] == "elbo") & (frame["epochs"] == 2)]
    assert top["value"].tolist() == list(finals.values())


def test_fits_are_to_bits_and_predictions_are_of_grey_pixels_of_their_own_split(tmp_path):
    place = guide_fits.Place(TINY, a_lab(tmp_path), "digits", 0)
    problem, source = place.problem(), place.lab.dataset("digits", 0)
    held = problem.held
    assert held is not None
    assert isinstance(problem.data, torch.Tensor)
    assert set(problem.data.unique().tolist()) == set(held.test.unique().tolist()) == {0, 1}
    for target, bits, split in (
        (held.target, problem.data, source.train),
        (held.test_target, held.test, source.test),
    ):
        grey = torch.from_numpy(split.pixels[: len(bits)].astype(np.float32) / 16).flatten(1)
        assert torch.equal(target, grey)
        assert not (bits.bool() & (grey == 0)).any()  # a pixel without ink is no bit
        assert bits[grey == 1].all()


@pytest.mark.slow
def test_times_are_to_shares_of_the_gap_where_the_latents_carry_something(tmp_path):
    grey = replace(TINY, likelihood="gaussian", gaussian_scale="learned", epochs=60, num_train=400)
    frame = start(tmp_path, grey).rows()
    timed = frame[frame["metric"] == "steps_to_share"]
    assert set(timed["share"]) == {0.5, 0.8, 0.9, 0.95}
    assert {("constant", None), ("factorized-from-amortized", None)}.isdisjoint(values(frame, "steps_to_share"))
    assert timed["value"].notna().any()


@pytest.mark.slow
def test_a_run_without_an_active_latent_tells_no_share(tmp_path):
    frame = start(tmp_path, replace(ONE, rates_amortized=(1e-9, 1e-9), rates_factorized=(1e-9, 1e-9))).rows()
    assert set(frame[frame["metric"] == "final_elbo"]["status"]) == {"vacuous"}
    assert not {"gap_closed", "share_closed", "steps_to_share"} & set(frame["metric"])


def test_gaps_and_gains_are_those_of_the_arrays(whole):
    folder = whole()
    frame = folder.rows()
    half, elbos = ({fit: folder.load_arrays(_key(*fit))[f"elbo_{n}"].astype(float) for fit in FITS} for n in (1, 2))
    best = max(FITS[-2:], key=lambda fit: elbos[fit].mean())
    for fit in FITS:
        between = {"family_gap": elbos[best] - elbos[fit], "unconverged_by": elbos[fit] - half[fit]}
        for metric, values_of in list(between.items())[: 1 if fit == FITS[-1] else 2]:
            row = of(frame, metric, *fit)
            assert row["value"].item() == pytest.approx(values_of.mean(), abs=1e-12)
            assert row["standard_error"].fillna(0).item() == pytest.approx(values_of.std(ddof=1) / 10, abs=1e-12)


@pytest.mark.parametrize(
    ("decoder", "likelihood", "scale"),
    [pytest.param("bayesian", "bernoulli", "fixed", marks=pytest.mark.slow), ("point", "gaussian", "learned")],
)
@pytest.mark.slow
def test_fvi_from_avi_starts_where_the_best_avi_stood_at_half_of_the_epochs(tmp_path, decoder, likelihood, scale):
    config = replace(TINY, epochs=40, decoder=decoder, likelihood=likelihood, gaussian_scale=scale, elbo_draws=60)
    folder = start(tmp_path, replace(config, num_test=5))
    frame = folder.rows()
    half = frame[(frame["metric"] == "elbo") & (frame["epochs"] == 20)]
    best = half[half["guide"] == "amortized"]["value"].max()
    begin = half[half["guide"] == "factorized-from-amortized"]
    assert begin["value"].item() == pytest.approx(best, abs=1)  # both of 4 draws; from its own start it is 10 below
    origin = half[half["value"] == best].iloc[0]
    assert begin[["step", "seconds"]].iloc[0].tolist() == origin[["step", "seconds"]].tolist()
    end = of(frame, "final_elbo", "factorized-from-amortized")
    assert end["value"].item() > begin["value"].item()
    assert end["seconds"].item() > begin["seconds"].item()


def _key(guide, k=None):
    return f"dataset=digits+seed=0+guide={guide}{'' if k is None else f'+k={k}'}"


def test_jobs_say_what_they_take_and_what_they_read(tmp_path):
    jobs = {job.key: job for job in sweep.jobs(replace(TINY, seeds=(0, 1)), a_lab(tmp_path))}
    assert len(jobs) == 2 * (len(FITS) + 1)
    assert jobs[_key("factorized-from-amortized")].after == [_key("amortized", 1), _key("amortized", 2)]
    everything = set(list(jobs)[: len(FITS)])
    assert set(jobs["comparison+dataset=digits+seed=0"].after) == everything
    amounts: dict[str, list[float]] = {}
    for key, job in jobs.items():
        if not key.startswith("comparison"):
            work, evaluation = job.work
            # two batches per epoch: one epoch afresh, and one more; in steps of the widest encoder
            amounts.setdefault(job.factors["guide"], []).append(work.amount)
            assert work.unit_seconds() > 0
            assert evaluation.amount > 0
            assert job.disk > 0
    narrow, wide = amounts["amortized"][:2]
    assert amounts["constant"][0] < narrow < wide == 4
    assert amounts["factorized"][0] > amounts["constant"][0]  # two row steps at a visit
    assert amounts["factorized-from-amortized"][0] == amounts["factorized"][0] / 2


@pytest.mark.slow
def test_a_fit_leaves_about_the_bytes_that_were_forecast(tmp_path):
    config = replace(ONE, latent_dim=8, hidden=(64,), widths=(64,))
    folder = start(tmp_path, config)
    for job in sweep.jobs(config, a_lab(tmp_path)):
        if "guide" in job.factors:
            left = [folder.path / f"{place}/{job.key}.{kind}" for place, kind in PLACES]
            assert left[1].exists() == (job.factors["guide"] == "amortized")  # the state that F-VI from A-VI starts at
            there = sum(path.stat().st_size for path in left if path.exists())
            assert job.disk < 1.3 * there, job.key
            assert not left[1].exists() or 0.6 * there < job.disk, job.key


@pytest.mark.parametrize("step", ["off", pytest.param("replay", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_two_runs_of_a_seed_are_equal_to_the_bit_and_another_seed_is_not(tmp_path, whole, step):
    config = replace(ONE, compile_step=step)
    first, both = whole(config).rows(), start(tmp_path, replace(config, seeds=(0, 3))).rows()
    assert numbers(first) == numbers(both[both["seed"] == 0])
    assert values(both[both["seed"] == 3], "final_elbo") != values(first, "final_elbo")
    assert both[both["metric"] == "elbo_reference"]["seed"].tolist() == [0, 3]
    assert both[both["metric"] == "final_elbo"]["value"].nunique() == 8


def cut_at(job, stage, done):
    """Interrupt a run where a job has done so much of a stage."""

    def watch(label, at, steps):
        if label.endswith(job) and (at, steps) == (stage, done):
            raise KeyboardInterrupt

    return Listener(watch)


def test_an_interrupted_run_is_resumed_as_if_it_had_not_stopped(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, listener=cut_at("A-VI, k = 2", "fit", 3))
    assert latest(tmp_path).done() == {_key("constant"): "ok", _key("amortized", 1): "ok"}
    again = resume(tmp_path)
    finals = [(row.factors["guide"], row.factors.get("k")) for row in again.rows if row.metric == "final_elbo"]
    assert finals == FITS[2:]
    assert numbers(again.folder.rows()) == numbers(whole().rows())


@pytest.mark.slow
def test_a_run_cut_after_its_fits_is_resumed(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(between, "compare_fits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, ONE)
    again = resume(tmp_path)
    assert "final_elbo" not in {row.metric for row in again.rows}
    assert numbers(again.folder.rows()) == numbers(whole(ONE).rows())


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("missing", ["arrays", pytest.param("checkpoints", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_finished_fit_whose_file_is_missing_is_run_again(tmp_path, whole, missing):
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, listener=cut_at("F-VI from A-VI", "fit", 1))
    folder = latest(tmp_path)
    best = max(FITS[1:3], key=lambda fit: values(folder.rows(), "final_elbo")[fit])
    for path in folder.path.glob(f"{missing}/{_key(*best)}.*"):
        path.unlink()
    again = resume(tmp_path)
    assert any(line.startswith(f"{_key(*best)} is run again: ") for line in again.lines)
    found, expected = (sorted(numbers(run.rows()), key=repr) for run in (again.folder, whole()))
    assert found == expected


def test_a_guide_that_diverges_is_recorded_and_the_others_go_on(tmp_path):
    folder = start(tmp_path, replace(TINY, widths=(1,), rates_constant=(1e6, 1e6), epochs=3))
    frame = folder.rows()
    failed = frame[frame["status"] == "failed"]
    assert failed[["guide", "metric"]].to_numpy().tolist() == [["constant", "failure"]]
    assert failed["step"].item() > 0
    assert failed["note"].item()
    assert set(values(frame, "family_gap")) == {("amortized", 1), *FITS[-2:]}


def poison(monkeypatch, is_bad):
    """Make the guides of some fits diverge at once."""
    build = starting._build_guide

    def poisoned(problem, sites, fit, start):
        guide = build(problem, sites, fit, start)
        if is_bad(fit):
            with torch.no_grad():
                for name, parameter in guide.named_parameters():
                    parameter.fill_(0.0 if name.startswith("encoder") and name.endswith("weight") else 1e4)
        return guide

    monkeypatch.setattr(starting, "_build_guide", poisoned)


@pytest.mark.slow
def test_a_poisoned_width_fails_and_no_other(tmp_path, monkeypatch):
    poison(monkeypatch, lambda fit: fit.k == 2)
    frame = start(tmp_path, TINY).rows()
    failure = frame[frame["status"] == "failed"]
    assert failure["k"].tolist() == [2]
    assert failure["step"].item() == 1
    assert set(values(frame, "family_gap")) == {fit for fit in FITS if fit != ("amortized", 2)}
    assert ("amortized", 1) in values(frame, "unconverged_by")


@pytest.mark.slow
def test_without_amortized_fits_there_is_no_fvi_from_them(tmp_path, monkeypatch):
    poison(monkeypatch, lambda fit: fit.guide == "amortized")
    frame = start(tmp_path, TINY).rows()
    notes = of(frame, "failure", "factorized-from-amortized")["note"]
    assert notes.tolist() == ["no amortized fit succeeded to start from"]
    assert set(values(frame, "family_gap")) == {("constant", None), ("factorized", None)}


@pytest.mark.slow
def test_when_all_fail_there_is_no_gap_and_no_crash(tmp_path, monkeypatch):
    poison(monkeypatch, lambda fit: True)
    folder = start(tmp_path, TINY)
    frame = folder.rows()
    assert (frame["metric"] == "failure").all()
    assert set(folder.done().values()) == {"failed"}  # the comparison too: there is nothing to compare
    assert not values(frame, "family_gap")


@pytest.mark.slow
def test_a_value_that_is_not_finite_fails_its_fit_and_saves_nothing(tmp_path, monkeypatch):
    held = fitting.held_measures

    def broken(problem, of_problem, model, guide, *more):
        found = held(problem, of_problem, model, guide, *more)
        if type(guide).__name__ == "Constant":
            found["log_predictive"] = fitting.Measure(float("-inf"))
        return found

    monkeypatch.setattr(fitting, "held_measures", broken)
    folder = start(tmp_path, ONE)
    frame = folder.rows()
    assert of(frame, "failure", "constant")["note"].item().startswith("log_predictive of -inf")
    assert ("constant", None) not in values(frame, "final_elbo")
    assert ("constant", None) not in values(frame, "family_gap")
    assert not list(folder.path.glob(f"*/{_key('constant')}.*"))


@pytest.mark.slow
def test_a_fit_that_diverges_at_the_top_of_its_ladder_failed(tmp_path, monkeypatch):
    settled = vars(FitOptions)["settled"].fget
    monkeypatch.setattr(FitOptions, "settled", property(lambda self: replace(settled(self), schedule=lambda done: 1e9)))
    frame = start(tmp_path, replace(ONE, epochs=8, guides=("constant", "factorized"))).rows()
    failed = frame[frame["status"] == "failed"]
    assert failed["guide"].dropna().tolist() == ["constant", "factorized"]  # and then there is nothing to compare
    assert (failed["step"] > 8).tolist() == [True, True, False]


def test_the_forecast_survives_a_widest_encoder_that_diverges(tmp_path):
    jobs = sweep.jobs(replace(ONE, rates_amortized=(1e6, 1e6)), a_lab(tmp_path))
    assert jobs[0].work[0].unit_seconds() > 0


@pytest.mark.slow
def test_a_guide_that_was_added_is_swept_like_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.GUIDES, "prototypes", ADDED)
    rates = (("prototypes", 0.02, 0.03),)
    config = replace(ONE, widths=(3,), guides=("prototypes", "amortized", "factorized"), rates_others=rates)
    frame = start(tmp_path, config).rows()
    assert {("prototypes", 3), ("amortized", 3), ("factorized", None)} < set(values(frame, "family_gap"))
    assert ("prototypes", 3) in values(frame, "unconverged_by")
    place = guide_fits.Place(config, a_lab(tmp_path), "digits", 0)
    options = place.options(Fit("prototypes", 3))
    assert (options.shared_learning_rate, options.learning_rate) == (0.02, 0.03)
    place = place._replace(config=replace(config, rates_others=()))
    assert place.options(Fit("prototypes", 3)).learning_rate == ADDED.rates.local
    assert place.options(Fit("prototypes", 256)).learning_rate == ADDED.rates.local / 2
    assert place.options(Fit("factorized-from-amortized")).row_learning_rate == config.rates_factorized[1]


@pytest.mark.slow
def test_vacuous_fits_are_marked_in_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr("amortized_bayes.evaluation.errors.ACTIVE_VARIANCE", 1e9)
    folder = start(tmp_path, ONE)
    rows = folder.rows()
    assert set(rows[rows["metric"].str.startswith("final_")]["status"]) == {"vacuous"}


@pytest.mark.slow
def test_evaluations_draw_from_streams_named_by_their_fit(tmp_path, monkeypatch):
    seeds = []
    elbo = measures.fit_elbo

    def watched(*given, **more):
        seeds.append(torch.initial_seed())
        return elbo(*given, **more)

    monkeypatch.setattr(measures, "fit_elbo", watched)
    start(tmp_path, ONE)
    names = ["constant", "amortized-k1", "factorized", "factorized-from-amortized"]
    expected = [torch_seed(0, "evaluation", f"digits_seed0_{name}") for name in names]
    assert list(dict.fromkeys(seeds)) == expected


def test_the_random_streams_of_fits_have_their_names():
    names = [guide_fits._stream_name(path) for path in ("a/b.npz", "a-b.npz", "/a/b.npz", "b.npy", "digits")]
    assert len(set(names)) == len(names)
    assert names[-1] == "digits"
    assert list(GUIDES) == [
        *("constant", "amortized", "semi-amortized", "refined", "factorized", "factorized-from-amortized")
    ]
    assert Fit("amortized", 4).factors == {"guide": "amortized", "k": 4}
