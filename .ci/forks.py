"""Run scripts, each in a process of its own that need not import again what takes seconds.

This process imports libraries of others, and nothing of the project, once. Each line of standard input is a script with
its arguments and perhaps ``> FILE``; it runs in a fork. The first line that fails ends it.

    python .ci/forks.py AT_ONCE < lines
"""

import importlib
import os
import runpy
import shlex
import sys

SLOW = ("torch._inductor", "pyro", "pandas", "seaborn", "sklearn.datasets", "arviz_stats", "rich", "tyro")
SLOW += ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "fontTools.subset")


def run(line: str) -> None:
    """Do what ``python SCRIPT ARGUMENTS > FILE`` does."""
    script, *arguments = shlex.split(line)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if arguments[-2:-1] == [">"]:
        *arguments, _, file = arguments
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 1)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


def main() -> None:
    """Run the lines, so many at once."""
    at_once = int(sys.argv[1])
    for name in SLOW:
        importlib.import_module(name)
    running: dict[int, str] = {}

    def wait() -> None:
        pid, status = os.wait()
        line = running.pop(pid)
        if status:
            sys.exit(f"exit code {os.waitstatus_to_exitcode(status)}: {line}")

    for line in map(str.strip, sys.stdin):
        if len(running) == at_once:
            wait()
        if not (pid := os.fork()):
            return run(line)  # and exit as any script does
        running[pid] = line
    while running:
        wait()
    return None


if __name__ == "__main__":
    main()
