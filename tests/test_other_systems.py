"""What Windows lacks is not asked for: flags of files, signals, masks and timers. It locks bytes that nobody reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import amortized_bayes
from amortized_bayes import stopping
from amortized_bayes.experiments import executors
from amortized_bayes.results import durable

ROOT = Path(amortized_bayes.__file__).parents[1]
ON_WINDOWS = """
import logging, multiprocessing, os, pathlib, signal, subprocess, sys, tempfile
import filelock, numpy, pandas
import asyncio  # from Python 3.13 on its part for Unix asks for sysconf as it is imported
for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "sysconf", "fork"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGALRM", "ITIMER_REAL", "setitimer", "pthread_sigmask", "SIG_BLOCK", "SIG_UNBLOCK"):
    delattr(signal, name)
sys.modules.update(fcntl=None, resource=None)
os.O_BINARY = os.O_DIRECTORY << 40  # of no meaning here
flags, open_file = [], os.open
def opened(path, given, *more, **options):
    flags.append(given)
    return open_file(path, given & ~os.O_BINARY, *more, **options)
os.open = opened
replaced = os.replace
def replace(source, target):  # Windows replaces no file that is open
    assert os.path.realpath(target) not in {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}
    replaced(source, target)
os.replace = replace
os.name = "nt"
import amortized_bayes.stopping
os.name = "posix"
from run_folders import create, row
from amortized_bayes.cli import main
from amortized_bayes.results import RunFolder
run = create(pathlib.Path(sys.argv[1]))
with run:
    run.append(row(), "b")
    run.append(row(step=11), "a")
    for job in "ba":
        run.save_arrays(job, job, x=numpy.zeros(3))
        run.mark_done(job)
    run.sort(("a", "b"))
    run.finish()
assert [line["step"] for line in RunFolder.open(run.path).lines()] == [11, 10]
in_bytes = [given for given in flags if given & os.O_BINARY]
assert len(in_bytes) > 10 and all(given & os.O_BINARY for given in flags if given & (os.O_WRONLY | os.O_RDWR))
main(["verify", str(run.path)])
"""


def test_a_run_is_written_read_and_verified_without_what_windows_lacks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", ON_WINDOWS, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"{tmp_path / 'widths/run'} is intact: 8 files with their recorded checksums\n"


def test_the_holder_of_a_lock_is_named_where_the_first_byte_cannot_be_read(tmp_path, monkeypatch):
    held, read = durable.take_lock(tmp_path / "lock"), os.read

    def as_on_windows(descriptor, size):
        if os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
            raise PermissionError(13, "Permission denied")
        return read(descriptor, size)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "read", as_on_windows)
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}: "):
            durable.take_lock(tmp_path / "lock")
        patch.setattr(durable.os, "read", lambda *_: as_on_windows(held, os.lseek(held, 0, os.SEEK_SET)))
        with pytest.raises(ValueError, match="in use by process unknown: "):
            durable.take_lock(tmp_path / "lock")
    durable.release_lock(held)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(durable, "lock_descriptor", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=r"cannot lock .*lock: No locks available"):
        durable.take_lock(tmp_path / "lock")
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_signals_that_ask_to_stop_nothing_is_heeded(monkeypatch):
    for module in (stopping, executors):
        monkeypatch.setattr(module, "SIGNALS", ())
    for name in ("pthread_sigmask", "setitimer", "SIGALRM"):
        monkeypatch.delattr(signal, name)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stopping.heed()
    with stopping.heeding(), executors._interrupts_held():
        assert signal.getsignal(signal.SIGTERM) == before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
