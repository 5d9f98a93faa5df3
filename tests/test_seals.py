"""A run is what it was kept as, or refused in one line before anything is printed or drawn; nothing launders damage."""

import json
import os
import random
import shutil

import made_runs
import numpy as np
import pytest
from run_folders import create, reseal, row
from wing import files

from amortized_bayes.results import RunFolder, durable, find_run, list_runs
from amortized_bayes.results.rows import mark
from amortized_bayes.results.seals import finish_record

CHANGED = "changed since it was written"
FLIPS, CUTS = 4, 1
"""Of each file of a run, here; test_fuzz.py does many more."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of ``gaps``."""
    return made_runs.gaps().save(tmp_path_factory.mktemp("made") / "results").path


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, to be damaged."""
    out = tmp_path / "results"
    shutil.copytree(made.parents[1], out)
    return find_run(out, "latest")


def half_done(out):
    """An unfinished run: one job is done, another on its way."""
    run = create(out)
    with run:
        run.append(row(step=1), "a")
        run.save_arrays("a", "a", x=np.arange(5.0))
        run.save_tensors("a", {"x": np.ones(3)}, job="a")
        run.mark_done("a")
        run.append(row(step=2), "b")
        run.save_tensors("b", {"x": np.ones(3)}, job="b")
        run.save_tensors("b", {"x": np.zeros(3)}, job="b")
    return run


def flipped(data, place, bit):
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


@pytest.mark.parametrize("command", ["table", "plot", "claims"])
@pytest.mark.slow_cases("plot", "table")
def test_no_damage_to_any_file_of_a_finished_run_is_printed_or_drawn(run, call, command, monkeypatch):
    monkeypatch.setattr("amortized_bayes.presenting.figures._figure", lambda *_: None)  # drawing is not the matter
    arguments = [command, "--out", run.parents[1]] if command == "claims" else [command, run]
    good, generator = call(*arguments), random.Random(0)
    assert good.code == 0, good.err
    for path in sorted(file for file in run.rglob("*") if file.is_file() and file.stat().st_size):
        data = path.read_bytes()
        damages = [flipped(data, generator.randrange(len(data)), generator.randrange(8)) for _ in range(FLIPS)]
        damages += [data[: generator.randrange(len(data))] for _ in range(CUTS)]
        for damaged in damages:
            path.write_bytes(damaged)
            found = call(*arguments)
            assert found == good or (found.code, found.out, found.err.count("\n")) == (2, "", 1), (path, found)
            assert path.name in found.err or found == good
            assert call("verify", run).code == 1
        path.write_bytes(data)
    assert call(*arguments) == good


def test_verify_says_what_it_compared(run, call):
    (run / "gaps.png").write_bytes(b"drawn")
    found = call("verify", run)
    assert found.code == 0, found.out
    assert f"{run} is intact: 8 files with their recorded checksums" in found.out
    assert "not part of the results, so not compared: gaps.png" in found.out
    (run / "config.yaml").write_text("seed: 1\n")
    (run / "arrays" / "more.npz").write_bytes(b"")
    found = call("verify", run.name, "--out", run.parents[1])
    assert found.code == 1
    assert f"config.yaml: {CHANGED}\n" in found.out
    assert "arrays/more.npz: not there when the run was finished\n" in found.out
    assert "2 problems" in found.out


def test_a_finished_run_may_lose_its_large_files_if_that_is_said(run, call):
    before = finish_record(run)[0]
    shutil.rmtree(run / "arrays")
    assert "missing" in call("table", run).err
    said = call("verify", run, "--repair")
    assert said.code == 0, said.out
    assert "split=train.npz: missing, and no longer expected" in said.out
    assert call("table", run).code == 0
    assert finish_record(run)[0] == before
    (run / "rows.jsonl").unlink()
    assert call("verify", run, "--repair").code == 1  # but not its rows


def test_every_bit_of_an_unfinished_run_counts(tmp_path):
    run = half_done(tmp_path)
    before = run.lines()
    for file in (
        "STARTED",
        "config.yaml",
        "environment.json",
        "done.jsonl",
        "arrays/a.npz",
        "checkpoints/a.safetensors",
    ):
        data = (run.path / file).read_bytes()
        for place in range(0, len(data) - 1, 1 if file == "done.jsonl" else 7):  # a line without an end is torn
            (run.path / file).write_bytes(flipped(data, place, place % 8))
            with pytest.raises(ValueError, match=r"is damaged: [^\n]+\Z"):
                run.check()
        (run.path / file).write_bytes(data)
    data = (run.path / "rows.jsonl").read_bytes()
    first = data.index(b"\n")
    for place in range(len(data)):
        (run.path / "rows.jsonl").write_bytes(flipped(data, place, place % 8))
        if place <= first:
            with pytest.raises(ValueError, match=r"rows.jsonl"):
                run.lines()
        else:  # of the job on its way
            try:
                assert run.lines() == before
            except ValueError as error:
                assert "rows.jsonl line 2: " in str(error)  # noqa: PT017
    (run.path / "rows.jsonl").write_bytes(data)
    run.check()


@pytest.mark.parametrize("file", ["config.yaml", "environment.json", "rows.jsonl", "done.jsonl", "arrays/a.npz"])
def test_what_changes_while_a_run_is_written_is_not_certified(tmp_path, file):
    run = create(tmp_path)
    with run:
        run.append(row(step=1), "a")
        run.save_arrays("a", "a", x=np.arange(5.0))
        run.mark_done("a")
        data = (run.path / file).read_bytes()
        (run.path / file).write_bytes(data.replace(b"1", b"2", 1) if b"1" in data else data.replace(b"w", b"v", 1))
        with pytest.raises(ValueError, match=r"changed since it was written|row"):
            run.finish()
    assert not run.finished
    with pytest.raises(ValueError, match="is damaged: "), RunFolder.open(run.path):
        pass


def test_a_lost_mark_is_not_finished_without_its_job(tmp_path):
    run = half_done(tmp_path)
    with RunFolder.open(run.path) as again:
        again.drop_unfinished_rows()
        again.mark_done("b")
        (run.path / "done.jsonl").write_bytes((run.path / "done.jsonl").read_bytes().split(b"\n")[0] + b"\n")
        with pytest.raises(ValueError, match=r"cannot be finished: marks are missing from done.jsonl"):
            again.finish()


def test_rows_from_before_an_interruption_count_if_they_are_kept(tmp_path):
    run = half_done(tmp_path)
    with RunFolder.open(run.path) as again:
        again.append(row(step=3), "b")
        again.mark_done("b")
        again.finish()
    assert run.rows()["step"].tolist() == [1, 2, 3]
    assert run.verify() == []


@pytest.mark.parametrize("place", ["/", "empty", "empty/none"])
def test_what_is_no_run_is_not_verified(tmp_path, monkeypatch, refused, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for command in ("verify", "table"):
        assert "expected a run" in refused(command, place)


def test_a_changed_job_is_taken_back_and_no_other(tmp_path):
    run = half_done(tmp_path)
    with RunFolder.open(run.path) as again:
        again.mark_done("b")
    data = (run.path / "rows.jsonl").read_bytes()
    (run.path / "rows.jsonl").write_bytes(data.replace(b'"step": 2', b'"step": 3'))
    (run.path / "done.jsonl").write_bytes((run.path / "done.jsonl").read_bytes() + b"nonsense\n")
    with pytest.raises(ValueError, match=r"is damaged: done.jsonl line 3"), RunFolder.open(run.path):
        pass
    assert [line.split(":")[0] for line in run.repair()] == ["done.jsonl line 3", "b"]
    with RunFolder.open(run.path) as again:
        assert again.done() == {"a": "ok"}
        assert again.drop_unfinished_rows() == 1
    (run.path / "config.yaml").write_text("seed: 3\n")
    before = files(run.path)
    with pytest.raises(ValueError, match=r"config.yaml: changed"):
        run.repair()  # no job gives settings again
    assert files(run.path) == before


def test_a_checkpoint_of_a_job_on_its_way_has_a_generation_before(tmp_path):
    run = half_done(tmp_path)
    for name in ("a", "b"):
        (run.path / "checkpoints" / f"{name}.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="using the previous generation"):
        assert run.load_tensors("b")["x"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=CHANGED):
        run.load_tensors("a")


def test_runs_of_the_format_before_are_read(run):
    (run / "STARTED").unlink()
    lines = [json.loads(line) for line in (run / "done.jsonl").read_text().splitlines()]
    old = [{name: line[name] for name in ("job", "status", "rows", "files")} for line in lines]
    (run / "done.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in old))
    reseal(run)
    content = json.loads((run / "FINISHED").read_bytes())
    del content["format"], content["seal"]
    (run / "FINISHED").write_text(json.dumps(content))
    folder = RunFolder.open(run)
    assert folder.verify() == []
    assert len(folder.rows()) > 50
    (run / "FINISHED").unlink()
    with pytest.raises(ValueError, match=r"no STARTED in it, since .* an older version started it"):
        RunFolder.open(run)


@pytest.mark.parametrize("seal", ["STARTED", "FINISHED"])
def test_a_run_of_a_newer_format_is_refused(tmp_path, made, seal):
    path = half_done(tmp_path).path if seal == "STARTED" else shutil.copytree(made, tmp_path / "gaps" / "new")
    content = json.loads((path / seal).read_bytes())
    (path / seal).write_text(json.dumps(content | {"format": 3}))
    with pytest.raises(ValueError, match=rf"{seal}: expected format 2 or older, got 3: a newer version wrote it"):
        RunFolder.open(path).rows()


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "", "a\0b"])
def test_a_seal_names_files_of_its_run_only(run, name):
    reseal(run, **{name: durable.sha256(b"")})
    assert RunFolder(run).verify()[0] == "FINISHED: cannot be read"


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "", "a\0b"])
def test_a_mark_names_files_of_its_run_only(tmp_path, name):
    run = half_done(tmp_path)
    line = json.dumps(mark("c", "ok", 0, {name: durable.sha256(b"")}, durable.sha256(b"")))
    with (run.path / "done.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert run.verify() == ["done.jsonl: expected files of the run in the mark of c"]


ABOUT = {
    "threads": [0, -1, 10**9, "2", True, 1.5],
    "data": [[], None, {"mnist": []}, {"mnist": {"a": 3}}],
    "git": ["abc", {"commit": 3}],
    "preset": [3, None],
    "started": ["today", 5, None],
    "packages": [[]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ABOUT.items() for value in values])
def test_an_environment_that_cannot_be_is_one_line(tmp_path, key, value):
    run = RunFolder.create(tmp_path, "widths", {}, {key: value})
    with pytest.raises(ValueError, match=rf"environment.json: expected .* as {key}, got"):
        run.environment()
    assert list_runs(tmp_path)[0].status == "damaged"


@pytest.mark.parametrize("content", ["[1]", "3", "", "{", "[" * 100_000])
def test_an_environment_that_is_no_mapping_is_one_line(run, call, content):
    (run / "environment.json").write_text(content)
    reseal(run)
    for command in (("table", run), ("table", "latest", "--out", run.parents[1])):
        found = call(*command)
        assert (found.code, found.err.count("\n")) == (2, 1), found
        assert "environment.json cannot be read" in found.err
    assert "damaged" in call("list", "--out", run.parents[1]).out


def test_a_damaged_run_is_not_passed_over(run, call):
    """Else ``latest`` would be another run, and the claims those of fewer."""
    out = run.parents[1]
    made_runs.gaps().save(out)
    (run / "config.yaml").write_text("seed: 1\n")
    assert "config.yaml: changed since it was written" in call("claims", "--out", out).err
    (run / "config.yaml").unlink()
    assert "no config.yaml in it" in call("claims", "--out", out).err
    assert "no config.yaml in it" in call("table", run).err
    os.utime(run)
    assert "the latest run is damaged" in call("table", "--out", out).err
    assert f"gaps/{run.name}  damaged  " in call("list", "--out", out).out
