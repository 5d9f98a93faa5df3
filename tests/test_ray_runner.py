"""Jobs that travel to workers of a cluster, in this process and without Ray: the same results, whatever dies."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sweeps
import wing
from fake_ray import FakeRay
from test_executors import assert_same, lines
from toy import relay, wander

from amortized_bayes import experiments
from amortized_bayes.experiments import cluster, gaps, model_gaps, parcels, plans, ray_runner, running, sweep, workshop
from amortized_bayes.experiments.cluster import Cluster, Share
from amortized_bayes.experiments.executors import Died
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.results import RunFolder, find_run, list_runs

HERE = Cluster("auto")


@pytest.fixture(autouse=True)
def _two_lines_more(monkeypatch):
    for name in ("relay", "wander"):
        monkeypatch.setitem(experiments.EXPERIMENTS, name, f"toy.{name}")


@pytest.fixture
def ray(monkeypatch):
    """A cluster without Ray."""
    fake = FakeRay()
    monkeypatch.setattr(ray_runner, "ray_module", lambda: fake)
    monkeypatch.setattr(ray_runner, "PAUSE", 0.01)
    return fake


def on(where, plan, told=None):
    """Run what is planned: here, or on a cluster with one worker."""
    plan = replace(plan, cluster=where, runner="" if where is None else "ray")
    with wing.uncaptured():
        return running.run(plan, told or wing.Recorder())


def start(name, config, out, where=None, told=None, given=("config", "dataset"), **lab):
    lab = wing.QuickLab(out, wing.CPU, **lab)
    return on(where, plans.new_plan(name, config, lab, given, {"threads": 1}), told)


def left_behind():
    return [path for path in Path(parcels.tempfile.gettempdir()).glob("amortized-bayes-*")]


# The same results -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_is_the_same_on_a_cluster(tmp_path, ray):
    folders = [start("sweep", sweeps.ONE, tmp_path / str(where), where) for where in (None, HERE)]
    assert_same(*folders)
    assert len(ray.actors) == 1
    assert ray.actors[0].dead
    assert left_behind() == []


@pytest.mark.slow
def test_models_travel_to_the_jobs_that_need_them(tmp_path, ray):
    config = model_gaps.Config(
        **{"dataset": ("digits",), "families": ("gaussian",), "encoders": ("small",), "annealing": (False,)},
        **{"epochs": 1, "points": 4, "early_stopping": False, "bounds": wing.BOUNDS},
    )
    outs = [tmp_path / "1", tmp_path / "2"]
    folders = [start("model-gaps", config, out, where) for out, where in zip(outs, (None, HERE), strict=True)]
    assert_same(*folders)
    assert_same(*(RunFolder.open(find_run(out, "latest", "train")) for out in outs))


@pytest.mark.parametrize("elsewhere", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_a_run_that_settings_name_travels(tmp_path, ray, results, elsewhere):
    (trained,) = list_runs(results)
    out = tmp_path / "other" if elsewhere else results
    few = {"particles": 30, "restarts": 1, "local_steps": 10, "chains": 3, "temperatures": 4, "simulated": 3}
    config = gaps.Config(str(trained.path), ("test",), points=5, target_gap=1e3, **few)
    folders = [start("gaps", config, out, where) for where in (None, HERE)]
    assert_same(*folders)
    assert Path(folders[1].config(gaps.Config).checkpoint).is_absolute() == elsewhere


def test_a_job_travels_with_what_it_reads_alone_and_needs_no_folder_there(tmp_path):
    (tmp_path / "signs").mkdir()
    folder = start("relay", relay.Config(str(tmp_path / "signs")), tmp_path / "out")
    (tmp_path / "out/relay" / folder.name / "FINISHED").unlink()
    lab = Lab(tmp_path / "out", wing.CPU, folder=folder)
    plan = plans.Plan("relay", folder.config(relay.Config), lab, folder.environment(), folder)
    parcel = parcels.pack(plan, "leg=2")
    named = {Path(name).relative_to(parcel.run).as_posix(): data for name, data in parcel.files.items()}
    files = [f"{kind}/leg={leg}{end}" for leg in (0, 1) for kind, end in KEPT]
    assert set(named) == {"STARTED", "config.yaml", "environment.json", "rows.jsonl", "done.jsonl", *files}
    assert {json.loads(line)["job"] for line in named["rows.jsonl"].splitlines()} == {"leg=0", "leg=1"}
    row = [line["value"] for line in lines(folder) if line["job"] == "leg=2" and line["metric"] == "drawn"]
    shutil.rmtree(tmp_path / "out")
    sent = []
    away = workshop.Away(workshop.Workshop(Lab(tmp_path / "there", wing.CPU, away=True)))
    away(parcel, sent.append)
    assert [item.value for item in sent if getattr(item, "metric", "") == "drawn"] == row
    assert not (tmp_path / "there").exists()


KEPT = (("arrays", ".npz"), ("checkpoints", ".half.safetensors"))


# Workers that die -----------------------------------------------------------------------------------------------------


def killing(ray, when):
    """Kill a worker when it has sent so many messages; give the steps that all workers told of."""
    steps = []

    def watch(actor, message):
        if not actor.dead and isinstance(message, workshop.Stage):
            steps.append(message.done)
            if len(steps) in when:
                actor.die()

    ray.watch = watch
    return steps


@pytest.mark.slow
def test_a_job_whose_worker_dies_goes_on_elsewhere_from_its_checkpoint(tmp_path, ray):
    config, told = wander.Config(walks=2, steps=120, pause=0.002), wing.Recorder()
    steps = killing(ray, {40, 90, 130})
    folder = start("wander", config, tmp_path / "1", HERE, told, keep_every=0)
    assert len(ray.actors) == 4
    assert len(told.lines) == 3
    assert all(" continues elsewhere: a worker of the cluster died" in line for line in told.lines)
    assert 240 <= len(steps) < 300  # all steps of both walks, and few twice
    whole = start("wander", config, tmp_path / "2")
    assert_same(folder, whole)


def test_a_job_that_kills_every_worker_ends_the_run_which_can_be_resumed(tmp_path, ray):
    config = wander.Config(walks=1, steps=60, pause=0.002)
    killing(ray, {10, 20, 30, 40})
    with pytest.raises(ChildProcessError, match=r"died 4 times, while job 1/1 .* ran; `wander --resume .*` resumes"):
        start("wander", config, tmp_path / "1", HERE, keep_every=0)
    assert len(ray.actors) == 4
    lab = wing.QuickLab(tmp_path / "1", wing.CPU)
    assert_same(on(HERE, plans.resumed_plan("wander", "latest", lab)), start("wander", config, tmp_path / "2"))


def use(ray, perform, tasks, workers=1, pack=str, stop=False):
    """Hand tasks to an executor; give what it heard."""
    heard = []
    executor = ray_runner.OnRay(workers, perform, pack, lambda *event: heard.append(event), Share(1, 0.0))
    with executor:
        for task in tasks:
            executor.start(task)
        if stop:
            executor.ask_to_stop()
        while len(heard) < len(tasks):
            executor.wait()
    return heard


def echo():
    return lambda task, send: send(f"did {task}")


def broken():
    raise ValueError("nothing works here")


def test_tasks_wait_for_workers_and_are_packed_when_they_are_given(ray):
    assert use(ray, echo, [1, 2, 3], pack=lambda task: f"<{task}>") == [(n, f"did <{n}>") for n in (1, 2, 3)]
    assert len(ray.actors) == 1
    assert len(use(ray, echo, [1, 2, 3], workers=5)) == 3
    assert len(ray.actors) <= 4


def test_what_goes_wrong_in_a_worker_is_raised_here_in_its_own_words(ray):
    with pytest.raises(ValueError, match=r"^nothing works here$"):
        use(ray, broken, [1])
    with pytest.raises(KeyError, match="lost"):
        use(ray, raising, [1])
    assert all(actor.dead for actor in ray.actors)


def raising():
    def perform(task, send):
        raise KeyError("lost")

    return perform


def test_workers_that_die_at_their_start_end_the_run(ray, monkeypatch):
    monkeypatch.setattr(ray, "remote", lambda cls: DeadOnArrival(ray, cls))
    with pytest.raises(ChildProcessError, match="workers of the cluster die at their start: it is dead"):
        use(ray, echo, [1])


class DeadOnArrival:
    def __init__(self, ray, cls):
        self.hire = FakeRay.remote(ray, cls).options().remote

    def options(self, **_):
        return self

    def remote(self):
        actor = self.hire()
        actor.die()
        return actor


def test_an_appeal_to_stop_reaches_workers_and_what_waits_for_one(ray, monkeypatch):
    said = []
    monkeypatch.setattr(ray_runner, "ask", said.append)
    assert use(ray, echo, [1], stop=True) == [(1, Died("it was not started"))]
    executor = ray_runner.OnRay(1, echo, str, lambda *_: None, Share(1, 0.0))
    with executor:
        executor.start(1)
        executor.wait()
        executor.start(2)
        executor.ask_to_stop()
        executor._pass_on()
        for call in ray.actors[-1].calls:
            call.result()
    assert said == ["SIGTERM"]


# Machines that differ -------------------------------------------------------------------------------------------------


def hire(expected, accept=False, data_dir=None):
    return workshop.workshop_away({}, wing.CPU, data_dir, 15.0, expected, accept=accept)


def test_a_machine_must_be_like_the_one_that_started_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(parcels.tempfile, "tempdir", str(tmp_path))
    here = workshop.about_here(wing.CPU)
    assert hire(here, data_dir=tmp_path / "none").workshop.lab.data_dir is None
    with pytest.raises(ValueError, match=r"^.*: expected the same version of amortized_bayes on every machine"):
        hire({**here, "code": "0"}, accept=True)
    other = {**here, "packages": {**here["packages"], "torch": "1.0"}}
    version = here["packages"]["torch"]
    with pytest.raises(ValueError, match=re.escape(f"got torch 1.0 -> {version}; --accept-changes continues")):
        hire(other)
    away = hire(other, accept=True)
    assert away.note == f"measured with torch 1.0 -> {version}"
    folder = start("wander", wander.Config(), tmp_path / "out")
    (folder.path / "FINISHED").unlink()
    plan = plans.Plan("wander", wander.Config(), Lab(tmp_path / "out", wing.CPU), folder.environment(), folder)
    sent = []
    away(parcels.pack(plan, "walk=0"), sent.append)
    assert {item.note for item in sent if hasattr(item, "metric")} == {away.note}


@pytest.mark.parametrize(
    ("about", "labels", "words"),
    [
        ({"digits": {"digits.npz": "0" * 64}}, {}, "got other files of digits/digits.npz 0000000000 -> none"),
        (None, {"digits": None}, "expected labels of digits on every machine, or on none"),
    ],
)
def test_other_data_are_refused(tmp_path, about, labels, words):
    lab = Lab(tmp_path, wing.CPU)
    about = plans.checksums(sweep, sweeps.ONE, lab) if about is None else about
    plan = plans.Plan("sweep", sweeps.ONE, lab, {"data": about})
    with pytest.raises(ValueError, match=words):
        parcels.check_data(plan, labels)


def test_missing_data_are_refused(place):
    plan = plans.Plan("sweep", replace(sweeps.ONE, dataset=("mnist",)), Lab(place, wing.CPU), {"data": {"mnist": {}}})
    with pytest.raises(ValueError, match="expected the data of the run on every machine, got none: "):
        parcels.check_data(plan, {})


def test_what_killed_workers_left_behind_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(parcels.tempfile, "tempdir", str(tmp_path))
    if not os.fork():
        (parcels.own_folder("amortized-bayes-") / "of the dead").mkdir(parents=True)
        os._exit(0)
    os.wait()
    assert len(left_behind()) == 1
    one = parcels.own_folder("amortized-bayes-")
    other = parcels.own_folder("amortized-bayes-")
    assert {path / "results" for path in left_behind()} == {one, other}


# The cluster ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "node", "workers"),
    [
        (Share(1, 0.0), {"CPU": 4.0}, 4),
        (Share(3, 0.0), {"CPU": 4.0}, 1),
        (Share(1, 0.25), {"CPU": 9.0, "GPU": 2.0}, 8),
        (Share(1, 0.4), {"CPU": 9.0, "GPU": 2.0}, 4),
        (Share(1, 2.0), {"CPU": 9.0, "GPU": 3.0}, 1),
        (Share(1, 0.5), {"CPU": 9.0}, 0),
    ],
)
def test_workers_that_a_machine_can_hold(share, node, workers):
    assert cluster._fits(share, node) == workers


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--runner", "ray"), "expected the package ray for --runner ray: pip install 'amortized_bayes[ray]'"),
        (("--address", "auto"), "expected --runner ray with --address, got none"),
        (("--runner", "inline", "--gpus-per-job", "0.5"), "expected --runner ray with --gpus-per-job, got inline"),
        (("--runner", "ray", "--gpus-per-job", "1.5"), "expected --gpus-per-job above 0, up to 1 or a whole number"),
        (("--runner", "inline", "--jobs", "2"), "expected --jobs of 1 with --runner inline, got 2"),
    ],
)
def test_runners_that_cannot_be_are_one_line(refused, monkeypatch, flags, words):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert words in refused("sweep", *flags)


def test_a_cluster_that_does_not_answer_is_one_line(refused, monkeypatch):
    monkeypatch.setattr(cluster, "ray_module", FakeRay)
    monkeypatch.setattr(FakeRay, "is_initialized", lambda self: False, raising=False)
    begin = "import sys, time; "
    silent = ("time.sleep(9)", 0.3, "no answer within 0.3 s")
    for code, seconds, words in (silent, ("sys.exit('refused: nobody')", 60, "nobody")):
        monkeypatch.setattr(cluster, "CONNECT", begin + code)
        monkeypatch.setattr(cluster, "CONNECTING", seconds)
        expected = f"error: expected a Ray cluster at --address 10.0.0.9:6379, got none: {words}\n"
        assert refused("sweep", "--runner", "ray", "--address", "10.0.0.9:6379") == expected
