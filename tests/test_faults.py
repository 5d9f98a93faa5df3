"""Runs on disks that fill up, fail or lose power at any call, kills at any call, and locks that others left behind."""

import errno
import os
import signal
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wing
from toy import wander

from amortized_bayes import experiments
from amortized_bayes.experiments import plans, running
from amortized_bayes.results import RunFolder, list_runs

CONFIG = wander.Config(steps=2)
NAMES = ("write", "fsync", "replace", "mkdir")
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")


@pytest.fixture(autouse=True)
def _one_line_more(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "wander", "toy.wander")
    monkeypatch.setattr(wing.QuickLab, "every", 0.0)


@pytest.fixture
def whole(tmp_path):
    return told(start(tmp_path / "whole"))


def start(out, config=CONFIG):
    plan = plans.new_plan("wander", config, wing.QuickLab(out, wing.CPU), ["config"], {"threads": 1})
    return running.run(plan, wing.Recorder())


def resume(out, text="latest"):
    return running.run(plans.resumed_plan("wander", text, wing.QuickLab(out, wing.CPU)), wing.Recorder())


def go_on(out):
    """Finish what is there of a run, or start one."""
    left = [info for info in list_runs(out) if info.status == "unfinished"]
    done = [info for info in list_runs(out) if info.status == "finished"]
    return RunFolder.open(done[0].path) if done else resume(out) if left else start(out)


def told(folder):
    """Everything that a run says but times, in order."""
    assert folder.verify() == []
    assert not list(folder.path.glob("checkpoints/*unfinished*"))
    assert not list(folder.path.glob("**/.*.tmp"))
    rows = folder.rows().drop(columns=["seconds", "standard_error"]).to_dict("records")
    arrays = {file.stem: np.load(file)["z"].tobytes() for file in folder.path.glob("arrays/*.npz")}
    return rows, arrays, folder.done()


class Disk:
    """Counts calls that touch what is below a folder; at the n-th of those named something happens instead."""

    def __init__(self, patch, out, names, number=0, happens=lambda: None):
        self.out, self.number, self.happens, self.count = str(out), number, happens, 0
        for name in names:
            patch.setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name, real):
        def call(place, *given, **named):
            path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.path.abspath(place)
            if not path.startswith(self.out):
                return real(place, *given, **named)
            self.count += 1
            if self.count == self.number:
                self.happens()
            return self.after(name, path, given, real(place, *given, **named))

        return call

    def after(self, name, path, given, result):
        """A call has come to its end."""
        del name, path, given
        return result


@pytest.fixture
def calls(tmp_path):
    """How often a run calls functions of these names, in a folder that it makes or that is made before."""

    def count(*names, made=False):
        if made:
            (tmp_path / "counted").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, tmp_path / "counted", names)
            start(tmp_path / "counted")
        return disk.count

    return count


def in_child(run, act_there):
    """Run in a process of its own, and give how it ended: 0, or minus the signal that killed it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            act_there()
            run()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


# The n-th call fails, or is the last ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_fails_is_one_line_and_the_run_goes_on(tmp_path, whole, calls, name, code):
    def happens():
        raise OSError(code, os.strerror(code))

    numbers = range(1, calls(name) + 1)
    for number in numbers if name == "mkdir" else numbers[number_of(code) :: 11]:
        out = tmp_path / f"{number}"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, out, (name,), number, happens)
            with pytest.raises(ValueError, match=os.strerror(code)) as failed:
                start(out)
        assert len(str(failed.value).splitlines()) == 1
        assert told(go_on(out)) == whole


def number_of(code):
    return int(code == errno.EIO)


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_call_goes_on(tmp_path, whole, calls, stride):
    """Inside the writing of rows, marks and checkpoints too, of which there is one after every step."""
    for number in range(2, calls(*NAMES) + 1, stride):
        out = tmp_path / f"{number}"
        ended = in_child(lambda out=out: start(out), lambda n=number, o=out: Disk(MONKEY, o, NAMES, n, kill_me))
        assert ended == -signal.SIGKILL
        assert told(go_on(out)) == whole


MONKEY = pytest.MonkeyPatch()
"""In processes that end anyway."""


def test_a_run_killed_again_and_again_gets_to_its_end(tmp_path, whole):
    out, kills = tmp_path / "out", 0
    while in_child(lambda: go_on(out), lambda: Disk(MONKEY, out, ("fsync",), 31, kill_me)):
        kills += 1
        assert kills < 60
    assert kills > 1
    assert told(go_on(out)) == whole


# Power cuts -----------------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Nothing that runs after this reaches the disk."""


class Forgetful(Disk):
    """Remembers what was synced: the contents of files, and the names in folders, by their inodes."""

    NAMES = ("open", "write", "fsync", "replace", "mkdir", "unlink")

    def __init__(self, patch, out, number):
        self.data, self.listings = {}, {}
        super().__init__(patch, out, self.NAMES, number, self.cut)

    def cut(self):
        self.number = self.count + 1  # and at every call from now on
        raise PowerCut

    def after(self, name, path, given, result):
        if name == "open" and given and given[0] & os.O_CREAT and not os.fstat(result).st_size:
            self.data[os.fstat(result).st_ino] = b""  # numbers of deleted files come again
        if name == "fsync" and stat.S_ISDIR(os.stat(path).st_mode):
            self.listings[os.stat(path).st_ino] = inodes(path)
        elif name == "fsync":
            self.data[os.stat(path).st_ino] = Path(path).read_bytes()
        return result

    def survives(self, inode, is_folder, to, names_first, now):
        """Put what survives of a file or folder there."""
        if not is_folder:
            to.write_bytes(self.data.get(inode, b""))
            return
        to.mkdir()
        for name, (inode_of, folder) in (now if names_first else self.listings).get(inode, {}).items():
            self.survives(inode_of, folder, to / name, names_first, now)


def inodes(folder):
    return {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)}


@pytest.mark.parametrize("names_first", [False, True])
@pytest.mark.parametrize("stride", [47, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_survives_a_disk_that_forgets_what_was_not_synced(tmp_path, whole, calls, names_first, stride):
    """``names_first``: the disk wrote names ahead of contents, as disks may."""
    for number in range(2 + names_first, calls(*Forgetful.NAMES, made=True) + 1, stride):
        out, after = tmp_path / f"{number}", tmp_path / f"{number}-after"
        out.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            disk = Forgetful(patch, out, number)
            with pytest.raises(PowerCut):
                start(out)
        now = {os.stat(path).st_ino: inodes(path) for path, *_ in os.walk(out)}
        disk.survives(os.stat(out).st_ino, True, after, names_first, now)
        assert told(go_on(after)) == whole


# Locks ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path):
    out = tmp_path / "out"
    assert in_child(lambda: start(out), lambda: Disk(MONKEY, out, ("fsync",), 30, kill_me)) == -signal.SIGKILL
    (info,) = list_runs(out)
    assert (info.path / "lock").exists()
    return info.path


@pytest.mark.parametrize(
    "left", [None, b"", b"1\n", b"99999999\n", b"not a number", b"\xff" * 100, b"own"], ids=lambda left: repr(left)[:12]
)
def test_whatever_a_killed_process_left_of_its_lock_the_next_one_gets_in(unfinished, whole, left):
    lock = unfinished / "lock"
    if left is None:
        lock.unlink()
    else:
        lock.write_bytes(b"%d\n" % os.getpid() if left == b"own" else left)
    assert told(resume(unfinished.parents[1])) == whole


def test_a_killed_process_gives_its_lock_back_with_its_life(unfinished, whole):
    """While it lives nobody else gets in, and the error names it."""
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with RunFolder.open(unfinished):
            os.write(tell, b"!")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(ValueError, match=f"in use by process {pid}"):
        resume(unfinished.parents[1])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert told(resume(unfinished.parents[1])) == whole


@pytest.mark.parametrize("times", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_that_start_on_one_folder_one_refuses(tmp_path, times):
    config = replace(CONFIG, pause=0.02)
    for number in range(times):
        out = tmp_path / f"{number}"
        killed = in_child(lambda out=out: start(out, config), lambda o=out: Disk(MONKEY, o, ("fsync",), 30, kill_me))
        assert killed == -signal.SIGKILL
        pid = os.fork()
        if not pid:
            os._exit(refused(out))
        assert sorted([refused(out), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]) == [0, 3]
        assert told(RunFolder.open(list_runs(out)[0].path))


def refused(out):
    """0 for one that came to its end, 3 for one that was refused since the run is in use or finished."""
    try:
        resume(out)
    except ValueError as error:
        return 3 if "in use by process" in str(error) or "expected an unfinished run" in str(error) else 4
    return 0
