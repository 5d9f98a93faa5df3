"""Runs that are kept in the repository: small, whole, read as any other, and nothing else than what was measured."""

import gzip
import json
import random
import shutil
import tracemalloc
import zlib
from pathlib import Path

import made_runs
import pytest
from run_folders import create, row

import amortized_bayes
from amortized_bayes.results import RunFolder, find_run, packing
from amortized_bayes.results.excerpts import finished_excerpt
from amortized_bayes.results.seals import finish_record

REPORTED = Path(amortized_bayes.__file__).parents[1] / "results/reported"
COMMAND = "gaps latest --out /home/me/runs --points 9 --data-dir=images"
FLIPS = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of ``gaps``."""
    about = {"platform": "Linux-6.1.0-build-of-mine-x86_64", "command": COMMAND, "threads": 1}
    return made_runs.gaps().save(tmp_path_factory.mktemp("made") / "results", **about).path


@pytest.fixture
def kept(made, tmp_path, call):
    """What ``keep`` makes of it."""
    said = call("keep", made, "--into", tmp_path / "reported", "--new-name", "quick")
    assert said.code == 0, said.err
    path = tmp_path / "reported/gaps/quick"
    assert said.out.startswith(f"{path}: ")
    return path


def test_reported_runs_take_less_than_three_megabytes_and_are_whole():
    assert sum(path.stat().st_size for path in REPORTED.rglob("*") if path.is_file()) < 3_000_000
    runs = [path.parent for path in REPORTED.glob("*/*/FINISHED")]
    assert len(runs) > 10
    for run in runs:
        expected = {"config.yaml", "environment.json", "done.jsonl", "summary.csv", "rows.jsonl.gz", "FINISHED"}
        assert {path.name for path in run.iterdir()} - {"lock"} == expected
        assert RunFolder.open(run).verify() == []


def test_a_kept_run_is_the_run_without_its_large_files(made, kept, call):
    assert {path.name for path in kept.iterdir()} == {
        *("config.yaml", "environment.json", "done.jsonl", "summary.csv", "rows.jsonl.gz", "FINISHED")
    }
    before, after = RunFolder.open(made), RunFolder.open(kept)
    assert after.lines() == before.lines()
    assert after.done() == before.done()
    assert after.read("rows.jsonl") == (made / "rows.jsonl").read_bytes()
    assert finish_record(kept)[0] == finish_record(made)[0]
    assert after.verify() == []
    assert f"{kept} is intact: 5 files with their recorded checksums\n" == call("verify", kept).out
    assert call("table", kept).out == call("table", made).out
    assert call("report", kept, "--into", kept.parent / "page.html").code == 0
    assert "gaps/quick  finished" in call("list", "--out", kept.parents[1]).out
    assert finished_excerpt(kept, ())["rows.jsonl"] == (made / "rows.jsonl").read_bytes()
    about = json.loads((kept / "environment.json").read_bytes())
    assert (about["command"], about["platform"], about["threads"]) == ("gaps latest --points 9", "Linux", 1)


def test_keeping_what_is_kept_changes_nothing(kept, tmp_path, call):
    assert call("keep", kept, "--into", tmp_path / "again").code == 0
    again = tmp_path / "again/gaps/quick"
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in kept.iterdir()}


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(made, kept, tmp_path, refused, monkeypatch):
    into = tmp_path / "reported"
    assert "quick already exists" in refused("keep", made, "--into", into, "--new-name", "quick")
    assert "expected a name for the run" in refused("keep", made, "--into", into, "--new-name", "../up")
    run = create(tmp_path / "runs")
    assert "expected a finished run" in refused("keep", run.path, "--into", into)
    damaged = tmp_path / "runs/gaps/damaged"
    shutil.copytree(made, damaged)
    (damaged / "done.jsonl").write_bytes(b"")
    assert "done.jsonl: changed" in refused("keep", damaged, "--into", into)
    monkeypatch.setattr(packing, "MOST_BYTES", 100)
    assert "at most 100 bytes" in refused("keep", made, "--into", into)
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amortized_bayes.results.durable._write_synced", full)
    assert "No space left" in refused("keep", made, "--into", into)
    assert [path.name for path in into.rglob("*") if path.is_dir()] == ["gaps", "quick"]


def test_a_kept_run_is_not_written_to(kept):
    with RunFolder.open(kept) as run, pytest.raises(ValueError, match="is finished and cannot be changed"):
        run.append(row(), "a")
    assert find_run(kept.parents[1], "latest", "gaps", ("finished",)) == kept
    with pytest.raises(ValueError, match="expected an unfinished run"):
        find_run(kept.parents[1], "latest", "gaps", ("unfinished",))


def test_no_damage_to_packed_rows_is_printed(kept, call):
    path, generator = kept / "rows.jsonl.gz", random.Random(0)
    data, good = path.read_bytes(), call("table", kept)
    damages = [data[:place] for place in (0, 1, 10, len(data) // 2, len(data) - 1)]
    for _ in range(FLIPS):
        place = generator.randrange(len(data))
        damages.append(data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :])
    other = gzip.decompress(data).replace(b"1", b"2", 1)
    damages += [data + b"\0", data + data, packing.pack(b""), packing.pack(other)]
    for damaged in damages:
        path.write_bytes(damaged)
        found = call("table", kept)
        assert found == good or (found.code, found.out, found.err.count("\n")) == (2, "", 1)
        assert "rows.jsonl" in found.err or gzip.decompress(damaged) == gzip.decompress(data)
    path.unlink()
    assert "no rows.jsonl in it" in call("table", kept).err
    assert call("verify", kept).out.startswith("rows.jsonl: missing\n")


def test_plain_rows_come_first_and_packed_ones_are_for_finished_runs(kept, tmp_path, call):
    (kept / "rows.jsonl").write_bytes(gzip.decompress((kept / "rows.jsonl.gz").read_bytes()))
    (kept / "rows.jsonl.gz").write_bytes(b"of somebody else")
    assert "not part of the results, so not compared: rows.jsonl.gz" in call("verify", kept).out
    run = create(tmp_path / "runs")
    (run.path / "rows.jsonl.gz").write_bytes(packing.pack(b""))
    (run.path / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no rows.jsonl in it"):
        RunFolder.open(run.path)


def test_a_link_is_not_followed_to_packed_rows(kept, tmp_path):
    (kept / "rows.jsonl.gz").rename(tmp_path / "elsewhere.gz")
    (kept / "rows.jsonl.gz").symlink_to(tmp_path / "elsewhere.gz")
    with pytest.raises(ValueError, match=r"expected a plain file, got .*rows.jsonl.gz: a symbolic link"):
        RunFolder.open(kept).lines()


def test_a_bomb_takes_no_more_memory_than_rows_may(kept, monkeypatch):
    monkeypatch.setattr(packing, "MOST_BYTES", 1 << 20)
    bomb = zlib.compressobj(wbits=31)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    assert len(data) < 100_000
    (kept / "rows.jsonl.gz").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"rows.jsonl.gz: expected a file that unpacks to at most 1,048,576 bytes"):
            RunFolder.open(kept).lines()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
