"""Checkpoints, arrays and finished runs: what is saved comes back, and no damage to it goes unseen."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_folders import create, fill_disk, row

from amortized_bayes.results import RunFolder, durable
from amortized_bayes.types import ROW_FIELDS


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path)


# Checkpoints and arrays


TENSORS = {"weight": np.arange(6.0).reshape(2, 3).T, "steps": np.arange(3), "step": 7, "scale": np.float32(0.5)}


def test_tensors_come_back(run: RunFolder) -> None:
    with run:
        run.save_tensors("guide", TENSORS, {"guide": "amortized"})
    loaded = RunFolder.open(run.path).load_tensors("guide")
    assert loaded.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].shape == np.shape(value)
    assert loaded["scale"].dtype == np.float32
    assert run.load_metadata("guide") == {"guide": "amortized"}
    assert run.verify() == []


def test_flipped_bit_is_seen_and_the_generation_before_is_used(run: RunFolder) -> None:
    with run:
        run.save_tensors("guide", {"x": np.zeros(4)})
        run.save_tensors("guide", {"x": np.ones(4)})
    path = run.path / "checkpoints" / "guide.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run.verify() == ["checkpoints/guide.safetensors: missing or changed"]
    with pytest.warns(UserWarning, match="using the previous generation") as caught:
        np.testing.assert_array_equal(run.load_tensors("guide")["x"], np.zeros(4))
    assert caught[0].filename == __file__
    previous = run.path / "checkpoints" / "guide.previous.safetensors"
    previous.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its checksum, and neither does"):
        run.load_tensors("guide")
    path.unlink()
    assert "checkpoints/guide.safetensors: missing or changed" in run.verify()


def test_every_flipped_byte_is_seen(run: RunFolder) -> None:
    with run:
        run.save_tensors("guide", {"x": np.ones(2)})
    path = run.path / "checkpoints" / "guide.safetensors"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            run.load_tensors("guide")
    path.write_bytes(data)
    with warnings.catch_warnings(action="error"):
        run.load_tensors("guide")


def test_bad_checkpoints_are_refused(run: RunFolder) -> None:
    with run:
        for bad in ({"x": np.array(["a"])}, {"x": np.array([None])}, {"x": [[1], [1, 2]]}, {"__metadata__": 1}):
            with pytest.raises(ValueError, match="checkpoint 'a': expected"):
                run.save_tensors("a", bad)
        with pytest.raises(ValueError, match="checkpoint 'a': expected"):
            run.save_tensors("a", {"x": np.ones(1)}, {"step": 1})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="expected a name for the checkpoint"):
            run.save_tensors("../a", {})
        run.save_tensors("b", {"x": np.ones(1)})
    with pytest.raises(ValueError, match="holds no 'a': expected one of b"):
        run.load_tensors("a")
    with pytest.raises(ValueError, match=r"holds no '\.\./x'"):
        run.load_tensors("../x")
    durable.save_generation(run.path / "checkpoints" / "b.safetensors", b"no tensors")
    for load in (run.load_tensors, run.load_metadata):
        with pytest.raises(ValueError, match="checkpoint 'b' cannot be read"):
            load("b")


def test_full_disk_keeps_the_checkpoint(monkeypatch: pytest.MonkeyPatch, run: RunFolder) -> None:
    with run:
        run.save_tensors("guide", {"x": np.ones(4)})
        with monkeypatch.context() as patch:
            fill_disk(patch)
            with pytest.raises(ValueError, match="No space left on device"):
                run.save_tensors("guide", {"x": np.zeros(4)})
    np.testing.assert_array_equal(run.load_tensors("guide")["x"], np.ones(4))
    assert run.verify() == []


def test_arrays_come_back(run: RunFolder) -> None:
    arrays = {"x": np.arange(3.0), "self": np.array(["a", "bc"]), "name": np.array(1)}
    with run:
        run.save_arrays("gaps", **arrays)
        for bad in ({"x": np.array([None])}, {"file": np.ones(1)}, {"allow_pickle": np.ones(1)}):
            with pytest.raises(ValueError, match="expected arrays of numbers or texts, got"):
                run.save_arrays("gaps", **bad)
    loaded = run.load_arrays("gaps")
    assert loaded.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(loaded[key], value)
    with pytest.raises(ValueError, match="holds no 'x': expected one of gaps"):
        run.load_arrays("x")


def test_damaged_or_pickled_arrays_are_refused(run: RunFolder) -> None:
    with run:
        run.save_arrays("gaps", x=np.arange(100.0))
    path = run.path / "arrays" / "gaps.npz"
    data = path.read_bytes()
    for damaged in (b"", data[:50], data[:60] + b"\0\0\0\0" + data[64:], b"no zip at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"gaps.npz cannot be read: "):
            run.load_arrays("gaps")
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        run.load_arrays("gaps")


# Finishing


def full_run(out: Path) -> RunFolder:
    run = create(out)
    with run:
        run.append(row(), job="a")
        run.append(row(step=20, value=-1.0), job="a")
        run.save_tensors("guide", {"x": np.ones(4)})
        run.save_arrays("gaps", x=np.ones(4))
        run.mark_done("a")
        run.finish()
    return run


def test_finish_writes_the_summary(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    frame = pd.read_csv(run.path / "summary.csv")
    assert list(frame.columns) == ["experiment", "dataset", "guide", "k", "seed", *ROW_FIELDS[2:]]
    assert frame["value"].tolist() == [-1.0]
    assert RunFolder.open(run.path).verify() == []


FILES = ["config.yaml", "environment.json", "rows.jsonl", "done.jsonl", "summary.csv"]
FILES += ["arrays/gaps.npz", "checkpoints/guide.safetensors"]


@pytest.mark.parametrize("file", FILES)
def test_verify_sees_every_change(tmp_path: Path, file: str) -> None:
    path = full_run(tmp_path).path
    data = (path / file).read_bytes()
    (path / file).write_bytes(data.replace(data[-3:], b"\n\n\n"))
    assert f"{file}: changed since it was written" in RunFolder.open(path).verify()
    (path / file).unlink()
    assert f"{file}: missing" in RunFolder(path).verify()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sha256": 3}', b"\xff"])
def test_verify_sees_a_bad_marker(tmp_path: Path, content: bytes) -> None:
    run = full_run(tmp_path)
    (run.path / "FINISHED").write_bytes(content)
    assert run.verify() == ["FINISHED: cannot be read"]
