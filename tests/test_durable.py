"""Durable bytes, on a disk that forgets whatever was not synced, fills up, or loses power at any call."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amortized_bayes.results import RunFolder, durable
from amortized_bayes.results import folder as run_folder
from amortized_bayes.types import Row


class PowerCut(BaseException):
    """The machine is off: nothing that runs after this reaches the disk."""


class ForgetfulDisk:
    """Stands for ``os`` in the module. The real folder is the page cache; ``crash`` leaves what was synced.

    Killing a process cannot test a sync, because the page cache survives the process.
    """

    CALLS = ("open", "write", "fsync", "close", "replace", "unlink", "ftruncate", "fstat")

    def __init__(self, cut_at: int | None = None) -> None:
        self.calls, self.cut_at = 0, cut_at
        self.data: dict[int, bytes] = {}
        self.names: dict[str, dict[str, int]] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*arguments: Any) -> Any:
            if self.cut_at is not None and self.calls >= self.cut_at:
                raise PowerCut
            self.calls += 1
            result = real(*arguments)
            if name == "fsync":
                self._remember(*arguments)
            if name == "open" and arguments[1] & os.O_EXCL:
                self.data[os.fstat(result).st_ino] = b""  # numbers of deleted files come again
            return result

        return call

    def adopt(self, folder: Path) -> None:
        """Take what is in ``folder`` now as safely on disk."""
        for file in folder.iterdir():
            self.data[file.stat().st_ino] = file.read_bytes()
        self.names[str(folder)] = {file.name: file.stat().st_ino for file in folder.iterdir()}

    def _remember(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.names[str(path)] = {file.name: file.stat().st_ino for file in path.iterdir()}
        else:
            self.data[os.fstat(descriptor).st_ino] = path.read_bytes()

    def crash(self, folder: Path, names_first: bool) -> None:
        """Leave in ``folder`` what survives. ``names_first``: the disk wrote names ahead of contents, as disks may."""
        now = {file.name: file.stat().st_ino for file in folder.iterdir()}
        names = now if names_first else self.names.get(str(folder), {})
        contents = {name: self.data.get(number, b"") for name, number in names.items()}
        for file in folder.iterdir():
            file.unlink()
        for name, content in contents.items():
            (folder / name).write_bytes(content)


def survive(
    monkeypatch: pytest.MonkeyPatch, folder: Path, action: Callable[[], None], cut_at: int | None, names_first: bool
) -> bool:
    """Run ``action`` until the power is cut, and return whether it came to its end."""
    disk = ForgetfulDisk(cut_at)
    disk.adopt(folder)
    ended = True
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", disk)
        patch.setattr(run_folder, "os", disk)
        try:
            action()
        except PowerCut:
            ended = False
    disk.crash(folder, names_first)
    return ended


def power_cuts(tmp_path: Path, prepare: Callable[[Path], None]) -> list[tuple[Path, int | None, bool]]:
    cases = []
    for names_first in (False, True):
        for cut_at in [*range(40), None]:
            folder = tmp_path / f"{cut_at}-{names_first}"
            folder.mkdir()
            prepare(folder)
            cases.append((folder, cut_at, names_first))
    return cases


def test_power_cut_leaves_the_old_file_or_the_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends = []
    for folder, cut_at, first in power_cuts(tmp_path, lambda folder: durable.write_atomically(folder / "a", b"old")):
        action = lambda folder=folder: durable.write_atomically(folder / "a", b"new" * 100)  # noqa: E731
        ended = survive(monkeypatch, folder, action, cut_at, first)
        content = (folder / "a").read_bytes()
        assert content in ([b"new" * 100] if ended else [b"old", b"new" * 100])
        ends.append(ended)
    assert {True, False} <= set(ends)


def test_the_disk_of_these_tests_forgets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same writes without syncs must be seen to fail, or the test above proves nothing."""

    def careless() -> None:
        descriptor = durable.os.open(tmp_path / "b", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        durable.os.write(descriptor, b"new")
        durable.os.close(descriptor)
        durable.os.replace(tmp_path / "b", tmp_path / "a")

    (tmp_path / "a").write_bytes(b"old")
    assert survive(monkeypatch, tmp_path, careless, None, names_first=True)
    assert (tmp_path / "a").read_bytes() == b""


def test_power_cut_never_loses_both_generations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        durable.save_generation(folder / "a.safetensors", b"first")
        durable.save_generation(folder / "a.safetensors", b"second")

    for folder, cut_at, first in power_cuts(tmp_path, prepare):
        path = folder / "a.safetensors"
        ended = survive(monkeypatch, folder, lambda path=path: durable.save_generation(path, b"third"), cut_at, first)
        assert durable.check_generations(path) == []  # without any warning, too
        assert durable.load_generation(path) in ([b"third"] if ended else [b"second", b"third"])


@pytest.mark.parametrize("names_first", [False, True])
def test_power_cut_loses_no_row_of_a_job_that_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names_first: bool
) -> None:
    ends = []
    for cut_at in range(80):
        run, marked = RunFolder.create(tmp_path, "power", {}, {}, f"cut-{cut_at}"), []

        def jobs(run: RunFolder = run, marked: list[str] = marked) -> None:
            with run:
                for key in ("a", "b", "c"):
                    for row in _rows():
                        run.append(row, key)
                    run.mark_done(key)
                    marked.append(key)

        ends.append(survive(monkeypatch, run.path, jobs, cut_at, names_first))
        after = RunFolder.open(run.path)
        assert set(marked) <= after.done().keys()
        assert len(after.rows()) == 2 * len(after.done())
        assert after.verify() == []
    assert {True, False} == set(ends)


def _rows() -> list[Row]:
    return [Row("widths", {"seed": 0}, step, 0.0, "elbo", 1.0) for step in range(2)]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_error_leaves_the_old_file_and_nothing_beside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, code: int
) -> None:
    durable.write_atomically(tmp_path / "a", b"old")

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, call, fail)
        with pytest.raises(ValueError, match=f"cannot write to .*a: {os.strerror(code)}"):
            durable.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = os.write
    monkeypatch.setattr(durable.os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    durable.write_atomically(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_interrupt_cleans_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable.write_atomically(tmp_path / "a", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", only_files)
    durable.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("full", ["short", "error"])
def test_full_disk_tears_no_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: str) -> None:
    descriptor = durable.open_for_append(tmp_path / "rows")
    durable.append_line(descriptor, "whole")
    write = os.write

    def no_space(descriptor: int, data: bytes) -> int:
        written = write(descriptor, data[: len(data) // 2])
        if full == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "write", no_space)
        with pytest.raises(OSError, match="No space"):
            durable.append_line(descriptor, "a line that does not fit")
    durable.append_line(descriptor, "after")
    os.close(descriptor)
    assert (tmp_path / "rows").read_bytes() == b"whole\nafter\n"


@pytest.mark.parametrize(
    ("content", "whole"), [(b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nto", b"a\n"), (b"torn", b""), (b"\n\n{", b"\n\n")]
)
def test_torn_line_is_cut(tmp_path: Path, content: bytes, whole: bytes) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    assert whole + durable.cut_torn_line(path) == content
    assert path.read_bytes() == whole
    assert durable.cut_torn_line(path) == b""


APPENDER = """
import sys
from pathlib import Path
from amortized_bayes.results import durable
descriptor = durable.open_for_append(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    durable.append_line(descriptor, f'{{"number": {number}, "note": "{"x" * 3000}"}}')
    number += 1
    if number == int(sys.argv[2]):
        import os
        os._exit(1)
"""


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("last", [137, -1])
def test_killed_while_appending(tmp_path: Path, last: int, attempt: int) -> None:
    path = tmp_path / f"rows-{attempt}"
    environment = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[2])}
    command = [sys.executable, "-c", APPENDER, str(path), str(last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while last < 0 and path.stat().st_size < 200_000:
            pass
        if last < 0:
            process.kill()
        process.wait(timeout=30)
    torn = durable.cut_torn_line(path)  # Linux looks for a kill at each page that a write crosses
    lines = path.read_bytes().splitlines()
    assert all(line == b'{"number": %d, "note": "%s"}' % (i, b"x" * 3000) for i, line in enumerate(lines))
    assert (b'{"number": %d, "note": "%s"}' % (len(lines), b"x" * 3000)).startswith(torn)
    assert torn == b"" or last < 0
    assert len(lines) == last if last > 0 else len(lines) > 10


def test_generations(tmp_path: Path) -> None:
    path = tmp_path / "a.b.safetensors"
    for data in (b"first", b"second", b"third"):
        durable.save_generation(path, data)
        assert durable.load_generation(path) == data
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.b.previous.safetensors",
        "a.b.safetensors",
        "a.b.sha256",
    ]
    path.write_bytes(b"thirt")
    assert durable.check_generations(path) == ["checkpoints/a.b.safetensors: missing or changed"]
    with pytest.warns(UserWarning, match="does not match its checksum: using the previous generation"):
        assert durable.load_generation(path) == b"second"
    durable.save_generation(path, b"fourth")  # what is broken does not become the generation before
    path.unlink()
    with pytest.warns(UserWarning, match="previous generation"):
        assert durable.load_generation(path) == b"second"
    (tmp_path / "a.b.previous.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="neither does the previous generation"):
        durable.load_generation(path)
    path.write_bytes(b"fourth")
    (tmp_path / "a.b.sha256").unlink()
    with pytest.raises(ValueError, match="does not match its checksum"):
        durable.load_generation(path)


def test_lock_is_exclusive_and_says_who_holds_it(tmp_path: Path) -> None:
    held = durable.take_lock(tmp_path / "lock")
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}:"):
        durable.take_lock(tmp_path / "lock")
    durable.release_lock(held)
    durable.release_lock(durable.take_lock(tmp_path / "lock"))


def test_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from amortized_bayes.results import durable; "
        "durable.take_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ValueError, match=f"in use by process {process.pid}:"):
            durable.take_lock(tmp_path / "lock")
        process.kill()
        process.wait(timeout=30)
    durable.release_lock(durable.take_lock(tmp_path / "lock"))
