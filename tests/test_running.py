"""The life of a run: an experiment added by one file and one line, and all that the mechanism gives it."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import wing
import yaml
from coin_runs import interrupted, only_run
from toy import coins
from wing import files

from amortized_bayes import experiments
from amortized_bayes.experiments import plans, running, spec, sweep
from amortized_bayes.results import RunFolder, list_runs


@pytest.fixture(autouse=True)
def _one_line_more(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "coins", "toy.coins")


def test_an_added_experiment_has_every_command(command, tmp_path):
    ran = command("coins", "--coins", 0.1, 0.9, "--throws", 50)
    assert ran.code == 0, ran.err
    assert "2 coins were thrown." in ran.out
    folder = only_run(tmp_path)
    assert folder.finished
    assert folder.verify() == []
    rows = folder.rows()
    assert rows[rows["metric"] == "heads"]["coin"].tolist() == [0.1, 0.9]
    assert (folder.path / "coins.png").stat().st_size > 1_000
    assert "coins/" in command("list").out
    assert command("plot", "latest").code == 0
    table = command("table", "latest")
    assert table.code == 0
    assert "0.9" in table.out


def test_help_is_that_of_the_experiment(command):
    shown = command("coins", "--help")
    assert shown.code == 0
    for words in (
        "Throw coins.",
        "--throws",
        "Probabilities of heads.",
        "--preset",
        "--config",
        "--resume",
        "--dry-run",
    ):
        assert words in shown.out


@pytest.mark.parametrize(("jobs", "side"), [(1, "about 6 s on cpu, 1 job"), (5, "about 3 s on cpu, 2 jobs")])
def test_a_dry_run_says_what_it_would_do_and_does_nothing(command, tmp_path, jobs, side):
    shown = command("coins", "--dry-run", "--jobs", jobs, "--device", "cpu")
    assert shown.code == 0, shown.err
    for words in ("coin 0.2", "in all 2 jobs", f"time: {side} at a time, each on 1 thread, from habit", "disk: about"):
        assert words in shown.out
    assert not list(tmp_path.iterdir())


def test_presets_and_configurations_are_where_flags_start(command, tmp_path):
    assert command("coins", "--preset", "paper", "--coins", 0.5).code == 0
    folder = only_run(tmp_path)
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {"coins": [0.5], "throws": 1000, "seed": 0}
    assert folder.environment()["preset"] == "paper"
    again = command("coins", "--config", folder.path / "config.yaml", "--throws", 7)
    assert again.code == 0
    configs = [yaml.safe_load((info.path / "config.yaml").read_text()) for info in list_runs(tmp_path)]
    assert configs[-1] == {"coins": [0.5], "throws": 7, "seed": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "quick", "--preset", "paper"), "expected --preset once, got it 2 times: quick, paper"),
        (("--preset", "huge"), "expected --preset quick or paper, got 'huge'"),
        (("--jobs", "0"), "expected --jobs of 1 or more, got 0"),
        (("--throws", "0"), "expected --throws of 1 or more, got 0"),
        (("--coins", "0.5", "0.5"), "expected --coins with one or more different values, got [0.5, 0.5]"),
        (("--config", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("--resume", "latest"), "expected an unfinished run of coins"),
    ],
)
def test_bad_flags_are_one_line_and_leave_no_run(command, tmp_path, arguments, words):
    refused = command("coins", *arguments)
    assert refused.code == 2
    assert len(refused.err.strip().splitlines()) == 1
    assert words in refused.err
    assert not list_runs(tmp_path)


def test_a_failed_job_is_recorded_and_the_others_go_on(command, tmp_path):
    ran = command("coins", "--coins", 1.5, 0.5)
    assert ran.code == 0, ran.err
    assert "no coin falls on heads with probability 1.5" in ran.out
    folder = only_run(tmp_path)
    assert folder.done() == {"coin=1.5": "failed", "coin=0.5": "ok"}
    rows = folder.rows()
    assert rows[rows["status"] == "failed"]["metric"].tolist() == ["failure"]


def test_a_run_of_failures_alone_exits_with_2(command, tmp_path):
    refused = command("coins", "--coins", 1.5)
    assert refused.code == 2
    assert "every job" in refused.err
    assert only_run(tmp_path).finished


def test_a_number_that_is_not_finite_fails_its_job(command, tmp_path, monkeypatch):
    job = spec.Job({"coin": 0.5}, lambda: iter([spec.Measured("heads", float("nan"), step=3)]))
    monkeypatch.setattr(coins, "jobs", lambda config, lab: [job])
    command("coins")
    (failure,) = only_run(tmp_path).rows().to_dict("records")
    assert (failure["metric"], failure["step"], failure["note"]) == ("failure", 3, "heads is nan")


def test_a_resumed_run_keeps_settings_and_finished_jobs(command, tmp_path, monkeypatch):
    interrupted(command, monkeypatch, after=1)
    folder = only_run(tmp_path)
    other = command("coins", "--resume", "latest", "--throws", 7, "--coins", 0.1, 0.2, 0.3)
    assert other.code == 2
    words = f"expected the settings of {folder.path} beside --resume, or none, got --throws 7, which is 100 there"
    assert other.err.startswith(f"error: {words}")
    for flags, word in (
        (("--preset", "paper"), "got --preset paper, which is quick there"),
        (("--throw", 7), "did you mean --throws?"),
        (("--fresh",), "expected --resume or --fresh"),
    ):
        assert word in command("coins", "--resume", "latest", *flags).err
    resumed = command("coins", "--resume", "latest", "--throws", 100, "--preset", "quick", "--jobs", 1)
    assert resumed.code == 0, resumed.err
    rows = folder.rows()
    assert rows[rows["metric"] == "throws"]["value"].tolist() == [100.0] * 3
    again = command("coins", "--resume", folder.path)
    assert again.code == 2
    assert "which is finished" in again.err


def test_a_run_stopped_before_its_last_mark_is_finished_on_resuming(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("coins").code == 130
    assert len(only_run(tmp_path).done()) == 2
    assert command("coins", "--resume", "latest").code == 0
    assert only_run(tmp_path).finished


def lose_the_array(run):
    (run / "arrays" / "coin=0.2.npz").unlink()


def cut_the_array(run):
    (run / "arrays" / "coin=0.2.npz").write_bytes(b"half of it")


def swap_the_arrays(run):
    (run / "arrays" / "coin=0.2.npz").write_bytes((run / "arrays" / "coin=0.1.npz").read_bytes())


def lose_the_rows(run):
    lines = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(line for line in lines if '"coin": 0.2' not in line))


def change_a_row(run):
    data = (run / "rows.jsonl").read_bytes()
    at = data.index(b'"value": ', data.index(b'"coin": 0.2')) + 11
    (run / "rows.jsonl").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("damage", [lose_the_array, cut_the_array, swap_the_arrays, lose_the_rows, change_a_row])
@pytest.mark.slow_cases("cut_the_array", "lose_the_array", "lose_the_rows", "swap_the_arrays")
def test_a_finished_job_whose_results_are_damaged_is_run_again(command, tmp_path, monkeypatch, damage):
    thrown = []

    def jobs(config, lab):
        """Each coin is thrown after that before it."""
        before = []
        for job in plain(config, lab):
            run = partial(lambda job: thrown.append(job.key) or job.run(), job)
            yield replace(job, run=run, after=before)
            before = [job.key]

    plain = coins.jobs
    monkeypatch.setattr(coins, "jobs", jobs)
    assert command("coins", "--coins", 0.1, 0.2, 0.3).code == 0
    folder = only_run(tmp_path)
    before = folder.rows()
    (folder.path / "FINISHED").unlink()
    thrown.clear()
    damage(folder.path)
    if damage is not lose_the_array:  # what is gone can pass for nothing else
        kept = files(folder.path)
        refused = command("coins", "--resume", "latest")
        assert refused.code == 2
        assert re.search(r"is damaged: (arrays/coin=0.2.npz:|rows.jsonl: rows of coin=0.2) changed", refused.err)
        assert files(folder.path) == kept
        assert thrown == []
        repaired = command("verify", folder.path, "--repair")
        assert repaired.code == 0, repaired.out
        assert "coin=0.2: will be run again when the run is resumed" in repaired.out
    resumed = command("coins", "--resume", "latest")
    assert resumed.code == 0, resumed.err
    assert ("coin=0.2 is run again: " in resumed.out) == (damage is lose_the_array)
    assert thrown == ["coin=0.2", "coin=0.3"]  # what was made of it too
    after = only_run(tmp_path).rows()
    pd.testing.assert_frame_equal(after.drop(columns="seconds"), before.drop(columns="seconds"))
    assert folder.finished
    assert not folder.damaged()


def test_a_run_of_another_kind_is_not_resumed(command, tmp_path, monkeypatch):
    interrupted(command, monkeypatch, after=1)
    refused = command("sweep", "--resume", only_run(tmp_path).path)
    assert refused.code == 2
    assert "expected a run of sweep" in refused.err


def test_a_moved_results_folder_is_resumed(command, tmp_path, monkeypatch):
    interrupted(command, monkeypatch, after=1)
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    (tmp_path / "coins").rename(moved)
    (run,) = moved.iterdir()
    place = tmp_path / "elsewhere" / "coins"
    place.mkdir(parents=True)
    run.rename(place / run.name)
    assert command("coins", "--resume", place / run.name).code == 0
    assert RunFolder.open(place / run.name).finished


def test_results_of_a_job_that_ended_well_must_be_there(command, tmp_path, monkeypatch):
    def both(config, lab):
        (first, *_) = list(original(config, lab))
        reads = spec.Job({"coin": 0.0}, lambda: iter([spec.Measured("heads", lab.arrays(first.key)["heads"].mean())]))
        return [first, reads]

    original = coins.jobs
    monkeypatch.setattr(coins, "jobs", both)
    keep = RunFolder.save_arrays
    monkeypatch.setattr(RunFolder, "save_arrays", lambda self, name, job, /, **arrays: None)
    refused = command("coins", "--coins", 0.5)
    monkeypatch.setattr(RunFolder, "save_arrays", keep)
    assert refused.code == 2
    assert "holds no 'coin=0.5'" in refused.err
    assert not only_run(tmp_path).finished


def test_keys_used_twice_are_refused_with_the_file(command, tmp_path, monkeypatch):
    job = spec.Job({"coin": 0.5}, lambda: iter(()))
    monkeypatch.setattr(coins, "jobs", lambda config, lab: [job, job])
    refused = command("coins")
    assert refused.code == 2
    assert "coins.py: expected jobs of different keys, got 'coin=0.5' twice" in refused.err
    assert not list(tmp_path.iterdir())


def test_a_job_before_one_that_it_reads_is_refused(command, monkeypatch):
    job = spec.Job({"coin": 0.5}, lambda: iter(()), after=["coin=1"])
    monkeypatch.setattr(coins, "jobs", lambda config, lab: [job])
    assert "expected 'coin=0.5' after the jobs it reads" in command("coins").err


@pytest.mark.parametrize("lacking", ["jobs", "PRESETS", "TABLES", "__doc__"])
def test_a_file_that_lacks_something_is_refused_by_name(monkeypatch, lacking):
    broken = SimpleNamespace(**{name: getattr(coins, name) for name in dir(coins)})
    broken.__doc__ = coins.__doc__
    if lacking == "__doc__":
        broken.__doc__ = "No command."
    else:
        delattr(broken, lacking)
    monkeypatch.setitem(sys.modules, "toy.coins", broken)
    with pytest.raises(ValueError, match=r"coins\.py"):
        experiments.experiment("coins")


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_says_its_command(name):
    assert experiments.experiment(name).PRESETS["quick"]


@pytest.mark.slow
def test_latest_is_the_run_that_was_started_last(tmp_path, command):
    from amortized_bayes.results import find_run

    for seed in (1, 2):
        assert command("coins", "--seed", seed).code == 0
    first, second = list_runs(tmp_path)
    (first.path / "rows.jsonl").touch()  # written to later, started before
    assert find_run(tmp_path, "latest") == second.path
    part = RunFolder.create(tmp_path, "coins", {}, {"part_of": "sweep/other"}, "part")
    empty = tmp_path / "coins" / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("")
    assert find_run(tmp_path, "latest") == second.path
    assert find_run(tmp_path, "latest", "coins") == second.path
    assert find_run(tmp_path, "latest", "coins", ("unfinished",)) == part.path
    assert find_run(tmp_path, "latest", "coins", ("finished",)) == second.path


def test_the_forecast_counts_what_is_over():
    work = [spec.Work("a", 2, lambda: 10.0), spec.Work("b", 1, lambda: 20.0)]
    job = spec.Job({"n": 1}, lambda: iter(()), work=work)
    forecast = running.Forecast({"n=1": job, "n=2": job})
    whole = forecast.seconds
    forecast.at("n=1", "b", 1, 2)  # a is over, and half of b
    assert forecast.fraction * whole == pytest.approx(30.0)
    forecast.finish("n=1")
    assert forecast.fraction == pytest.approx(0.5)
    assert forecast.seconds_left > 0


def test_rows_say_what_is_used_instead(command, tmp_path, monkeypatch):
    def substitutes(config, given):
        yield config, "using pennies instead of euros, which are unavailable"

    calls = []

    def datasets(config, lab):
        calls.append(config)
        if len(calls) == 1:
            lab.dataset("nowhere.npz")
        return ()

    monkeypatch.setattr(coins, "substitutes", substitutes, raising=False)
    monkeypatch.setattr(coins, "datasets", datasets)
    monkeypatch.setattr("amortized_bayes.experiments.lab.read_dataset", unavailable)
    assert command("coins").code == 0
    folder = only_run(tmp_path)
    assert set(folder.rows()["note"]) == {"using pennies instead of euros, which are unavailable"}
    assert "pennies" in json.dumps(folder.environment())


def test_data_asked_for_by_name_get_the_settings_that_they_have_as_substitutes(tmp_path):
    lab = wing.QuickLab(tmp_path, wing.CPU)

    def planned(*given, **changes):
        config = replace(sweep.PRESETS["quick"], dataset=("digits",), **changes)
        plan = plans.new_plan("sweep", config, lab, given, {})
        changed = (plan.config.likelihood, plan.config.epochs) != (config.likelihood, config.epochs)
        assert changed == ("digits with settings of their own: --" in plan.about.get("settings", ""))
        assert plan.about["note"] == ""
        return plan.config.likelihood, plan.config.epochs

    assert planned("dataset") == ("binomial", 640)
    assert planned("dataset", "epochs", epochs=32) == ("binomial", 32)
    assert planned("dataset", "likelihood", likelihood="gaussian") == ("gaussian", 640)
    assert planned("dataset", "preset") == planned("dataset", "config") == ("bernoulli", 160)


def test_naming_a_preset_asks_for_its_data(command, tmp_path, monkeypatch):
    monkeypatch.setattr(coins, "substitutes", lambda config, given: [(config, "pennies")], raising=False)
    monkeypatch.setattr(coins, "datasets", lambda config, lab: ("mnist",))
    monkeypatch.setattr("amortized_bayes.experiments.lab.read_dataset", unavailable)
    refused = command("coins", "--preset", "paper")
    assert refused.code == 2
    assert "mnist is unavailable" in refused.err
    assert not list(tmp_path.iterdir())


def unavailable(name, **_):
    from amortized_bayes.data import DataUnavailable

    raise DataUnavailable(f"{name} is unavailable")
