"""Tables from their declarations: a line per distinct factors, means over seeds, published numbers below ours.

A table that is wider than the terminal is never cut: its headings are wrapped, and what still does not fit follows
below with the names of the lines repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from string import Formatter
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Printed

from amortized_bayes import labels
from amortized_bayes.experiments.spec import Claims, Column, Table
from amortized_bayes.presenting.claims import claims_found
from amortized_bayes.presenting.published import FOLDER, Published, find, read_published, sources
from amortized_bayes.results import selection
from amortized_bayes.results.selection import Found
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STATUS", "cell", "fill", "plain_console", "print_tables"]

STATUS = "status"
"""A column that says which lines are vacuous or failed; added where one is."""
PUBLISHED = "  published"


def print_tables(
    tables: Iterable[Table | Claims],
    rows: pd.DataFrame,
    published: Path = FOLDER,
    *,
    wide: bool = False,
    console: Console | None = None,
) -> None:
    """Print tables of a run's rows, the wide ones only where they are asked for.

    Args:
        tables: what to show.
        rows: of a run.
        published: the folder of published numbers.
        wide: whether to print wide tables too.
        console: where to.

    Raises:
        ValueError: a table whose lines leave open which number is meant.
    """
    console = console or plain_console()
    finals = summarise(rows)
    for table in tables:
        if isinstance(table, Claims):
            _print_claims(table, finals, published, console)
        elif wide or not table.wide:
            numbers = read_published(table.published, published) if table.published else []
            chosen = selection.where(finals, table.where)
            for _, part in selection.groups(chosen, table.apart) or [({}, chosen)]:
                _print_one(table, part, numbers, console)


def plain_console() -> Console:
    """A console in which brackets in texts are no markup."""
    return Console(markup=False, highlight=False)


def cell(metric: str, found: Found | None) -> str:
    """A value with its error, empty where there is none; a gap below zero carries its z-score."""
    if found is None:
        return ""
    if math.isnan(found.value):
        return "not reached" if metric.endswith("_to_target") else "none"
    shown = labels.metric_label(metric)
    text = f"{shown.scale * found.value:.{shown.digits}f}"
    if not math.isfinite(found.error):
        return text
    z = f" (z = {found.value / found.error:.1f})" if metric.endswith("gap") and found.value < 0 < found.error else ""
    return f"{text}±{shown.scale * found.error:.{shown.digits}f}{z}"


def fill(title: str, rows: pd.DataFrame) -> str:
    """A title whose braces name factors, ``"{dataset}: gaps"``, with the values that the rows have."""
    names = {name: "" for _, name, _, _ in Formatter().parse(title) if name}
    return title.format_map({**names, **selection.shared(rows)}) if len(rows) else title


def _print_one(table: Table, rows: pd.DataFrame, numbers: list[Published], console: Console) -> None:
    seeds = 1 if "seed" in (*table.rows, *table.apart) else selection.num_seeds(rows)
    columns = [c if isinstance(c, Column) else Column(c) for c in table.columns]
    lines = _across(table, columns, rows, seeds) if table.across else _lines(table, columns, rows, seeds, numbers)
    if lines is None:
        return
    headings, cells, matched = lines
    over = f"± standard error over {seeds} seeds" if seeds > 1 else "± one standard error"
    has_errors = any("±" in text for line in cells for text in line)
    caption = [f"nats per point where no other unit is given, {over}"] if has_errors else []
    if matched:
        caption += ["[n s.e.]: how far ours lies from the published value", *sources(matched)]
    names = 1 if table.across or numbers else 0
    names = len(_name_columns(table)) or names
    _print(fill(table.title, rows), headings, cells, "; ".join(caption), console, names)


Lines = tuple[Sequence[str], list[list[str]], list[Published]]


def _lines(
    table: Table, columns: Sequence[Column], rows: pd.DataFrame, seeds: int, numbers: list[Published]
) -> Lines | None:
    """Headings, and a line per distinct factors with the published one below it."""
    values = [column for column in columns if column.metric != STATUS]
    wanted = {column.metric for column in values}
    lines: list[list[str]] = []
    found_any: set[int] = set()
    fates: list[str] = []
    matched: list[Published] = []
    for key, line in selection.groups(rows, table.rows):
        found = [selection.mean(line, c.metric, c.where, seeds) for c in values]
        fate = selection.fate(line[line["metric"].isin([*wanted, "failure", "final_kl"])], seeds)
        if not fate and all(f is None for f in found):
            continue
        found_any |= {place for place, f in enumerate(found) if f is not None}
        called = list(labels.names(key).values()) or (["this run"] if numbers else [])
        lines.append([*called, *(cell(c.metric, f) for c, f in zip(values, found, strict=True))])
        fates.append(fate)
        beside = [None if f is None else find(numbers, c.metric, f.factors) for c, f in zip(values, found, strict=True)]
        if any(beside):
            compared = [_compared(f, p) for f, p in zip(found, beside, strict=True)]
            lines.append([*[PUBLISHED, *[""] * len(called)][: len(called)], *compared])
            fates.append("")
            matched += [p for p in beside if p is not None]
    if not lines:
        return None
    num_names = len(lines[0]) - len(values)
    kept = [*range(num_names), *(num_names + place for place in sorted(found_any))]
    headings = [*map(labels.factor_label, _name_columns(table)), *map(_heading, values)]
    headings = [*[""] * (num_names - len(_name_columns(table))), *headings]
    cells = [[line[place] for place in kept] for line in lines]
    headings = [headings[place] for place in kept]
    if any(fates) or STATUS in {column.metric for column in columns}:
        headings.append(STATUS)
        cells = [[*line, fate] for line, fate in zip(cells, fates, strict=True)]
    return headings, cells, matched


def _across(table: Table, columns: Sequence[Column], rows: pd.DataFrame, seeds: int) -> Lines | None:
    """Headings are values of a factor, and there is a line per metric."""
    parts = selection.groups(rows, (table.across,))
    cells = []
    for column in columns:
        found = [selection.mean(part, column.metric, column.where, seeds) for _, part in parts]
        if any(f is not None for f in found):
            name = column.heading or labels.metric_name(column.metric)
            cells.append([name, *(cell(column.metric, f) for f in found)])
    headings = ["", *(labels.value_label(table.across, key[table.across]) for key, _ in parts)]
    kept = [place for place in range(len(headings)) if place == 0 or any(line[place] for line in cells)]
    return ([headings[p] for p in kept], [[line[p] for p in kept] for line in cells], []) if cells else None


def _name_columns(table: Table) -> list[str]:
    return [name for name in table.rows if not (name == "k" and "guide" in table.rows)]


def _heading(column: Column) -> str:
    name = column.heading or labels.metric_label(column.metric).heading
    if column.heading or not column.where:
        return name
    given = [labels.value_label(n, v) for n, v in column.where.items() if not isinstance(v, tuple) and v is not None]
    if column.metric == "elbo_star" and given:
        return f"L(q*), {given[0]}"
    return ", ".join([name, *given])


def _compared(found: Found | None, published: Published | None) -> str:
    if found is None or published is None:
        return ""
    shown = labels.metric_label(published.metric)
    text = f"{shown.scale * published.value:.{shown.digits}f}"
    if not math.isfinite(found.value) or not found.error > 0:
        return text
    return f"{text} [{(found.value - published.value) / found.error:+.0f} s.e.]"


def _print_claims(claims: Claims, rows: pd.DataFrame, published: Path, console: Console) -> None:
    """A table per data set; what is said again of the same claim is left out."""
    found = list(claims_found(claims.file, rows, published))
    for dataset in dict.fromkeys(line[0] for line in found):
        lines = [list(line[1:]) for line in found if line[0] == dataset]
        for line, above in reversed(list(pairwise(lines))):
            above[0], above[3] = (" " if above[0] == line[0] else above[0]), (" " if above[3] == line[3] else above[3])
        printed = _new_table()
        for heading in ("claim", "published", "source", "this run"):
            printed.add_column(heading, overflow="fold")
        for line in lines:
            printed.add_row(*line)
        console.print(f"{claims.title}, {dataset}\n", printed, "", sep="\n")


def _print(
    title: str, headings: Sequence[str], cells: Sequence[Sequence[str]], caption: str, console: Console, names: int
) -> None:
    """Print a table that is not cut anywhere; ``names`` columns at the left are repeated where it is split."""
    spaces = [max(len(line[place]) for line in cells) for place in range(len(headings))]
    if _width([max(len(h), space) for h, space in zip(headings, spaces, strict=True)]) <= console.width:
        wrapped = list(headings)
    else:
        wrapped = ["\n".join(_wrapped(h, space)) for h, space in zip(headings, spaces, strict=True)]
    sizes = [max(space, *map(len, h.split("\n"))) for h, space in zip(wrapped, spaces, strict=True)]
    console.print(title, end="\n\n")
    start = names
    while start == names or start < len(headings):
        stop = start
        while stop < len(headings) and (
            stop == start or _width([*sizes[:names], *sizes[start : stop + 1]]) <= console.width
        ):
            stop += 1
        shown = [*range(names), *range(start, stop)]
        printed = _new_table()
        for place in shown:
            left = place < names or headings[place] == STATUS
            printed.add_column(wrapped[place], justify="left" if left else "right", overflow="fold")
        for line in cells:
            printed.add_row(*(line[place] for place in shown))
        console.print(printed, *([""] if stop < len(headings) else []), sep="\n")
        start = max(stop, names + 1)
    console.print(caption, end="\n\n" if caption else "\n")


def _new_table() -> Printed:
    return Printed(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _wrapped(heading: str, space: int) -> list[str]:
    return wrap(heading, max(space, *map(len, [*heading.split(), ""]))) or [""]


def _width(sizes: Sequence[int]) -> int:
    """Columns of a terminal that a table takes: between its columns there are two spaces."""
    return sum(sizes) + 2 * (len(sizes) - 1)
