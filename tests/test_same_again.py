"""The same command once more goes on with the run that it left, or says why not."""

import re

import pytest
from coin_runs import interrupted, only_run

from amortized_bayes import experiments, results
from amortized_bayes.results import list_runs


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


def test_the_same_command_again_goes_on(command, tmp_path, monkeypatch, commit):
    interrupted(command, monkeypatch, after=1)
    folder, line = only_run(tmp_path), "which has the same settings and is unfinished (--fresh: a new run)"
    assert f"going on with {folder.path}, {line}" in command("coins", "--coins", 0.1, 0.2, 0.3, "--dry-run").out
    again = command("coins", "--coins", 0.1, 0.2, 0.3)
    assert again.code == 0, again.err
    assert again.out.count(line) == 1
    assert only_run(tmp_path).finished
    assert "going on" not in command("coins", "--coins", 0.1, 0.2, 0.3).out  # which is finished
    assert len(list_runs(tmp_path)) == 2


@pytest.mark.parametrize(
    ("flags", "git", "line"),
    [
        (("--fresh",), {}, ""),
        (("--seed", 1), {}, ""),
        (
            (),
            {"commit": "b" * 40},
            "is unfinished, but code of another commit; `coins --resume .*` goes on with it",
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
