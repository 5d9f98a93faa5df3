"""Runs on a Ray cluster of two nodes of this machine: equal to inline, whatever is killed; quick where it is warm."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sweeps
import wing
from test_executors import assert_same
from test_gaps_experiment import FEW
from toy import wander

from amortized_bayes import experiments
from amortized_bayes.experiments import plans, running
from amortized_bayes.experiments.cluster import Cluster
from amortized_bayes.results import RunFolder, find_run

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="the package ray is not installed")
MEMORY = 100 * 2**20
KILLS = 20


@pytest.fixture(autouse=True)
def _one_line_more(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "wander", "toy.wander")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster of two nodes, each in a working directory of its own."""
    from ray.cluster_utils import Cluster as Nodes

    here = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
        nodes = Nodes()
        try:
            for _ in range(2):
                os.chdir(tmp_path_factory.mktemp("node"))
                nodes.add_node(num_cpus=1, object_store_memory=MEMORY, include_dashboard=False)
            os.chdir(here)
            Cluster(nodes.address).connect()
            yield nodes
        finally:
            os.chdir(here)
            ray.shutdown()
            nodes.shutdown()


def start(name, config, out, nodes=None, told=None, most=2, **lab):
    plan = plans.new_plan(name, config, wing.QuickLab(out, wing.CPU, **lab), ["config"], {"threads": 1}, most)
    return on(nodes, plan, told)


def on(nodes, plan, told=None):
    cluster = None if nodes is None else Cluster(nodes.address)
    plan = replace(plan, cluster=cluster, runner="inline" if cluster is None else "ray")
    return running.run(plan, told or wing.Recorder())


def workers(nodes):
    """Pids of the workers of the cluster that carry out tasks."""
    raylets = {str(process.process.pid) for node in nodes.list_all_nodes() for process in node.all_processes["raylet"]}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if parent in raylets and (path / "cmdline").read_bytes().startswith(b"ray::_Worker"):
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def test_a_sweep_on_two_nodes_is_that_of_this_process(tmp_path, nodes):
    config = replace(sweeps.TINY, widths=(1,))
    assert_same(start("sweep", config, tmp_path / "1", nodes), start("sweep", config, tmp_path / "2"))


def test_blocks_of_points_on_two_nodes_are_those_of_this_process(trained_results, tmp_path, nodes):
    """The certificate, what three workers of two nodes make of it, and all of it together travel back and forth."""
    config = replace(FEW, splits=("test",), points=36, block_size=12)
    found = []
    for place, cluster in (("1", nodes), ("2", None)):
        shutil.copytree(trained_results, tmp_path / place)
        found.append(start("gaps", config, tmp_path / place, cluster))
    assert len(found[0].done()) == 5
    assert_same(*found)


@pytest.mark.parametrize(
    ("name", "config", "kills", "pause"),
    [
        ("wander", wander.Config(walks=8, steps=300, pause=0.02), KILLS - 5, (2.0, 12.0)),
        ("sweep", replace(sweeps.TINY, widths=(1,), epochs=400), 5, (10.0, 20.0)),
    ],
)
def test_workers_that_are_killed_change_nothing(tmp_path, nodes, name, config, kills, pause):
    rng, killed, over = random.Random(0), [], threading.Event()

    def kill():
        while len(killed) < kills and not over.wait(rng.uniform(*pause)):
            if found := workers(nodes):
                killed.append(rng.choice(found))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    folders, told = [], wing.Recorder()
    try:
        while len(killed) < kills:
            out = tmp_path / str(len(folders))
            folders.append(finish(name, config, out, nodes, told))
    finally:
        over.set()
        killer.join()
    whole = start(name, config, tmp_path / "whole")
    for folder in folders:
        assert_same(folder, whole)
    assert len(told.lines) >= 0.5 * kills  # others were idle, or starting


def finish(name, config, out, nodes, told):
    """Run an experiment, and resume it as often as a job was killed too often."""
    try:
        return start(name, config, out, nodes, told, keep_every=0.1)
    except ChildProcessError:
        while True:
            try:
                lab = wing.QuickLab(out, wing.CPU, keep_every=0.1)
                return on(nodes, plans.resumed_plan(name, "latest", lab, 2), told)
            except ChildProcessError:
                continue


def test_a_signal_stops_a_run_on_a_cluster_within_seconds(tmp_path, nodes):
    given = ["--walks", "2", "--steps", "300", "--pause", "0.1", "--device", "cpu", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "toy.wander", "wander", *given, "--runner", "ray", "--address", nodes.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, end = tmp_path / "out", time.monotonic() + 120
        while len(list(out.glob("wander/*/rows.jsonl"))) == 0 or len(workers(nodes)) < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
        while RunFolder.open(find_run(out, "latest", "wander")).path.joinpath("rows.jsonl").read_text().count("\n") < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
        process.terminate()
        begin = time.monotonic()
        said = process.communicate(timeout=60)[1]
    assert time.monotonic() - begin < 10
    assert process.returncode == 75
    assert said.startswith("stopped by SIGTERM: what is done is kept")
    folder = RunFolder.open(find_run(out, "latest", "wander"))
    assert all(folder.load_unfinished(f"walk={walk}") is not None for walk in (0, 1))
    resumed = on(None, plans.resumed_plan("wander", "latest", wing.QuickLab(out, wing.CPU)))
    assert_same(resumed, start("wander", wander.Config(walks=2, steps=300, pause=0.001), tmp_path / "whole"))


def test_a_job_costs_little_where_a_worker_is_warm(tmp_path, nodes):
    seconds = []
    for walks in (2, 22):
        stamps = []
        told = wing.Recorder(lambda *_, stamps=stamps: stamps.append(time.monotonic()))
        start("wander", wander.Config(walks=walks, steps=1), tmp_path / str(walks), nodes, told, most=1)
        seconds.append((stamps[-1] - stamps[0]) / (walks - 1))
    assert seconds[1] < 0.5


def test_an_address_without_a_cluster_is_one_line_soon(tmp_path):
    begin = time.monotonic()
    given = ["wander", "--runner", "ray", "--address", "127.0.0.1:1", "--out", str(tmp_path)]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "toy.wander", *given]
    found = subprocess.run(command, cwd=Path(__file__).parent, env=path, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: expected a Ray cluster at --address 127.0.0.1:1, got none")
    assert found.stderr.count("\n") == 1
    assert time.monotonic() - begin < 30
