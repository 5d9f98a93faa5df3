"""Bugs to plant, each with the tests that must notice it: ``python tests/mutants.py`` plants them one by one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from planted_bugs import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
COPIED = ("amortized_bayes", "tests")
PASSED, FAILED = 0, 1
"""Exit statuses of pytest; any other says that tests could not be run."""
LIMIT = 1800
"""Seconds that a run of tests may take: minutes on a busy machine."""


def planted(mutant: Mutant) -> str:
    """The file with the bug in it.

    Raises:
        ValueError: ``old`` does not occur exactly once.
    """
    text = (ROOT / "amortized_bayes" / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"expected {mutant.old!r} once in {mutant.file}, found it {count} times: {mutant.name}")
    return text.replace(mutant.old, mutant.new)


def run(mutant: Mutant) -> bool:
    """Whether the tests that are meant for a bug fail where it is planted.

    Raises:
        ValueError: the bug cannot be planted.
        RuntimeError: the tests cannot be run.
    """
    return _status(mutant.node_ids, mutant) == FAILED


def run_unchanged(mutants: Iterable[Mutant]) -> None:
    """Run the tests that are meant for bugs where there is none.

    Raises:
        RuntimeError: they do not pass, or cannot be run.
    """
    if _status(sorted({test for mutant in mutants for test in mutant.node_ids})) == FAILED:
        raise RuntimeError("expected tests that pass on an unchanged copy: no failure below would say anything")


def _status(tests: list[str], mutant: Mutant | None = None) -> int:
    """Exit status of pytest in a copy, 0 or 1, with a bug planted or without."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if mutant is not None:
            Path(folder, "amortized_bayes", mutant.file).write_text(planted(mutant))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider", *tests]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        found = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT)
    if found.returncode not in (PASSED, FAILED) or " error" in found.stdout.splitlines()[-1]:
        raise RuntimeError(f"expected tests that run, got {found.stdout[-2000:]}{found.stderr[-2000:]}")
    return found.returncode


def main(arguments: list[str]) -> int:
    """Plant every bug, or those whose names contain a word that is given, and print what became of each."""
    markdown, words = "--markdown" in arguments, [a for a in arguments if not a.startswith("--")]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    run_unchanged(chosen)
    line = "| {0} | `{1}` | {2} | {3} |" if markdown else "{0:<62} {1:<26} {3:<9} {4:>4}  {2}"
    print(line.format("bug", "file", "tests", "result", "s").replace("`", ""))
    if markdown:
        print("|---|---|---|---|")
    survived = 0
    for mutant in chosen:
        begin = time.perf_counter()
        died = run(mutant)
        survived += not died
        tests = ", ".join(f"`{test}`" if markdown else test for test in mutant.tests.split())
        seconds = f"{time.perf_counter() - begin:.0f}"
        print(line.format(mutant.name, mutant.file, tests, "died" if died else "SURVIVED", seconds), flush=True)
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
