"""The page of claims: every claim with what was published, what finished runs measured, and a verdict. Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from amortized_bayes import labels
from amortized_bayes.presenting.again import command_again
from amortized_bayes.presenting.claim_list import CLAIMS, Claim
from amortized_bayes.presenting.claims import tell_claim
from amortized_bayes.presenting.finished import FinishedRun, answering, finished_runs
from amortized_bayes.presenting.markdown import markdown_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["claims_page"]

TITLE = """# Published claims, and what we measured

`python run_experiments.py claims --into docs/claims.md` writes this page from the finished runs in `results/reported`;
with `--out` it reads runs of yours. ± is one standard error, over seeds where a run has several, else over points. A
claim *holds* or *does not hold* where the 95% interval leaves no doubt (two errors over points, but 4.3 over three
seeds and 12.7 over two: Student's t), and *holds in part* where it does for some of what was measured. It *cannot be
told yet* where errors are too large, seeds are missing, fits have not converged, or no run has asked. Settings differ
from the published ones (the runs are listed below), so compare orderings, not nats.
"""


HEADINGS = ("claim", "data", "published", "measured", "verdict")


def claims_page(out: Path) -> str:
    """The page, from the finished runs under ``out``.

    If several runs could decide a claim, the one with the most seeds is used; of these, the one with the most points,
    and of these the latest.

    Raises:
        ValueError: there are none, or one of them is damaged.
    """
    runs = finished_runs(out, {claim.experiment for claim in CLAIMS})
    used: dict[int, FinishedRun] = {}
    parts = [TITLE]
    for source in dict.fromkeys(_whose(claim) for claim in CLAIMS):
        lines = [line for claim in CLAIMS if _whose(claim) == source for line in _lines(claim, runs, used)]
        parts.append("\n".join([f"## {source}\n", markdown_table(HEADINGS, lines), ""]))
    parts.append("\n".join(["## Runs\n", *(_described(used[number]) for number in sorted(used)), ""]))
    return "\n".join(parts)


def _whose(claim: Claim) -> str:
    """The source without its tables and sections."""
    return claim.source.removeprefix("rerun of ").split(", Table")[0].split(", section")[0].split(", from")[0]


def _lines(claim: Claim, runs: Iterable[FinishedRun], used: dict[int, FinishedRun]) -> Iterator[tuple[str, ...]]:
    """A line per data set, from the run that :func:`answering` chooses; it is added to ``used``."""
    for dataset, published in claim.published.items():
        measured, verdict = "no run yet", "cannot be told yet"
        run = answering(runs, claim.experiment, claim.preset, dataset)
        if run is not None:
            used[run.number] = run
            rows = cast("pd.DataFrame", run.finals[run.finals["dataset"] == dataset])
            line = tell_claim(claim, dataset, rows)
            measured, verdict = f"{line.measured} [{run.number}]", line.verdict
        yield claim.text, labels.dataset_label(dataset), published, measured, f"**{verdict}**"


def _described(run: FinishedRun) -> str:
    """How a run was made: its command, preset, seeds, commit and machine."""
    about = run.folder.environment()
    git = cast("dict[str, object]", about.get("git") or {})
    seeds = run.seeds
    words = [
        f"preset *{run.preset or 'unknown'}*",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "",
        f"commit {str(git.get('commit', 'unknown'))[:7]}{' with changes' if git.get('dirty') else ''}",
        str(about.get("platform", "")),
        f"started {str(about.get('started', ''))[:10]}",
        f"`{run.folder.experiment}/{run.folder.name}`",
    ]
    return f"{run.number}. `{command_again(run.folder, about)}`: {', '.join(filter(None, words))}"
