"""Run folders: made once, opened, locked, listed and found, with what they were run on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import ROOT, create, fill_disk, row

from amortized_bayes.results import RunFolder, environment, find_run, list_runs
from amortized_bayes.results.versions import _git_state


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path)


# Folders


def test_create_makes_a_folder_that_opens(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "deep" / "out", "widths", {"seed": 0, "widths": (1, 2)}, {"device": "cpu"})
    assert run.path.parent == tmp_path / "deep" / "out" / "widths"
    assert (run.path / "config.yaml").read_text() == "seed: 0\nwidths:\n- 1\n- 2\n"
    content = json.loads((run.path / "environment.json").read_text())
    assert content["device"] == "cpu"
    assert content["started"].endswith("+00:00")
    opened = RunFolder.open(run.path)
    assert (opened.experiment, opened.name, opened.finished) == ("widths", run.name, False)
    assert opened.verify() == []


def test_default_names_are_unique(tmp_path: Path) -> None:
    names = [create(tmp_path, name=None).name for _ in range(4)]
    assert len(set(names)) == 4


def test_a_run_is_never_created_over_another(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already exists: resume it"):
        create(tmp_path)
    with run:
        run.finish()
    with pytest.raises(ValueError, match="is a finished run: expected another name"):
        create(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "latest", "a b", "-x", "é", "a\n", "x" * 151, "a.previous", 3])
def test_bad_names_are_refused(tmp_path: Path, name: Any) -> None:
    for arguments in ({"name": name}, {"experiment": name}):
        with pytest.raises(ValueError, match="expected a name for the"):
            create(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_yaml_or_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config: expected texts, numbers, lists and mappings"):
        RunFolder.create(tmp_path, "widths", {"a": Path("b")}, {})
    for value in (Path("b"), float("nan")):
        with pytest.raises(ValueError, match="environment: expected what JSON can hold"):
            RunFolder.create(tmp_path, "widths", {}, {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*out/widths/run: (Not a directory|File exists)"):
        create(tmp_path / "out")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_out_that_is_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)  # the tests may run as root, whom no mode of a folder stops
    with pytest.raises(ValueError, match=f"cannot write to .*run: {os.strerror(code)}"):
        create(tmp_path)


def test_full_disk_leaves_no_half_made_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fill_disk(monkeypatch)
    with pytest.raises(ValueError, match=r"cannot write to .*config.yaml: No space left on device"):
        create(tmp_path)
    assert list((tmp_path / "widths").iterdir()) == []


@pytest.mark.parametrize("missing", ["config.yaml", "environment.json", "rows.jsonl", "done.jsonl"])
def test_open_says_what_is_missing(run: RunFolder, missing: str) -> None:
    (run.path / missing).unlink()
    with pytest.raises(ValueError, match=f"no {missing} in it"):
        RunFolder.open(run.path)
    assert f"{missing}: missing" in run.verify()


def test_open_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        RunFolder.open(tmp_path / "none")


# Locks


def test_writing_needs_the_lock(run: RunFolder) -> None:
    actions = [
        lambda: run.append(row()),
        lambda: run.mark_done("a"),
        lambda: run.save_file("a", b""),
        lambda: run.drop_unfinished_rows(),
        lambda: run.forget(["a"]),
        lambda: run.save_tensors("a", {}),
        lambda: run.save_arrays("a"),
        run.finish,
    ]
    for action in actions:
        with pytest.raises(ValueError, match="is not locked for writing"):
            action()
    with run:
        run.finish()
        for action in actions:
            with pytest.raises(ValueError, match="is finished and cannot be changed"):
                action()
    with RunFolder.open(run.path) as again, pytest.raises(ValueError, match="is finished"):
        again.append(row())
    assert run.verify() == []


def test_one_process_writes(run: RunFolder) -> None:
    other = RunFolder.open(run.path)
    with run:
        with pytest.raises(ValueError, match=f"run is in use by process {os.getpid()}:"), other:
            pass
        run.append(row())  # the other's failure took nothing away
        assert len(other.rows()) == 1
    with other:
        other.append(row())
    assert len(run.rows()) == 2


# Many runs


def test_list_and_find(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert list_runs(out) == []
    with pytest.raises(ValueError, match=r"expected a run under .*out, got none"):
        find_run(out, "latest")
    with pytest.raises(ValueError, match="got 'first': no such run; there are 0 runs"):
        find_run(out, "first")
    first, second = create(out, "first"), create(out, "second", "gaps")
    third = create(out, "first", "gaps")
    with first:
        first.mark_done("a")
        first.mark_done("b", "failed")
        first.finish()
    (out / "gaps" / "half-made").mkdir()
    shutil.copytree(second.path, out / "gaps" / "broken")
    (out / "gaps" / "broken" / "environment.json").write_text("{")
    *infos, damaged = sorted(list_runs(out), key=lambda info: info.status == "damaged")
    assert damaged[:5] == (out / "gaps" / "broken", "gaps", "broken", "damaged", 0)
    assert damaged.damage.endswith("environment.json: changed since it was written")
    assert [info[:5] for info in infos] == [
        (first.path, "widths", "first", "finished", 2),
        (second.path, "gaps", "second", "unfinished", 0),
        (third.path, "gaps", "first", "unfinished", 0),
    ]
    assert find_run(out, "latest") == third.path
    os.utime(damaged.path)  # now it may be the latest
    with pytest.raises(ValueError, match=r"the latest run is damaged: .*broken/environment.json: changed"):
        find_run(out, "latest")
    assert find_run(out, "second") == second.path
    assert find_run(out, "gaps/first") == third.path
    assert find_run(out, str(second.path)) == second.path
    with pytest.raises(ValueError, match="expected one run, got 'first' for several: widths/first, gaps/first"):
        find_run(out, "first")
    with pytest.raises(ValueError, match="no such run; did you mean 'second'"):
        find_run(out, "secnd")


def test_a_run_of_failures_alone_is_a_failed_run(tmp_path: Path) -> None:
    for name, marks, status in (("all", ["failed", "failed"], "failed"), ("none", [], "finished")):
        run = create(tmp_path, name)
        with run:
            for number, mark in enumerate(marks):
                run.mark_done(f"{number}", mark)
            unfinished = next(info for info in list_runs(tmp_path) if info.name == name)
            assert unfinished.status == "unfinished"
            run.finish()
        info = next(info for info in list_runs(tmp_path) if info.name == name)
        assert (info.status, info.num_jobs) == (status, len(marks))


def test_latest_is_the_last_of_a_kind_and_status(tmp_path: Path) -> None:
    def made(name: str, experiment: str, *marks: str, finish: bool = True, **about: str) -> Path:
        run = RunFolder.create(tmp_path, experiment, {}, about, name)
        with run:
            for number, mark in enumerate(marks):
                run.mark_done(f"{number}", mark)
            if finish:
                run.finish()
        return run.path

    good = made("good", "train", "ok")
    failed = made("failed", "train", "failed")
    cut = made("cut", "train", finish=False)
    sweep = made("sweep", "sweep", "ok")
    part = made("part", "train", "ok", part_of="sweep/sweep")
    assert find_run(tmp_path, "latest") == sweep  # a part of another run is not meant
    assert find_run(tmp_path, "latest", "train") == cut
    assert find_run(tmp_path, "latest", "train", ("finished",)) == good
    assert find_run(tmp_path, "latest", "sweep") == sweep
    assert find_run(tmp_path, "latest", "train", ("failed",)) == failed
    assert find_run(tmp_path, "latest", "train", ("unfinished",)) == cut
    shutil.rmtree(good)
    assert find_run(tmp_path, "latest", "train", ("finished",)) == part  # unless there is no other of its kind
    with pytest.raises(ValueError, match=r"expected an unfinished run of sweep under .*, got none"):
        find_run(tmp_path, "latest", "sweep", ("unfinished",))
    with pytest.raises(ValueError, match="expected a finished or failed run of gaps under"):
        find_run(tmp_path, "latest", "gaps", ("finished", "failed"))


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path, "mine", "gaps")
    for text in ("mine", "gaps/mine", str(run.path)):
        assert find_run(tmp_path, text, "gaps") == run.path
        with pytest.raises(ValueError, match=r"expected a run of sweep, got .*mine, a run of gaps"):
            find_run(tmp_path, text, "sweep")


# Environment


def test_environment_is_plain_and_names_no_place() -> None:
    content = environment(threads=2)
    text = json.dumps(content, allow_nan=False)
    assert content["threads"] == 2
    assert content["packages"]["numpy"] == np.__version__
    assert content["python"] == sys.version.split()[0]
    assert str(ROOT) not in text
    assert os.uname().nodename not in text


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, env=variables)


def test_commit_is_that_of_the_source_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "package"
    package.mkdir()
    assert _git_state(package) is None
    (package / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook of another tree
    state = _git_state(package)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (package / "b.py").write_text("2")
    assert _git_state(package) == {**state, "dirty": True}
    (package / "deeper").mkdir()
    assert _git_state(package / "deeper") is None  # installed somewhere inside another project
    monkeypatch.setenv("PATH", "")
    assert _git_state(package) is None


@pytest.mark.parametrize("module", ["results", "results.durable", "configuration"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, amortized_bayes.{module}; print(*{{'torch', 'pandas', 'numpy', 'pyro'}} & set(sys.modules))"
    process_environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], env=process_environment, capture_output=True, check=True)
    assert output.stdout.split() == []
