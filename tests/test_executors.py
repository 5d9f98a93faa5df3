"""Jobs side by side in processes: the same results, whatever fails, is killed or interrupted."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Hashable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sweeps
import torch
import wing
from safetensors.numpy import load_file
from test_gaps_experiment import FEW
from toy import relay
from tqdm import tqdm

from amortized_bayes import experiments
from amortized_bayes.experiments import model_gaps, plans, running, spec
from amortized_bayes.experiments.executors import Processes
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.results import RunFolder, list_runs

PATIENCE = 60.0
"""Seconds after which something that must happen has not."""


def bar_locks():
    """Prepare tasks that name the lock of tqdm's bars, of which torch draws some."""
    return lambda task, send: send(type(tqdm.get_lock()))


@pytest.mark.slow
def test_bars_leave_no_semaphore_when_their_process_is_killed():
    """tqdm's own lock is one, of which Python would complain after a run that was asked to stop."""
    said = []
    with Processes(1, bar_locks, lambda task, message: said.append(message)) as processes:
        processes.start("one")
        processes.wait()
    assert said == [type(threading.RLock())]


@pytest.fixture(autouse=True)
def _one_line_more(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "relay", "toy.relay")


@pytest.fixture
def signs(tmp_path):
    """Give the folder with signs for the legs of a relay, and put some there."""

    def put(*names):
        for name in names:
            (tmp_path / "signs" / name).touch()
        return tmp_path / "signs"

    (tmp_path / "signs").mkdir()
    return put


@pytest.fixture
def quick(monkeypatch):
    """Processes that have torch from their first moment, where it does not matter how they start."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._inductor", "pyro", "pandas", "sklearn.datasets"])
        monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


def start(name, config, out, most):
    """Run an experiment to its end; give its run, and who was told of it."""
    told = wing.Recorder()
    plan = plans.new_plan(name, config, wing.QuickLab(out, wing.CPU), ["config"], {}, most)
    return running.run(plan, told), told


def resume(out, most):
    return running.run(plans.resumed_plan("relay", "latest", Lab(out, wing.CPU), most), wing.Recorder())


def lines(folder, file="rows.jsonl"):
    return [json.loads(line) for line in (folder.path / file).read_text().splitlines()]


def untimed(folder):
    """Rows, without the seconds that were measured."""
    rows = [{**row, "seconds": None} for row in lines(folder)]
    return [{**row, "value": None} if "seconds" in row["metric"] else row for row in rows]


def assert_same(one, other):
    """All but seconds is the same bit for bit, and in the same order."""
    assert untimed(one) == untimed(other)
    summaries = [pd.read_csv(run.path / "summary.csv").drop(columns=["seconds", "value"]) for run in (one, other)]
    pd.testing.assert_frame_equal(summaries[0], summaries[1])
    assert [mark["job"] for mark in lines(one, "done.jsonl")] == [mark["job"] for mark in lines(other, "done.jsonl")]
    for kind, load in (("arrays/*.npz", np.load), ("checkpoints/*.safetensors", load_file)):
        found = [{path.relative_to(run.path) for path in run.path.glob(kind)} for run in (one, other)]
        files, others = ({path for path in paths if ".previous" not in path.name} for paths in found)  # of resuming
        assert files == others
        for file in files:
            found = [dict(load(folder.path / file)) for folder in (one, other)]
            assert found[0].keys() == found[1].keys()
            for name in found[0].keys() - {"seconds"}:
                np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=f"{file}: {name}")
    assert one.verify() == other.verify() == []


# The same results -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_a_sweep_is_the_same_side_by_side(tmp_path):
    config = replace(sweeps.TINY, widths=(1,))
    alone, _ = start("sweep", config, tmp_path / "1", 1)
    together, told = start("sweep", config, tmp_path / "2", 2)
    assert_same(alone, together)
    assert told.fractions[-1] > 0.2  # the forecast of fits so short is rough
    assert any("dataset=" in row["job"] and row["metric"] == "family_gap" for row in lines(together))


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_blocks_of_points_are_the_same_side_by_side(trained_results, tmp_path):
    config = replace(FEW, splits=("test",), points=36, block_size=12)
    found = []
    for most in (1, 2):
        shutil.copytree(trained_results, tmp_path / str(most))
        found.append(start("gaps", config, tmp_path / str(most), most)[0])
    assert len(found[0].done()) == 5
    assert_same(*found)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("action", "shown"), [("default", 1), ("ignore", 0)])
@pytest.mark.slow
def test_warnings_of_processes_are_those_of_one(tmp_path, signs, action, shown):
    config = relay.Config(signs=str(signs("wet")), meet=True)  # two legs at a time, in a process each
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        start("relay", config, tmp_path / "out", 2)
    assert [w.category for w in caught if "wet" in str(w.message)] == [RuntimeWarning] * shown


@pytest.mark.slow
def test_models_are_trained_side_by_side_to_the_same_weights(tmp_path):
    config = model_gaps.Config(
        **{"dataset": ("digits",), "families": ("gaussian",), "encoders": ("small",)},
        **{"epochs": 1, "points": 4, "early_stopping": False, "bounds": wing.BOUNDS},
    )
    runs = {}
    for most in (1, 2):
        folder, _ = start("model-gaps", config, tmp_path / str(most), most)
        models = [RunFolder.open(info.path) for info in list_runs(tmp_path / str(most)) if info.experiment == "train"]
        runs[most] = [folder, *sorted(models, key=lambda run: (run.path / "config.yaml").read_text())]
    assert len(runs[1]) == 3
    for one, other in zip(runs[1], runs[2], strict=True):
        assert_same(one, other)
    assert [run.environment()["part_of"] for run in runs[2][1:]] == [f"model-gaps/{runs[2][0].name}"] * 2


def test_what_holds_up_most_starts_first(tmp_path):
    plan = plans.new_plan("sweep", sweeps.TINY, wing.QuickLab(tmp_path, wing.CPU), ["config"], {}, 2)
    execution, order = running._Execution(plan, plan.forecast, wing.Recorder()), []
    waiting = execution._steps()
    while waiting:
        step = execution._next(waiting)
        waiting.remove(step)
        order.append(step.label.split(" ", 2)[2])
        execution.over.add(step.key)
    assert order[:2] == ["A-VI, k = 2", "A-VI, k = 1"]  # for both of which F-VI from A-VI waits
    assert order[-1] == "comparison"


# Order, and threads ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_jobs_wait_for_those_that_they_read_and_for_no_others(tmp_path, signs):
    folder, _ = start("relay", relay.Config(str(signs()), meet=True), tmp_path / "out", 2)
    pids = [int((signs() / f"pid.{leg}").read_text()) for leg in range(relay.LEGS)]
    assert pids[0] != pids[1]  # leg 0 does not end before leg 1 has: they ran side by side
    assert os.getpid() not in pids
    rows = folder.rows()
    drawn = rows[rows["metric"] == "drawn"]["value"].tolist()
    assert rows[rows["metric"] == "before"]["value"].tolist() == [0, 0, drawn[0] + drawn[1], 0]
    assert [mark["job"] for mark in lines(folder, "done.jsonl")] == [f"leg={leg}" for leg in range(relay.LEGS)]
    marks = {mark["job"]: set(mark["files"]) for mark in lines(folder, "done.jsonl")}
    assert marks["leg=1"] == {"arrays/leg=1.npz", "checkpoints/leg=1.half.safetensors"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.slow_cases("2")
def test_threads_belong_to_the_run(tmp_path, signs, monkeypatch, most):
    before = torch.get_num_threads()
    torch.set_num_threads(9)
    try:
        folder, _ = start("relay", relay.Config(str(signs())), tmp_path, most)
        assert torch.get_num_threads() == 9
    finally:
        torch.set_num_threads(before)
    about = folder.environment()
    assert (about["threads"], about["jobs"]) == (2, most)  # of 9 for 4 jobs
    rows = folder.rows()
    assert set(rows[rows["metric"] == "threads"]["value"]) == {2.0}


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_a_job_that_fails_elsewhere_is_recorded_and_others_go_on(tmp_path, signs):
    folder, _ = start("relay", relay.Config(str(signs("fail.1"))), tmp_path / "out", 2)
    assert folder.done() == {"leg=0": "ok", "leg=1": "failed", "leg=2": "failed", "leg=3": "ok"}
    rows = folder.rows()
    failures = rows[rows["metric"] == "failure"]
    assert failures[["leg", "step", "note"]].to_numpy().tolist() == [[1, 7, "leg 1 stumbled"], [2, 0, "leg=1 failed"]]


@pytest.mark.usefixtures("quick")
def test_another_error_ends_the_run_with_its_own_words(tmp_path, signs):
    with pytest.raises(FileNotFoundError, match=r"pid\.[01]"):  # whichever is first
        start("relay", relay.Config(str(signs() / "nowhere")), tmp_path / "out", 2)


@pytest.mark.usefixtures("quick")
def test_a_process_that_is_killed_is_one_line_and_the_run_goes_on_later(tmp_path, signs):
    out, config = tmp_path / "out", relay.Config(str(signs("kill.3")))
    with pytest.raises(ChildProcessError) as killed:
        start("relay", config, out, 2)
    (info,) = list_runs(out)
    expected = (
        rf"a worker process was killed, .*, while .*job 4/4 leg 3.* ran; `relay --resume {info.path}` resumes the run"
    )
    assert re.fullmatch(expected, str(killed.value))
    assert info.status == "unfinished"
    assert_same(resume(out, 2), start("relay", config, tmp_path / "whole", 1)[0])


def echo():
    """What carries a task out in a process: it sends its words."""

    def perform(task, send):
        for word in task.split():
            send(word)

    return perform


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_what_was_sent_before_a_process_died_is_kept():
    heard = []

    def use(processes):
        with processes:
            processes.events.put(BrokenProcessPool())  # of another process
            processes.start("all of it")
            wait_for(lambda: processes.events.qsize() == 4)
            processes.wait()

    with pytest.raises(ChildProcessError):
        use(Processes(1, echo, lambda task, word: heard.append(word)))
    assert heard == ["all", "of", "it"]


def wait_for(what):
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that has ended and is not waited for by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("killed", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_and_goes_on_later(tmp_path, signs, how):
    out = tmp_path / "out"
    given = ["relay", "--signs", str(signs("hold.1", "hold.2")), "--jobs", "2", "--out", str(out), "--device", "cpu"]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    command = [sys.executable, "-m", "toy.relay", *given]
    with subprocess.Popen(command, cwd=Path(__file__).parent, env=path, **kept) as process:
        wait_for(lambda: (signs() / "over.3").exists() and (signs() / "pid.1").exists())
        pids = [int((signs() / f"pid.{leg}").read_text()) for leg in (1, 3)]
        assert all(map(alive, pids))
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes get it
        else:
            process.kill()
        said = process.communicate(timeout=PATIENCE)[1]
    wait_for(lambda: not any(map(alive, pids)))
    if how == "Ctrl-C":
        assert process.returncode == 130
        assert said.splitlines() == [
            f"what is finished is kept: `relay --resume latest --out {out}` resumes the run",
            "interrupted",
        ]
    (info,) = list_runs(out)
    assert info.num_jobs >= 1
    for leg in (1, 2):
        (signs() / f"hold.{leg}").unlink()
    whole, _ = start("relay", relay.Config(str(signs())), tmp_path / "whole", 1)
    assert_same(resume(out, 2), whole)


# The forecast ---------------------------------------------------------------------------------------------------------


def test_the_forecast_shares_work_out_but_no_chain():
    def job(n, seconds, after=()):
        return spec.Job({"n": n}, lambda: iter(()), work=[spec.Work("a", seconds, lambda: 1.0)], after=after)

    apart: dict[Hashable, spec.Job] = {f"n={n}": job(n, 27) for n in range(4)}  # 30 s each
    assert running.Forecast(apart, 2).seconds == pytest.approx(60)
    assert running.Forecast(apart, 4).seconds == pytest.approx(30)
    chain: dict[Hashable, spec.Job] = {f"n={n}": job(n, 27, [f"n={n - 1}"] if n else []) for n in range(3)}
    forecast = running.Forecast({**chain, "n=9": job(9, 7)}, 2)
    assert forecast.seconds == pytest.approx(90)
    assert forecast.chains == pytest.approx({"n=0": 90, "n=1": 60, "n=2": 30, "n=9": 10})
    forecast.finish("n=9")
    assert forecast.fraction == pytest.approx(0.1)
    forecast.start -= 30.0
    forecast.finish("n=0")
    assert forecast.seconds_left == pytest.approx(60, rel=1e-3)  # two of the chain, at the pace that was forecast
