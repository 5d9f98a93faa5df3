"""The table and the findings of a run of any kind, printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pandas as pd
from rich.table import Table

from amortized_bayes.commands.cells import cell, wide_console
from amortized_bayes.commands.findings import print_claims, print_table, sentences
from amortized_bayes.commands.suboptimality_tables import print_frozen_decoder, print_set_gaps, print_toy
from amortized_bayes.results import RunFolder

__all__ = ["print_run"]

BOUNDS = ("elbo", "elbo_star", "iwae", "log_p_lower")
GAPS = ("approximation_gap", "amortization_gap", "inference_gap", "optimization_gap")
WORDS = {
    "elbo": "ELBO, L(q)",
    "elbo_star": "best q of each point, L(q*)",
    "iwae": "IWAE",
    "log_p_lower": "AIS",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
    "inference_gap": "inference gap, both",
    "optimization_gap": "optimization gap: best restart over one search",
    "certificate_gap": "AIS certificate: gap on simulated points",
}


def print_run(folder: RunFolder, *, claims: bool = False) -> None:
    """Print what a run found; ``claims`` adds the published ones where there are any.

    Raises:
        ValueError: a run of a kind without a table.
    """
    if folder.experiment not in PRINTERS:
        raise ValueError(f"expected a run with a table ({', '.join(PRINTERS)}), got {folder.path}")
    frame = folder.rows()
    if not len(frame):
        print(f"{folder.path} has no rows yet")
        return
    PRINTERS[folder.experiment](frame)
    if claims and folder.experiment == "sweep":
        print_claims(frame)


def _print_sweep(frame: pd.DataFrame) -> None:
    print_table(frame)
    for sentence in sentences(frame):
        print(sentence)


def _print_training(frame: pd.DataFrame) -> None:
    table = Table(title=_title(frame), title_justify="left")
    for heading in ("", "nats a point"):
        table.add_column(heading, justify="left" if not heading else "right")
    for metric, words in (
        ("final_elbo", "ELBO, training points"),
        ("final_iwae", "IWAE, 50 particles, training points"),
        ("final_test_elbo", "ELBO, test points"),
        ("final_kl", "KL of z, training points"),
    ):
        table.add_row(words, cell(frame, metric))
    wide_console(120).print(table)
    units = frame[frame["metric"] == "active_units"]["value"]
    if len(units):
        print(f"active units: {units.iloc[0]:.0f}")


def _print_gaps(frame: pd.DataFrame) -> None:
    splits = [s for s in ("train", "test") if (frame["metric"] == f"{s}_elbo").any()]
    table = Table(title=_title(frame), title_justify="left", caption="nats a point, ± one standard error over points")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    for name in (*BOUNDS, *GAPS, "certificate_gap"):
        if (frame["metric"] == f"{splits[0]}_{name}").any():
            table.add_row(WORDS[name], *(cell(frame, f"{s}_{name}") for s in splits), end_section=name == BOUNDS[-1])
    wide_console(120).print(table)
    for split in splits:
        classes = _classes(frame, split)
        if classes:
            _print_classes(frame, split, classes)
    for split in splits:
        for metric in ("inference_gap", "certificate_gap"):
            for note in frame[frame["metric"] == f"{split}_{metric}"]["note"]:
                print(f"{split}: {note}")


def _print_classes(frame: pd.DataFrame, split: str, classes: list[int]) -> None:
    table = Table(title=f"by class, {split}", title_justify="left")
    for heading in ("class", "approximation gap", "amortization gap", "inference gap"):
        table.add_column(heading, justify="right")
    for label in classes:
        table.add_row(str(label), *(cell(frame, f"{split}_class{label}_{name}") for name in GAPS[:3]))
    wide_console(120).print(table)


def _print_qstar(frame: pd.DataFrame) -> None:
    table = Table(title=_title(frame), title_justify="left", caption="nats a point, ± one standard error over points")
    headings = ("start", "spread", "steps", "evaluations", "behind reference", "residual", "s.d. over restarts")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "start" else "right")
    ends = frame["metric"].str.extract(r"^spread([\d.e+-]+)_elbo_star$")[0]
    for place, spread in ends.dropna().items():
        row = frame.loc[cast(int, place)]
        same = frame[(frame["guide"] == row["guide"]) & (frame["step"] == row["step"])]
        name = f"spread{spread}"
        evaluations = same[same["metric"] == f"{name}_evaluations"]["value"].iloc[0]
        variance = same[same["metric"] == f"{name}_restart_variance"]["value"]
        over = "" if not len(variance) else "< 0" if variance.iloc[0] < 0 else f"{float(variance.iloc[0]) ** 0.5:.3f}"
        behind = cell(same, f"{name}_behind_reference", 3)
        residual = cell(same, f"{name}_residual", 3)
        table.add_row(str(row["guide"]), spread, f"{row['step']:,}", f"{evaluations:,.0f}", behind, residual, over)
    wide_console(120).print(table)


def _classes(frame: pd.DataFrame, split: str) -> list[int]:
    found = frame["metric"].str.extract(rf"^{split}_class(\d+)_inference_gap$")[0].dropna()
    return sorted(int(label) for label in found)


def _title(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"{first['model']} on {first['dataset']}, seed {first['seed']}"


PRINTERS: dict[str, Callable[[pd.DataFrame], None]] = {
    "sweep": _print_sweep,
    "tune": _print_sweep,
    "train": _print_training,
    "gaps": _print_gaps,
    "qstar": _print_qstar,
    "test-set-gaps": print_set_gaps,
    "frozen-decoder": print_frozen_decoder,
    "toy-posteriors": print_toy,
}
