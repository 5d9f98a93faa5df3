"""Tables of the experiments of *Inference Suboptimality*, ours beside the published numbers."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

from amortized_bayes.commands.cells import cell, wide_console
from amortized_bayes.commands.published import TABLE_4, published_row
from amortized_bayes.experiments.vae import ENCODERS, family_name

__all__ = ["print_frozen_decoder", "print_set_gaps", "print_toy"]

COLUMNS = {
    "ais": "AIS",
    "iwae": "IWAE",
    "best_auxiliary": "L(q*AF)",
    "best_realnvp": "L(q*R-NVP)",
    "best_gaussian": "L(q*FFG)",
    "elbo": "L(q)",
    "approximation_gap": "approx.",
    "amortization_gap": "amort.",
    "inference_gap": "total",
    "certificate_gap": "certificate",
}
CAPTION = "nats a point, ± one standard error over points"
COMPARED = f"{CAPTION}; [n s.e.]: how far ours lies from the published value"


def print_set_gaps(frame: pd.DataFrame) -> None:
    """Bounds and gaps of each model, and under each the published row with the differences in standard errors."""
    for dataset in dict.fromkeys(frame["dataset"]):
        rows = frame[frame["dataset"] == dataset]
        table = _table(f"{dataset}: gaps of models, training points", ("model", *COLUMNS.values()))
        for model in dict.fromkeys(rows["model"]):
            here = rows[rows["model"] == model]
            if (here["metric"] == "failure").any():
                table.add_row(model, f"failed: {here['note'].iloc[0]}")
                continue
            table.add_row(model, *(cell(here, metric) for metric in COLUMNS))
            family = str(here["guide"].iloc[0])
            encoder = next((e for e in ("small", "wide") if f"{e} encoder" in model), "standard")
            printed = published_row(str(dataset), family, encoder, annealed="entropy annealing" in model)
            if printed is not None:
                ours = {"ais": "log_p", **{c: c for c in COLUMNS if c in printed._fields}}
                cells = (_compared(here, m, getattr(printed, ours[m])) if m in ours else "" for m in COLUMNS)
                table.add_row("  published", *cells, end_section=True)
        wide_console(170).print(table)
    print("published: Cremer, Li & Duvenaud (ICML 2018), Tables 2 and 3, 3,280 epochs, other images; log p̂ under AIS.")


def print_frozen_decoder(frame: pd.DataFrame) -> None:
    """What belongs to the decoder, and L[q] and gaps of each encoder, with Table 4 beside linear ones."""
    decoder = frame[frame["metric"].isin(["ais", "iwae", "certificate_gap"]) | frame["metric"].str.startswith("best_")]
    shown = [metric for metric in COLUMNS if (decoder["metric"] == metric).any()]
    table = _table(f"{frame.iloc[0]['dataset']}: one decoder", tuple(COLUMNS[m] for m in shown), CAPTION)
    table.add_row(*(cell(decoder, metric) for metric in shown))
    wide_console(170).print(table)
    encoders = frame[frame["model"].isin([f"{encoder} encoder" for encoder in ENCODERS])]
    headings = ("encoder", "family", "L(q)", "approx.", "amort.", "total")
    table = _table("encoders trained for it", headings)
    for (model, family), here in encoders.groupby(["model", "guide"], sort=False):
        if (here["metric"] == "failure").any():
            table.add_row(str(model), family_name(str(family)), f"failed: {here['note'].iloc[0]}")
            continue
        metrics = ("elbo", "approximation_gap", "amortization_gap", "inference_gap")
        table.add_row(str(model), family_name(str(family)), *(cell(here, metric) for metric in metrics))
        if model == "linear encoder" and family in TABLE_4:
            log_p, best, own = TABLE_4[str(family)]
            gaps = (log_p - best, best - own, log_p - own)
            printed = [_compared(here, m, value) for m, value in zip(metrics, (own, *gaps), strict=True)]
            table.add_row("  published", "", *printed, end_section=True)
    wide_console(170).print(table)
    print("published: Table 4, another decoder (tanh, batch 20, warm-up): orders of magnitude compare, not numbers.")


def print_toy(frame: pd.DataFrame) -> None:
    """What each family loses, amortized and at its best, against the evidence by the grid."""
    table = _table(
        f"{frame.iloc[0]['model']} on {frame.iloc[0]['dataset']}", ("family", "amortized loses", "best loses"), CAPTION
    )
    for family in dict.fromkeys(frame["guide"]):
        here = frame[frame["guide"] == family]
        table.add_row(family_name(str(family)), cell(here, "amortized_gap", 3), cell(here, "best_gap", 3))
    wide_console(170).print(table)


def _compared(frame: pd.DataFrame, metric: str, printed: float) -> str:
    rows = frame[frame["metric"] == metric]
    if not len(rows):
        return f"{printed:.2f}"
    value, error = float(rows["value"].iloc[0]), float(rows["standard_error"].iloc[0])
    return f"{printed:.2f} [{(value - printed) / error:+.0f} s.e.]"


def _table(heading: str, columns: tuple[str, ...], caption: str = COMPARED) -> Table:
    table = Table(title=heading, title_justify="left", caption=caption)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    return table
