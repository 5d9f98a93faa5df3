"""The same command once more goes on with the run that it left, or says why not."""

import re
from dataclasses import replace

import pytest
from coin_runs import interrupted, only_run

from amortized_bayes import experiments, results
from amortized_bayes.experiments import tune
from amortized_bayes.experiments.guide_jobs import GuideJobs
from amortized_bayes.guides import registry
from amortized_bayes.results import RunFolder, list_runs


@pytest.fixture(autouse=True)
def _one_line_more(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "coins", "toy.coins")


CODE = {"commit": "a" * 40, "dirty": False}


@pytest.fixture
def commit(monkeypatch):
    """Have the code be that of some commit."""
    plain = results.environment

    def become(**git):
        monkeypatch.setattr(results, "environment", lambda: plain() | {"git": CODE | git})

    become()
    return become


@pytest.mark.slow
def test_the_same_command_again_goes_on(command, tmp_path, monkeypatch, commit):
    interrupted(command, monkeypatch, after=1)
    folder, line = only_run(tmp_path), "which has the same settings and is unfinished (--fresh: a new run)"
    assert f"resuming {folder.path}, {line}" in command("coins", "--coins", 0.1, 0.2, 0.3, "--dry-run").out
    again = command("coins", "--coins", 0.1, 0.2, 0.3)
    assert again.code == 0, again.err
    assert again.out.count(line) == 1
    assert only_run(tmp_path).finished
    assert "resuming" not in command("coins", "--coins", 0.1, 0.2, 0.3).out  # which is finished
    assert len(list_runs(tmp_path)) == 2


@pytest.mark.parametrize(
    ("flags", "git", "line"),
    [
        (("--fresh",), {}, ""),
        (("--seed", 1), {}, ""),
        (
            (),
            {"commit": "b" * 40},
            "is unfinished, but code of another commit; `coins --resume .*` resumes it",
        ),
        ((), {"dirty": True}, "is unfinished, but code with changes that no commit has;"),
    ],
)
def test_another_command_starts_anew(command, tmp_path, monkeypatch, commit, flags, git, line):
    interrupted(command, monkeypatch, after=1)
    commit(**git)
    other = command("coins", "--coins", 0.1, 0.2, 0.3, *flags)
    assert other.code == 0, other.err
    assert [info.status for info in list_runs(tmp_path)] == ["unfinished", "finished"]
    assert bool(re.search(f"a new run: .* has the same settings.*{line}", other.out)) == bool(line)


@pytest.mark.slow
def test_the_same_command_elsewhere_is_refused(command, tmp_path, monkeypatch, commit):
    interrupted(command, monkeypatch, after=1)
    same = results.environment
    monkeypatch.setattr(results, "environment", lambda: same() | {"processor": "another"})
    given = ("coins", "--coins", 0.1, 0.2, 0.3)
    refused = command(*given)
    assert refused.code == 2
    assert re.search("processor .* -> another; --accept-changes resumes .*; --fresh starts a new run$", refused.err)
    assert command(*given, "--accept-changes").code == 0
    assert "resumed after changes" in "".join(only_run(tmp_path).rows()["note"])


def test_a_run_that_another_process_holds_is_not_started_over(command, tmp_path, monkeypatch, commit):
    interrupted(command, monkeypatch, after=1)
    with only_run(tmp_path):
        refused = command("coins", "--coins", 0.1, 0.2, 0.3)
    assert refused.code == 2
    assert "is in use by process" in refused.err


# What another run found first -----------------------------------------------------------------------------------------

TUNED = (
    *("sweep", "--tune", "--dataset", "digits", "--guides", "constant", "--compile-step", "off", "--runner", "inline"),
    *("--hidden", 4, "--latent-dim", 2, "--epochs", 4, "--rungs", 2, "--batch-size", 50, "--num-train", 100),
    *("--num-test", 20, "--elbo-draws", 2, "--iwae-particles", 4, "--iwae-points", 10),
)


@pytest.mark.parametrize("killed_in", ["sweep", "between"])
@pytest.mark.slow
def test_what_was_tuned_is_not_tuned_again(command, tmp_path, monkeypatch, commit, killed_in):
    """Killed after its tuning, the same command goes on with the rates that won, in the run that it had begun."""

    def killed(*_):
        raise KeyboardInterrupt

    def runs(kind):
        return [RunFolder.open(info.path) for info in list_runs(tmp_path) if info.experiment == kind]

    monkeypatch.setattr(tune, "SHARED", (4e-3, 8e-3))
    constant = replace(registry.GUIDES["constant"], tuned_over=(4e-3, 8e-3))
    monkeypatch.setitem(registry.GUIDES, "constant", constant)
    with monkeypatch.context() as patch:
        patch.setattr(*((GuideJobs, "compare") if killed_in == "sweep" else (tune, "with_winners")), killed)
        assert command(*TUNED).code == 130
    (tuned,) = runs("tune")
    begun = [folder.rows() for folder in runs("sweep")]
    assert len(begun) == (killed_in == "sweep")
    again = command(*TUNED)
    assert again.code == 0, again.err
    assert f"tune: using {tuned.path}, which has the same settings and is finished" in again.out
    assert [folder.path for folder in runs("tune")] == [tuned.path]
    (swept,) = runs("sweep")
    trials = tuned.rows()
    best = trials.iloc[trials["value"].argmax()]
    assert (
        tuple(best[["shared_rate", "local_rate"]])
        == swept.config(experiments.experiment("sweep").Config).rates_constant
    )
    for rows in begun:
        assert swept.rows().head(len(rows)).equals(rows)
    assert "tune: using" in command(*TUNED, "--dry-run").out
    for other in ((*TUNED, "--fresh"), (*TUNED, "--depth", 2)):
        assert "tune: using" not in command(*other, "--dry-run").out
    commit(commit="b" * 40)
    assert "tune: using" not in command(*TUNED, "--dry-run").out  # other code may find other rates
