"""Links, pipes and devices in a run folder: never written through, never waited for, one line says so."""

import errno
import os
import signal
import threading

import made_runs
import numpy as np
import pytest
from run_folders import create, row

import amortized_bayes as ab
from amortized_bayes import plain_files
from amortized_bayes.data.arrays import read_user_arrays
from amortized_bayes.results import RunFolder, durable

ONE = np.ones(1)
SECRET = b"not to be touched\n"


@pytest.fixture(autouse=True)
def _no_hang():
    """A test that waits for a pipe fails."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def run(tmp_path):
    run = create(tmp_path / "results")
    with run:
        run.append(row(), "a")
        run.save_arrays("a", "a", x=ONE)
        run.save_tensors("a", {"x": ONE}, job="a")
        run.mark_done("a")
    return run


@pytest.fixture
def finished(tmp_path):
    return made_runs.gaps().save(tmp_path / "results")


FILES = ["lock", "rows.jsonl", "done.jsonl", "config.yaml", "environment.json", "STARTED", "arrays/a.npz"]
FILES += ["checkpoints/a.safetensors", "checkpoints", "arrays"]


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_written_through_a_link(run, tmp_path, file, call):
    path, other = run.path / file, tmp_path / "elsewhere"
    if path.is_dir():
        other.mkdir()
        (other / ".x.tmp").write_bytes(SECRET)
        path.rename(tmp_path / "away")
    else:
        other.write_bytes(path.read_bytes() if path.exists() and file != "lock" else SECRET)
        path.unlink(missing_ok=True)
    path.symlink_to(other)
    before = other.read_bytes() if other.is_file() else sorted(other.iterdir())
    with pytest.raises(ValueError, match=r"[^\n]*a symbolic link[^\n]*\Z"), RunFolder.open(run.path) as locked:
        locked.mark_done("b")
    assert (other.read_bytes() if other.is_file() else sorted(other.iterdir())) == before
    assert path.is_symlink()
    assert call("verify", run.path).code == 1


@pytest.mark.parametrize("file", ["lock", "rows.jsonl", "done.jsonl"])
def test_nothing_is_written_to_a_file_of_two_names(run, tmp_path, file):
    """A copy made of hard links, as backups are, must not change with the original."""
    (run.path / file).touch()
    os.link(run.path / file, tmp_path / "backup")
    with pytest.raises(ValueError, match=r"expected a plain file of one name, got .*: a hard link"), run:
        pass


def test_a_run_folder_that_is_a_link_is_read_and_not_written_to(run, tmp_path):
    link = tmp_path / "results" / "widths" / "link"
    link.symlink_to(run.path)
    assert len(RunFolder.open(link).rows()) == 1
    with pytest.raises(ValueError, match=r"expected a folder, got .*link: a symbolic link"), RunFolder.open(link):
        pass
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(run.path)
    found = RunFolder.open(elsewhere)
    assert (found.experiment, found.name) == (run.experiment, run.name)


@pytest.mark.parametrize("file", ["lock", "rows.jsonl", "config.yaml", "environment.json", "FINISHED", "STARTED"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_do_not_hang(run, call, file, kind):
    path = run.path / file
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for command in (("table", run.path), ("list", "--out", run.path.parents[1]), ("verify", run.path)):
        found = call(*command)
        assert found.code in (0, 1, 2)
        assert found.err.count("\n") <= 1
    folder = RunFolder.open(run.path)
    with pytest.raises(ValueError, match="expected a plain file, got"):
        folder.rows() if file == "FINISHED" else folder.__enter__()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_settings_from_a_pipe_or_a_device_are_refused(tmp_path, refused, kind):
    os.mkfifo(tmp_path / "pipe")
    path = "/dev/zero" if kind == "device" else tmp_path / "pipe"
    assert f": a {kind}\n" in refused("sweep", "--config", path, "--dry-run")


def test_data_from_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match=r"pipe.npy cannot be read: expected a plain file, got .*: a pipe"):
        read_user_arrays(tmp_path / "pipe.npy")
    for kind in (ab.Diagnosis, ab.Comparison):
        with pytest.raises(ValueError, match="expected a plain file, got"):
            kind.load(tmp_path / "pipe.npy")


def test_a_link_that_comes_in_between_is_not_followed(monkeypatch, tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "a").write_bytes(b"")
    whole = os.lstat(tmp_path / "a")
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(plain_files.os, "lstat", lambda path: whole)
    with pytest.raises(ValueError, match="a symbolic link"):
        plain_files.read_plain(tmp_path / "a")


def test_what_is_missing_or_too_long(tmp_path):
    with pytest.raises(FileNotFoundError):
        plain_files.read_plain(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(ValueError, match="expected a file of at most 4 bytes, got 5"):
        plain_files.read_plain(tmp_path / "a", most=4)
    assert plain_files.read_plain(tmp_path / "a", most=5) == b"12345"


def test_a_lock_of_a_stranger_says_no_more_than_a_number(tmp_path):
    lock = tmp_path / "lock"
    held = durable.take_lock(lock)
    lock.write_bytes(b"\x1b[2J12")
    with pytest.raises(ValueError, match="in use by process unknown"):
        durable.take_lock(lock)
    durable.release_lock(held)


def test_a_full_disk_while_locking_is_told(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plain_files.os, "open", full)
    with pytest.raises(ValueError, match=r"cannot write to .*lock: No space left on device"):
        durable.take_lock(tmp_path / "lock")


def test_one_of_many_that_start_at_once_gets_the_lock(run):
    """Each opens the run for itself."""
    outcomes = []

    def start():
        try:
            outcomes.append(durable.take_lock(run.path / "lock"))
        except ValueError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (held,) = (outcome for outcome in outcomes if isinstance(outcome, int))
    durable.release_lock(held)
