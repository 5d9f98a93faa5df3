"""What reaches a terminal is text: no escape sequence from a file or a name, no traceback where nobody reads."""

import io
import os
import subprocess
import sys
from pathlib import Path

import made_runs
import pytest

import amortized_bayes
from amortized_bayes.progress import Progress
from amortized_bayes.results import RunFolder
from amortized_bayes.terminal import PlainStream, plain, plain_output

ROOT = Path(amortized_bayes.__file__).parents[1]
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202egnp.exe\x00\u2028"
COMMANDS = set(EVIL) - set("]0;owned[2J31mgnp.exe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ±0.1, β, 日本, \t\n", "plain, ±0.1, β, 日本, \t\n"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb\x00\x7f\x9b", r"a\x0db\x00\x7f\x9b"),
        ("\u202eab\u2066\u200f", r"\u202eab\u2066\u200f"),
        (os.fsdecode(b"a\xff"), r"a\udcff"),
    ],
)
def test_plain(text, expected):
    assert plain(text) == expected
    assert plain(plain(text)) == expected


def test_lines_are_plain_too():
    raw = io.StringIO()
    PlainStream(raw).writelines(["a\x1b\n", "b\n"])
    assert raw.getvalue() == "a\\x1b\nb\n"


def evil_run(out):
    """A run in which every text that is free is hostile."""
    made = made_runs.gaps()
    run = RunFolder.create(out, "gaps", {"seed": 0}, {"preset": EVIL, "command": EVIL, "note": EVIL, "part_of": EVIL})
    with run:
        for key, rows, arrays, status in made.jobs:
            for row in rows:
                run.append(row._replace(factors={**row.factors, "dataset": EVIL}, note=EVIL), key)
            run.save_arrays(key, **arrays)
            run.mark_done(key, status)
        run.finish()
    return run


@pytest.mark.parametrize("command", ["table", "plot", "list", "claims", "verify"])
def test_no_command_prints_what_a_terminal_obeys(call, tmp_path, command, monkeypatch):
    monkeypatch.setattr("amortized_bayes.presenting.figures._figure", lambda *_: None)
    run = evil_run(tmp_path / EVIL.replace("\0", ""))
    path = run.path.rename(run.path.with_name(f"run{EVIL.replace(chr(0), '')}"))
    for damaged in (False, True):
        if damaged:
            (path / "config.yaml").write_text("seed: 1\n")
        found = call(command, *([path] if command not in ("list", "claims") else []), "--out", path.parents[1])
        assert not COMMANDS & set(found.out + found.err)
        assert r"\x1b" in found.out + found.err or (not damaged and command in ("plot", "claims"))


@pytest.mark.parametrize(
    "arguments",
    [["table", EVIL], ["sweep", "--config", EVIL], [EVIL], ["sweep", f"--{EVIL}"], ["sweep", "--data-dir", EVIL]],
)
def test_no_error_prints_what_a_terminal_obeys(refused, place, arguments):
    assert not COMMANDS & set(refused(*arguments))


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_on_a_terminal_is_plain(terminal):
    shown = io.StringIO()
    with Progress(terminal, file=PlainStream(shown), notebook=not terminal) as progress:  # pyright: ignore
        progress.show(0.5, None, EVIL, EVIL, 1, 2, EVIL)
        progress.say(f"said {EVIL}")
    assert r"said \x1b]0;owned\x07" in shown.getvalue()
    assert "\x1b]0" not in shown.getvalue()
    assert "\u202e" not in shown.getvalue()


def test_what_the_encoding_cannot_hold_is_written_out(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with plain_output():
        print("±1")
    assert raw.getvalue() == rb"\xb11" + b"\n"


def shell(line, *arguments):
    """Run a line of a shell in which ``"$@"`` is the program with arguments."""
    program = [sys.executable, str(ROOT / "run_experiments.py"), *map(str, arguments)]
    return subprocess.run(["bash", "-c", line, "bash", *program], capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def long_list(tmp_path_factory):
    """A folder of results with one run of many rows, whose table is longer than a pipe holds."""
    return made_runs.gaps().save(tmp_path_factory.mktemp("long") / "results").path


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$@" | head -n 1; exit ${PIPESTATUS[0]}', (0, 141)),
        ('"$@" | true; exit ${PIPESTATUS[0]}', (0, 141)),
        ('"$@" >&-', (0,)),
        ('"$@" >&- 2>&- <&-', (0,)),
        ('"$@" > /dev/full', (2,)),
    ],
)
@pytest.mark.slow_cases(
    '"$@" > /dev/full-code4',
    '"$@" >&- 2>&- <&--code3',
    '"$@" >&--code2',
    '"$@" | head -n 1; exit ${PIPESTATUS[0]}-code0',
)
def test_output_that_nobody_reads_is_no_traceback(long_list, line, code):
    found = shell(line, "table", long_list)
    assert found.returncode in code, found
    assert "Traceback" not in found.stderr
    assert "Exception" not in found.stderr
    assert found.stderr.count("\n") <= 1


@pytest.mark.slow
def test_nothing_is_printed_into_a_file_of_a_run(tmp_path):
    """The number of a closed stream is that of the next file that is opened."""
    run = made_runs.gaps().save(tmp_path).path
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert shell('"$@" >&- 2>&-', "plot", run, "--into", tmp_path / "drawn").returncode == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
