"""Rows of a run: what is written is read back, a crash doubles and loses none, the last of a job is its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import ROOT, create, fill_disk, row

from amortized_bayes.results import RunFolder, durable, summarise
from amortized_bayes.types import ROW_FIELDS


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path)


# Rows


def test_rows_come_back_with_their_types(run: RunFolder) -> None:
    rows = [
        row(note='β "quoted"\nline'),
        row(k=None, guide="factorized", standard_error=0.1, error_over="points"),
        row(value=None, metric="failure", status="failed"),
        row(value=np.float32(1.5), seed=np.int64(3), step=np.int32(2), k=np.uint8(1)),
    ]
    with run:
        for written in rows:
            run.append(written)
    frame = run.rows()
    assert list(frame.columns) == ["experiment", "dataset", "guide", "k", "seed", *ROW_FIELDS[2:]]
    dtypes = {"k": "Int64", "seed": "Int64", "guide": "object", "step": "int64", "value": "float64"}
    assert {name: str(frame[name].dtype) for name in dtypes} == dtypes
    assert frame["k"].tolist() == [4, pd.NA, 4, 1]
    assert frame["note"][0] == rows[0].note
    assert frame["value"].tolist()[:2] == [-1.25, -1.25]
    assert np.isnan(frame["value"][2])
    assert frame["error_over"].isna().tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("values", "dtype", "read"),
    [
        ([True, None, False], "boolean", [True, pd.NA, False]),
        ([1, None, 3], "Int64", [1, pd.NA, 3]),
        ([np.int64(7), None, 2**62], "Int64", [7, pd.NA, 2**62]),
        ([0.5, None, 2.0], "float64", [0.5, None, 2.0]),
        ([1, None, 0.5], "float64", [1.0, None, 0.5]),
        (["a", None, "b"], "object", ["a", None, "b"]),
        (["a", None, 2], "object", ["a", None, "2"]),
    ],
)
def test_factors_are_columns_of_their_own_types(run: RunFolder, values: list, dtype: str, read: list) -> None:
    with run:
        for value in values:
            run.append(row(mine=value))
    column = run.rows()["mine"]
    assert str(column.dtype) == dtype
    found = column.tolist()
    for value, expected in zip(found, read, strict=True):
        assert value is expected or value == expected or (expected is None and pd.isna(value))


def test_no_rows_have_the_columns_of_every_row(run: RunFolder) -> None:
    frame = run.rows()
    assert list(frame.columns) == ["experiment", *ROW_FIELDS[2:]]
    assert len(frame) == 0
    assert len(summarise(frame)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"value": float("nan")},
            r"expected a finite number \(a failure is a row of status 'failed'\) as value, got nan",
        ),
        ({"standard_error": float("inf")}, "as standard_error, got inf"),
        ({"seconds": None}, "as seconds, got None"),
        ({"value": "1.0"}, "as value, got '1.0'"),
        ({"value": np.ones(2)}, "as value"),
        ({"step": 1.0}, "expected an integer of 64 bits as step, got 1.0"),
        ({"seed": 2**63}, "expected an integer of 64 bits as seed"),
        ({"spread": float("nan")}, "as spread, got nan"),
        ({"spread": (1, 2)}, "as spread"),
        ({"factors": {"k": None}}, "as k, got None"),
        ({"factors": {"value": 1}}, "expected factors named like columns that are free, got 'value'"),
        ({"factors": {"two words": 1}}, "expected factors named like columns that are free, got 'two words'"),
        ({"factors": {"Seed": 1}}, "expected factors named like columns that are free, got 'Seed'"),
        ({"metric": None}, "expected a text as metric, got None"),
        ({"status": "fine"}, "expected a status among ok, vacuous, failed, got 'fine'"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(run: RunFolder, changes: dict[str, Any], message: str) -> None:
    with run, pytest.raises(ValueError, match=message):
        run.append(row(**changes))
    assert (run.path / "rows.jsonl").read_bytes() == b""


def test_torch_scalars_are_numbers(run: RunFolder) -> None:
    torch = pytest.importorskip("torch")
    with run:
        run.append(row(value=torch.tensor(0.5), step=torch.tensor(3)))
        with pytest.raises(ValueError, match="as value"):
            run.append(row(value=torch.ones(2)))
    assert run.rows()["value"].tolist() == [0.5]


def test_one_write_a_row(monkeypatch: pytest.MonkeyPatch, run: RunFolder) -> None:
    write, written = os.write, []
    with run:
        monkeypatch.setattr(durable.os, "write", lambda fd, data: (written.append(bytes(data)), write(fd, data))[1])
        run.append(row())
        run.append(row(step=11))
    assert [data.count(b"\n") for data in written] == [1, 1]


def test_full_disk_while_appending(monkeypatch: pytest.MonkeyPatch, run: RunFolder) -> None:
    with run:
        run.append(row())
        with monkeypatch.context() as patch:
            fill_disk(patch)
            for action in (lambda: run.append(row()), lambda: run.mark_done("a"), run.finish):
                with pytest.raises(ValueError, match=r"cannot write to .*: No space left on device"):
                    action()
        assert run.done() == {}
        assert not run.finished
        run.append(row(step=11))
    assert run.rows()["step"].tolist() == [10, 11]


# Resuming


def test_torn_last_line_is_cut_off_and_said(run: RunFolder) -> None:
    with run:
        run.append(row())
    with (run.path / "rows.jsonl").open("ab") as file:
        file.write(b'{"experiment": "wid')
    (run.path / ".config.yaml.0123.tmp").write_text("left by a kill")
    assert len(run.rows()) == 1
    assert run.verify() == ["rows.jsonl: the last line is incomplete"]
    with RunFolder.open(run.path) as again:
        assert again.recovered == ["rows.jsonl: 19 bytes of an unfinished last line were cut off"]
        again.append(row(step=11))
    assert again.rows()["step"].tolist() == [10, 11]
    assert again.verify() == []
    assert not list(run.path.glob(".*.tmp"))


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"{torn", b"\xff\0", b"", b"[" * 100_000, b'{"job": NaN}'])
def test_a_bad_line_in_between_is_named(run: RunFolder, line: bytes) -> None:
    with run:
        run.append(row())
    data = (run.path / "rows.jsonl").read_bytes()
    (run.path / "rows.jsonl").write_bytes(data + line + b"\n" + data)
    with pytest.raises(ValueError, match=r"rows.jsonl line 2: "):
        run.rows()
    (problem,) = run.verify()
    assert problem.startswith("rows.jsonl line 2: ")


def test_a_row_with_a_value_of_the_wrong_type_is_a_bad_line(run: RunFolder) -> None:
    for value in ('"x"', "NaN"):
        line = json.dumps({**row()._asdict(), "job": ""}).replace("-1.25", value)
        (run.path / "rows.jsonl").write_text(f"{line}\n")
        assert run.verify()[0].startswith("rows.jsonl line 1: row: expected a finite number")


def test_rows_of_an_older_version_are_named_as_such(run: RunFolder) -> None:
    (run.path / "rows.jsonl").write_text('{"experiment": "sweep", "fit": "a"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl line 1: row: expected .*; it was written by an older version"):
        run.rows()


BAD_MARKS = [
    *('{"job": "a"}', '{"job": "a", "status": "ok"}', "3"),
    *('{"job": "a", "status": "well", "rows": 0, "files": {}}', '{"job": "", "status": "ok", "rows": 0, "files": {}}'),
]


@pytest.mark.parametrize("line", BAD_MARKS)
def test_a_bad_mark_is_named(run: RunFolder, line: str) -> None:
    (run.path / "done.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"done.jsonl line 1: expected the key of a job, ok or failed"):
        run.done()
    assert run.verify()[0].startswith("done.jsonl line 1: ")


def test_a_job_counts_when_it_is_done_and_is_not_doubled(run: RunFolder) -> None:
    with run:
        run.append(row(step=1), job="a")
        run.mark_done("a", "failed")
        run.mark_done("a", "ok")  # how a job ended is said once
        run.append(row(step=2), job="b")  # and here the machine goes off
        run.append(row(step=3))
        with pytest.raises(ValueError, match=r"job 'a' of .* is done already"):
            run.append(row(), job="a")
        with pytest.raises(ValueError, match="job 'b' has rows and is not marked done"):
            run.finish()
        for bad in (("",), ("c", "well")):
            with pytest.raises(ValueError, match="expected the key of a job"):
                run.mark_done(*bad)
    assert run.rows()["step"].tolist() == [1, 3]
    assert run.rows("a")["step"].tolist() == [1]
    assert run.rows("b")["step"].tolist() == [2]  # on its way
    with RunFolder.open(run.path) as again:
        assert again.done() == {"a": "failed"}
        assert again.drop_unfinished_rows() == 1
        assert again.drop_unfinished_rows() == 0
        again.append(row(step=4), job="b")
        again.mark_done("b")
        again.finish()
    assert run.done() == {"a": "failed", "b": "ok"}
    assert run.rows()["step"].tolist() == [1, 3, 4]
    assert (run.path / "done.jsonl").read_text().count("\n") == 2
    assert run.verify() == []


WORKER = """
import os, sys
from pathlib import Path
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row
with RunFolder.open(Path(sys.argv[1])) as run:
    run.drop_unfinished_rows()
    for job in range(int(sys.argv[2])):
        if f"job-{job}" in run.done():
            continue
        for step in range(20):
            run.append(Row("widths", {"seed": job}, step, 0.0, "elbo", 1.0), f"job-{job}")
            if (job, step) == (int(sys.argv[3]), 7):
                os._exit(9)
        run.mark_done(f"job-{job}")
        print(job, flush=True)
    run.finish()
"""


def work(run: RunFolder, die_in: int, kill_after: int | None = None) -> int:
    command = [sys.executable, "-c", WORKER, str(run.path), "12", str(die_in)]
    process_environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=process_environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == kill_after:
                process.kill()
        return process.wait(timeout=60)


@pytest.mark.slow
def test_killed_and_resumed_until_it_is_finished(run: RunFolder) -> None:
    assert work(run, die_in=2) == 9
    assert set(run.done()) == {"job-0", "job-1"}
    assert (run.path / "rows.jsonl").read_text().count("\n") == 48
    work(run, die_in=-1, kill_after=4)
    assert {f"job-{job}" for job in range(5)} <= set(run.done())
    assert work(run, die_in=-1) == 0
    frame = run.rows()
    assert len(frame) == (run.path / "rows.jsonl").read_text().count("\n") == 240
    assert not frame.duplicated(["seed", "step"]).any()
    assert run.verify() == []


# Summary


def test_summarise_takes_the_last_step_and_the_last_written(run: RunFolder) -> None:
    with run:
        for written in [
            row(step=20, value=2.0),
            row(step=10, value=1.0),
            row(step=20, value=3.0),
            row(step=5, value=4.0, k=None),
            row(step=6, value=5.0, k=None),
            row(step=1, value=6.0, metric="iwae"),
            row(step=1, value=7.0, seed=1),
        ]:
            run.append(written)
    frame = run.rows()
    frame.index = pd.Index([0] * len(frame))
    summary = summarise(frame)
    assert summary["value"].tolist() == [3.0, 5.0, 6.0, 7.0]
    assert list(summary.columns) == list(frame.columns)
    assert summary.index.tolist() == [0, 1, 2, 3]


def test_summarise_keeps_what_differs_in_any_factor(run: RunFolder) -> None:
    """A budget is a factor: the smaller ones are results as well."""
    with run:
        for budget in (10, 100):
            for label in (None, 3):
                run.append(row(metric="gap", budget=budget, label=label, step=0))
    summary = summarise(run.rows())
    assert summary["budget"].tolist() == [10, 10, 100, 100]


def test_rows_of_a_job_take_no_memory_for_those_of_others(run: RunFolder) -> None:
    """A job that reads another's, in a long run, would hold all rows of all jobs as objects."""
    note = "its name is in the note: " + '"job": "b"'
    with run:
        for number in range(3_000):
            run.append(row(step=number, note=note), "a")
        run.append(row(step=7), "b")
        run.mark_done("a")
        run.mark_done("b")
    tracemalloc.start()
    found = run.lines("b")
    peak = tracemalloc.get_traced_memory()[1]
    whole = run.lines()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert [line["step"] for line in found] == [7]
    assert found == [line for line in whole if line["job"] == "b"]
    size = (run.path / "rows.jsonl").stat().st_size
    assert peak < 2 * size < 0.5 * held, (peak, size, held)


def test_a_line_that_changes_its_job_is_noticed_by_both(run: RunFolder) -> None:
    with run:
        for job in ("a", "b"):
            run.append(row(), job)
            run.mark_done(job)
    path = run.path / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"job": "a"', b'"job": "b"'))
    for job in ("a", "b"):
        with pytest.raises(ValueError, match=f"rows of {job} changed since it was written"):
            run.lines(job)
