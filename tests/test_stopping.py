"""Runs that are asked to stop by a signal, and runs that are resumed in another setting."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wing
from test_faults import told
from toy import wander

from amortized_bayes import cli, experiments, stopping
from amortized_bayes.experiments import plans, running
from amortized_bayes.experiments.changes import differences
from amortized_bayes.results import RunFolder, list_runs

STEPS = 150
LONG = wander.Config(walks=2, steps=STEPS, pause=0.01)
GIVEN = ["wander", "--walks", "2", "--steps", str(STEPS), "--pause", "0.01", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_line_more(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "wander", "toy.wander")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same walks, which did not pause."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiments.EXPERIMENTS, "wander", "toy.wander")
        config = wander.Config(walks=2, steps=STEPS)
        return told(start(tmp_path_factory.mktemp("whole"), config))


def start(out, config):
    plan = plans.new_plan("wander", config, wing.QuickLab(out, wing.CPU), ["config"], {"threads": 1})
    return running.run(plan, wing.Recorder())


def resume(out, **options):
    return running.run(plans.resumed_plan("wander", "latest", wing.QuickLab(out, wing.CPU), **options), wing.Recorder())


def command(arguments, out, signals, when):
    """Run a command in a process of its own, and send it signals; give exit code, words, and seconds until then."""
    pid = os.fork()
    if not pid:
        try:
            descriptor = os.open(out.with_suffix(".err"), os.O_CREAT | os.O_WRONLY)
            os.dup2(descriptor, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            cli.main([*arguments, "--out", str(out)])
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        finally:
            os._exit(99)
    wait_for(when)
    begin = time.monotonic()
    for number in signals:
        os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, out.with_suffix(".err").read_text(), time.monotonic() - begin


def wait_for(what):
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def begun(out):
    return any(path.stat().st_size for path in out.glob("wander/*/rows.jsonl"))


def kept_steps(out):
    """Steps of the walk under way that were kept."""
    (info,) = list_runs(out)
    run = RunFolder.open(info.path)
    (job,) = {"walk=0", "walk=1"} - run.done().keys() if run.done() else ["walk=0"]
    found = run.load_unfinished(job)
    assert found is not None
    return json.loads(found[1]["loops"])["walk#0"][0][0]


@pytest.mark.parametrize(
    "signals",
    [pytest.param([signal.SIGTERM], marks=pytest.mark.slow), [signal.SIGUSR1, signal.SIGTERM]],
    ids=["TERM", "USR1, TERM"],
)
@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_keeps_its_state_and_says_so(tmp_path, whole, signals):
    out = tmp_path / "out"
    code, said, seconds = command(GIVEN, out, signals, lambda: begun(out))
    assert code == stopping.EXIT_CODE == 75
    name = signal.Signals(signals[0]).name
    assert said == f"stopped by {name}: what is done is kept, `wander --resume latest --out {out}` resumes the run\n"
    assert seconds < 5
    assert kept_steps(out) > 0
    found = told(resume(out))
    assert found[0] == whole[0]
    assert found[1] == whole[1]


def test_a_job_that_comes_to_no_checkpoint_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "GRACE", 0.3)
    out = tmp_path / "out"
    given = ["wander", "--pause", "30", "--device", "cpu"]
    code, said, seconds = command(given, out, [signal.SIGTERM], lambda: begun(out))
    assert code == 75
    assert said.startswith("stopped by SIGTERM")
    assert 0.2 < seconds < 5


def test_an_appeal_that_is_lost_in_foreign_code_comes_again(monkeypatch):
    """What a finalizer raises is ignored, so the first alarm ends there."""
    monkeypatch.setattr(stopping, "GRACE", 0.2)

    class Swallows:
        def __del__(self):
            time.sleep(0.5)

    pid = os.fork()
    if not pid:
        sys.unraisablehook = lambda _: None
        try:
            with stopping.heeding(), stopping.patience():
                os.kill(os.getpid(), signal.SIGTERM)
                Swallows()
                time.sleep(30)
        except stopping.Stopped:
            os._exit(75)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75


def test_a_command_that_has_nothing_to_keep_leaves_at_once(tmp_path, monkeypatch):
    out, sign = tmp_path / "out", tmp_path / "sign"

    def loading(*_):
        sign.touch()
        time.sleep(30)

    monkeypatch.setattr(wander, "jobs", loading)
    code, said, seconds = command(GIVEN, out, [signal.SIGTERM], sign.exists)
    assert (code, said) == (75, "stopped by SIGTERM\n")
    assert seconds < 2


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the program", "its group"])
def test_processes_are_asked_too(tmp_path, whole, whom):
    out = tmp_path / "out"
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    kept = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    given = [sys.executable, "-m", "toy.wander", *GIVEN, "--jobs", "2", "--out", str(out)]
    with subprocess.Popen(given, cwd=Path(__file__).parent, env=path, **kept) as process:
        wait_for(lambda: sum(len(p.read_text().splitlines()) for p in out.glob("wander/*/rows.jsonl")) == 2)
        begin = time.monotonic()
        (os.kill if whom == "the program" else os.killpg)(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 75
    assert len(said.splitlines()) == 1
    assert time.monotonic() - begin < 10
    (info,) = list_runs(out)
    assert len(list(info.path.glob("checkpoints/*.unfinished.safetensors"))) == 2
    found = told(resume(out))
    assert found[:2] == whole[:2]


# Another setting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"packages": {"torch": "2.12.0"}}, {"packages": {"torch": "2.13.0"}}, ["torch 2.12.0 -> 2.13.0"]),
        ({"git": {"commit": "a" * 40}}, {"git": {"commit": "b" * 40}}, [f"commit {'a' * 10} -> {'b' * 10}"]),
        ({"data": {"x": {"f": "1" * 64}}}, {"data": {"x": {}}}, [f"x/f {'1' * 10} -> none"]),
        (
            {"device": "cpu", "processor": "A"},
            {"device": "H", "processor": "B"},
            ["processor A -> B", "device cpu -> H"],
        ),
        ({"python": "3.11.2", "threads": 2}, {"python": "3.11.2", "threads": 4}, []),
        ({"packages": None, "git": None}, {"packages": {"torch": "2"}, "git": {"commit": "b"}}, []),
    ],
)
def test_differences_are_told(before, now, words):
    assert differences(before, now) == words


@pytest.fixture
def half_done(tmp_path):
    """A run whose first walk is done and whose second is half done."""
    out = tmp_path / "out"
    plan = plans.new_plan(
        *("wander", wander.Config(steps=10), wing.QuickLab(out, wing.CPU, keep_every=0.0), ["config"]),
        {"threads": 1, "packages": {"torch": "1.0"}},
    )
    with pytest.raises(KeyboardInterrupt):
        running.run(plan, wing.Recorder(wing.stop_at("walk", 6, "job 2/2")))
    return out


def test_a_run_in_another_setting_is_refused_or_goes_on_and_is_marked(half_done):
    now = {"packages": {"torch": "2.0"}}
    with pytest.raises(ValueError, match=r"was started in, got torch 1.0 -> 2.0; --accept-changes resumes it"):
        resume(half_done, now=now)
    folder = resume(half_done, now=now, accept=True)
    notes = {row["walk"]: row["note"] for row in folder.rows().to_dict("records")}
    assert notes == {0: "", 1: "resumed after changes: torch 1.0 -> 2.0"}
    assert folder.verify() == []


def test_a_run_in_the_same_setting_is_not_marked(half_done):
    folder = resume(half_done, now={"packages": {"torch": "1.0"}})
    assert set(folder.rows()["note"]) == {""}
