"""Commands from start to figures: what they print and leave, how they stop, and how they go on."""

from pathlib import Path

import numpy as np
import pytest
import seaborn
import wing
import yaml
from matplotlib import pyplot as plt
from run_folders import fill_disk

from amortized_bayes.experiments import EXPERIMENTS, experiment, lab, tune
from amortized_bayes.guides.registry import Rates
from amortized_bayes.progress import Progress
from amortized_bayes.results import RunFolder, list_runs

SWEEP = [
    *("--widths", "2", "--hidden", "4", "--latent-dim", "2", "--epochs", "2", "--batch-size", "50"),
    *("--num-train", "100", "--num-test", "20", "--compile-step", "off", "--device", "cpu"),
    *("--elbo-draws", "2", "--iwae-particles", "4", "--iwae-points", "10"),
]
MODEL = [
    *("--dataset", "digits", "--encoder", "small", "--latent-dim", "3", "--hidden", "16", "--epochs", "2"),
    *("--batch-size", "50", "--num-train", "200", "--num-test", "50", "--no-early-stopping", "--device", "cpu"),
]
BOUNDS = [
    *("--best-families", "gaussian", "--particles", "30", "--local-steps", "10", "--chains", "3"),
    *("--temperatures", "4", "--simulated", "3"),
]
GAPS = [
    *("--points", "16", "--particles", "50", "--local-steps", "10", "--chains", "2", "--temperatures", "2"),
    *("--max-temperatures", "2", "--leapfrog", "1", "--simulated", "2", "--device", "cpu"),
]
QSTAR = [
    *("--points", "6", "--restarts", "2", "--budgets", "10", "20", "--samples", "4", "--reference-steps", "40"),
    *("--reference-samples", "4", "--score", "50", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def _quick(place, few_visits, monkeypatch):
    """No capturing, forecasts at a guess, and few visits of test points."""
    monkeypatch.setattr(lab.Lab, "_step_seconds", wing.QuickLab._step_seconds)
    monkeypatch.setattr(lab.Lab, "_evaluation_seconds", wing.QuickLab._evaluation_seconds)
    with wing.uncaptured():
        yield place


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("amortized_bayes.presenting.draw", lambda *_: [])


@pytest.fixture
def interrupted(call, monkeypatch):
    """Run a command until a stage of a job is so far; give its run."""

    def run(name, given, stage, job=""):
        show = Progress.show

        def stop(self, fraction, seconds_left, at, now, done, total, state=""):
            if now == stage and job in at:
                raise KeyboardInterrupt
            show(self, fraction, seconds_left, at, now, done, total, state)

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "show", stop)
            found = call(name, *given)
        assert found.code == 130, found.err
        (info,) = (info for info in list_runs(Path("results")) if info.status == "unfinished")
        assert f"{name} --resume latest" in found.err
        return RunFolder.open(info.path)

    return run


def runs(experiment, place):
    return [info for info in list_runs(place / "results") if info.experiment == experiment]


# From start to figures ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_from_start_to_figures(call, place):
    style = seaborn.axes_style(), plt.rcParams.copy(), plt.get_fignums()
    ran = call("sweep", "--dataset", "digits", *SWEEP)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("sweep: starting")
    assert "jobs into results/sweep/" in ran.out
    assert (seaborn.axes_style(), plt.rcParams.copy(), plt.get_fignums()) == style
    (info,) = list_runs(place / "results")
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    figures = {path.name for path in info.path.glob("*.png")}
    assert figures
    assert {f"{name.removesuffix('.png')}.pdf" for name in figures} <= {path.name for path in info.path.iterdir()}
    about = folder.environment()
    assert set(about) >= {"packages", "device", "threads", "git", "data", "command", "started", "preset"}
    assert list(about["data"]) == ["digits"]
    assert "F-VI from A-VI" in call("table").out
    again = call("plot", info.name, "--into", "again")
    assert again.code == 0, again.err
    for name in figures:
        assert (place / "again" / name).read_bytes() == (info.path / name).read_bytes()
    assert folder.verify() == []


@pytest.mark.slow
def test_a_model_and_its_gaps_from_start_to_figures(call, place, refused):
    trained = call("train", *MODEL)
    assert trained.code == 0, trained.err
    (model,) = runs("train", place)
    for ending in ("png", "pdf"):
        assert any(path.stat().st_size > 2_000 for path in model.path.glob(f"*.{ending}"))
    ran = call("gaps", *GAPS)  # of the latest
    assert ran.code == 0, ran.err
    (info,) = runs("gaps", place)
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    assert any(path.stat().st_size > 2_000 for path in info.path.glob("*.png"))
    config = yaml.safe_load((info.path / "config.yaml").read_text())
    assert config["checkpoint"] == f"train/{model.name}"  # relative: the folder of results may be moved
    rows = folder.rows()
    mean = wing.one(rows, "inference_gap", split="train", label=None)["value"]
    assert f"{mean:.2f}" in ran.out
    assert f"{mean:.2f}" in call("table", info.name).out
    assert "which is finished" in refused("gaps", "--resume", info.name)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_qstar_from_an_interruption_to_its_table(call, place, refused, interrupted):
    assert call("train", *MODEL).code == 0
    folder = interrupted("qstar", QSTAR, "q*", job="3/9")
    assert len(folder.done()) == 2
    assert call("table", folder.name).code == 0  # what is there can be looked at
    assert f"expected a run of gaps, got {folder.path}" in refused("gaps", "--resume", folder.name)
    assert "got --points 99, which is 6 there" in refused("qstar", "--resume", "latest", "--points", "99")
    resumed = call("qstar", "--resume", "latest", *QSTAR)
    assert resumed.code == 0, resumed.err
    assert len(folder.load_arrays(next(iter(folder.done())))["places"]) == 6
    for start in ("encoder", "prior"):
        assert start in resumed.out


@pytest.mark.slow
def test_model_gaps_by_its_other_name(call, place):
    given = ("--dataset", "digits", "--families", "gaussian", "--annealing", "False", "--encoders", "small")
    ran = call("test-set-gaps", *given, "--epochs", "1", "--points", "4", *BOUNDS, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("model-gaps: starting")
    assert [info.experiment for info in list_runs(place / "results")] == ["model-gaps", "train"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_config_of_a_run_runs_it_again_with_equal_numbers(call, place):
    assert call("sweep", "--dataset", "digits", *SWEEP).code == 0
    (first,) = list_runs(place / "results")
    config = first.path / "config.yaml"
    assert call("sweep", "--config", config, "--device", "cpu", "--out", "again").code == 0
    (second,) = list_runs(place / "again")
    assert config.read_bytes() == (second.path / "config.yaml").read_bytes()
    kept = [wing.values(RunFolder.open(info.path).rows()) for info in (first, second)]
    timed = {"capture_seconds", "memory_bytes"}
    kept = [{key: value for key, value in found.items() if key[0] not in timed} for found in kept]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("command", [name for name in EXPERIMENTS if name not in ("gaps", "qstar")])
@pytest.mark.slow_cases("when-and-why")
def test_a_dry_run_says_what_it_would_take_and_does_nothing(call, place, command):
    data = {"semantic-hashing": "drawn-topics"}.get(command, "digits")
    own = ("--dataset", data) if hasattr(experiment(command).Config, "dataset") else ()
    ran = call(command, *own, "--device", "cpu", "--dry-run")
    assert ran.code == 0, ran.err
    for words in ("in all ", f" of {command}", "time: about ", "disk: about "):
        assert words in ran.out, words
    assert not list(place.iterdir())


# Failures and interruptions -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_decoder_that_diverges_is_recorded_and_the_run_finishes(call, place):
    given = [*MODEL, "--encoders", "linear", "--families", "gaussian", *BOUNDS, "--points", "4"]
    ran = call("frozen-decoder", *given, "--learning-rate", "1e6")
    assert ran.code == 2
    (info,) = runs("frozen-decoder", place)
    assert ran.err == f"error: every job of results/frozen-decoder/{info.name} failed, as its rows record\n"
    assert info.status == "failed"
    assert RunFolder.open(info.path).verify() == []
    for command in ("table", "plot"):
        assert call(command, info.name).code == 0


@pytest.mark.usefixtures("undrawn")
def test_a_training_that_diverges_is_one_line_and_recorded(call, refused, place):
    said = refused("train", *MODEL, "--learning-rate", "1e6")
    assert "every job of results/train/" in said
    (info,) = list_runs(place / "results")
    assert info.status == "failed"
    assert "failed" in call("list").out
    assert set(RunFolder.open(info.path).rows()["status"]) >= {"failed"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_weights(call, place, interrupted):
    given = ["20" if word == "2" else word for word in MODEL]  # epochs
    folder = interrupted("train", given, "training")
    assert call("train", "--resume", "latest", "--device", "cpu").code == 0
    assert call("train", *given, "--out", "whole").code == 0
    (whole,) = list_runs(place / "whole")
    wing.assert_same_weights(folder, RunFolder.open(whole.path))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_with_the_data_it_was_started_on(call, refused, place, interrupted):
    np.save("x.npy", np.random.default_rng(0).random((40, 6), dtype=np.float32))
    folder = interrupted("sweep", ["--dataset", "x.npy", *SWEEP], "fit", job="F-VI")
    before = (folder.path / "rows.jsonl").read_bytes()
    kept = (place / "x.npy").read_bytes()
    np.save("x.npy", np.zeros((40, 6), dtype=np.float32))
    assert "got other files of x.npy" in refused("sweep", "--resume", "latest")
    (place / "x.npy").write_bytes(kept)
    assert call("sweep", "--resume", "latest", "--device", "cpu").code == 0
    assert (folder.path / "rows.jsonl").read_bytes().startswith(before[: before.rfind(b'"final')])
    assert [info.status for info in list_runs(place / "results")] == ["finished"]


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_ends_with_a_line_and_what_is_finished_stays(refused, place, monkeypatch):
    done = RunFolder.mark_done

    def fill_after(folder, key, status="ok"):
        done(folder, key, status)
        if "guide=amortized" in key:
            fill_disk(monkeypatch)

    monkeypatch.setattr(RunFolder, "mark_done", fill_after)
    assert "No space left on device" in refused("sweep", "--dataset", "digits", *SWEEP)
    (info,) = list_runs(place / "results")
    folder = RunFolder.open(info.path)
    assert info.status == "unfinished"
    assert folder.verify() == []
    assert len(wing.only(folder.rows(), "final_elbo")) == info.num_jobs == 2


def test_out_that_is_a_file(refused, place):
    (place / "file").write_text("mine")
    assert "cannot write to" in refused("train", *MODEL, "--out", "file")
    assert (place / "file").read_text() == "mine"


@pytest.mark.usefixtures("undrawn")
def test_figures_that_cannot_be_written_take_nothing_away(call, place, monkeypatch):
    assert call("train", *MODEL).code == 0
    (info,) = list_runs(place / "results")
    monkeypatch.undo()
    (place / "file").write_text("mine")
    found = call("plot", info.path, "--into", place / "file")
    assert found.code == 2 or "cannot be" in found.out
    assert (place / "file").read_text() == "mine"
    assert call("table", info.path).code == 0


# Data that are used instead -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_without_images_a_bare_sweep_takes_digits_and_says_so(call, place):
    ran = call(*SWEEP)
    assert ran.code == 0, ran.err
    (info,) = list_runs(place / "results")
    folder = RunFolder.open(info.path)
    note = (
        "using scikit-learn's embedded digits (8x8) instead of MNIST and FashionMNIST, which are unavailable, as "
        "binomial counts of grey levels, since bits carry only 4 nats"
    )
    assert folder.environment()["note"] == note
    rows = folder.rows()
    assert rows["note"].str.contains(note, regex=False).all()
    assert set(rows["dataset"]) == {"digits"}
    assert set(rows["likelihood"]) == {"binomial"}
    said = [line for line in ran.out.splitlines() if note[1:] in line]
    assert said == [note, f"U{note[1:]}."]  # before it runs, and with what it found
    config = yaml.safe_load((info.path / "config.yaml").read_text())
    assert (config["dataset"], config["epochs"]) == (["digits"], 2)


@pytest.mark.usefixtures("undrawn")
def test_without_images_a_bare_model_takes_digits_and_says_so(call, place):
    given = [word for word in MODEL if word not in ("--dataset", "digits")]
    ran = call("train", *given)
    assert ran.code == 0, ran.err
    (info,) = list_runs(place / "results")
    note = "using scikit-learn's digits (8x8) instead of binarized-mnist, which is unavailable"
    assert set(RunFolder.open(info.path).rows()["note"]) == {note}
    said = [line for line in ran.out.splitlines() if note[1:] in line]
    assert said == [note, f"U{note[1:]}."]  # before it runs, and with what it found


@pytest.mark.parametrize("command", ["sweep", "train", "frozen-decoder"])
def test_data_that_were_asked_for_are_not_replaced(refused, place, command):
    (place / "c.yaml").write_text("epochs: 2\n" if command != "frozen-decoder" else "points: 4\n")
    for given in (("--preset", "quick"), ("--preset=paper",), ("--config", "c.yaml"), ("--dataset", "mnist")):
        assert "is unavailable" in refused(command, *given, "--device", "cpu")
    assert not (place / "results").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_an_interrupted_tuning_goes_on_to_its_sweep(call, place, monkeypatch):
    monkeypatch.setattr(tune, "rates_tried", lambda guide: [Rates(4e-3, rate) for rate in (2e-3, 4e-3)])
    done = RunFolder.mark_done

    def stop(folder, key, status="ok"):
        done(folder, key, status)
        if len(folder.done()) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "mark_done", stop)
        assert call("sweep", "--dataset", "digits", *SWEEP, "--tune").code == 130
    (info,) = list_runs(place / "results")
    assert (info.experiment, info.status, info.num_jobs) == ("tune", "unfinished", 3)
    resumed = call("tune", "--resume", "latest", "--device", "cpu")
    assert resumed.code == 0, resumed.err
    (tuned,) = list_runs(place / "results")
    assert (tuned.status, tuned.num_jobs) == ("finished", 6)


@pytest.mark.slow
def test_tensorboard_is_there_or_is_asked_for(call, place):
    found = call("train", *MODEL, "--log", "tensorboard")
    if found.code:
        assert found.err.startswith("error: expected the package tensorboard for --log tensorboard: pip install ")
        assert found.err.count("\n") == 1
        assert not list_runs(place / "results")
        return
    (info,) = list_runs(place / "results")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(info.path / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert any(tag.startswith("elbo/") for tag in tags["scalars"])
    for name in ("original", "reconstruction", "draw_from_the_prior"):
        (tag,) = (tag for tag in tags["images"] if tag.startswith(name))
        assert [image.step for image in events.Images(tag)] == [1, 6, 8]  # two on the way, and the end
