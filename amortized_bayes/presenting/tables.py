"""Tables from their declarations: a line per combination of factors, means over seeds, published numbers below ours.

A table that is wider than the terminal is never cut: its headings are wrapped, and columns that still do not fit follow
below, with the names of the lines repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Printed

from amortized_bayes import labels, selection
from amortized_bayes.experiments.spec import Column, Table
from amortized_bayes.page.parts import Table as Filled
from amortized_bayes.presenting.cells import cell, fill
from amortized_bayes.presenting.claims import Line
from amortized_bayes.presenting.classes import with_class_names
from amortized_bayes.presenting.published import FOLDER, Published, find, read_published, sources
from amortized_bayes.results.summary import summarise
from amortized_bayes.selection import Found
from amortized_bayes.terminal import plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STATUS", "claim_tables", "compared", "filled_tables", "plain_console", "print_claims", "print_tables"]

STATUS = "status"
"""A column that says which lines are vacuous or failed; added where one is."""
PUBLISHED = "  published"


def print_tables(
    tables: Iterable[Table],
    rows: pd.DataFrame,
    published: Path = FOLDER,
    *,
    wide: bool = False,
    console: Console | None = None,
) -> None:
    """Print tables of a run's rows, the wide ones only on request.

    Args:
        tables: what to show.
        rows: rows of a run.
        published: the folder of published numbers.
        wide: whether to print wide tables too.
        console: where to print; by default the terminal.

    Raises:
        ValueError: a table whose lines leave open which number is meant.
    """
    console = console or plain_console()
    for table in tables:
        if wide or not table.wide:
            for filled in filled_tables(table, rows, published):
                _print(filled, console)


def filled_tables(table: Table, rows: pd.DataFrame, published: Path = FOLDER) -> Iterator[Filled]:
    """What a declared table shows of a run's rows: one table, or one for each value of its factors ``apart``.

    Args:
        table: what to show.
        rows: rows of a run.
        published: the folder of published numbers.

    Raises:
        ValueError: a table whose lines leave open which number is meant.
    """
    numbers = read_published(table.published, published) if table.published else []
    chosen = selection.where(with_class_names(summarise(rows)), table.where)
    for _, part in selection.groups(chosen, table.apart) or [({}, chosen)]:
        if (filled := _fill(table, part, numbers)) is not None:
            yield filled


def plain_console() -> Console:
    """A console that prints brackets as they are, not as markup."""
    return Console(markup=False, highlight=False)


def _fill(table: Table, rows: pd.DataFrame, numbers: list[Published]) -> Filled | None:
    """A table with its texts; ``None`` where no row is for it."""
    seeds = 1 if "seed" in (*table.rows, *table.apart) else selection.num_seeds(rows)
    columns = [c if isinstance(c, Column) else Column(c) for c in table.columns if c != STATUS]
    matched: list[Published] = []
    if table.across:
        names, headings, lines = [""], *_across(table, columns, rows, seeds)
    else:
        names = [labels.factor_label(n) for n in table.rows if not (n == "k" and "guide" in table.rows)]
        names = names or ([""] if numbers else [])
        headings, lines = [*map(_heading, columns), STATUS], list(_lines(table, columns, rows, seeds, numbers, matched))
    if not lines:
        return None
    needed = [n for n, h in enumerate(headings) if any(own[n] for _, own in lines) or (h in table.columns)]
    cells = [[*called, *(own[n] for n in needed)] for called, own in lines]
    over = f"± standard error over {seeds} seeds" if seeds > 1 else "± one standard error"
    has_errors = any("±" in text for line in cells for text in line)
    caption = [f"nats per point unless another unit is given, {over}"] if has_errors else []
    if matched:
        caption += ["[n]: ours is n standard errors above the published value", *sources(matched)]
    headings = [*names, *(headings[n] for n in needed)]
    return Filled(fill(table.title, rows), headings, cells, "; ".join(caption), len(names), (STATUS,))


Cells = tuple[list[str], list[str]]
"""What a line is called, and its cells."""


def _lines(
    table: Table,
    columns: Sequence[Column],
    rows: pd.DataFrame,
    seeds: int,
    numbers: list[Published],
    matched: list[Published],
) -> Iterator[Cells]:
    """A line per distinct factors, its fate last, with the published one below it, which is added to ``matched``."""
    wanted = [*(column.metric for column in columns), "failure", "final_kl"]
    for key, line in selection.groups(rows, table.rows):
        found = [selection.mean(line, column.metric, column.where, seeds) for column in columns]
        fate = selection.fate(line[line["metric"].isin(wanted)], seeds)
        if not fate and not any(found):
            continue
        if fate:  # which says which seeds are missing
            found = [f._replace(note="") if f and math.isfinite(f.value) else f for f in found]
        called = list(labels.names(key).values()) or (["this run"] if numbers else [])
        yield called, [*(cell(c.metric, f) for c, f in zip(columns, found, strict=True)), fate]
        beside = [f and find(numbers, c.metric, f.factors) for c, f in zip(columns, found, strict=True)]
        if any(beside):
            matched += filter(None, beside)
            cells = [compared(f, p) if f and p else "" for f, p in zip(found, beside, strict=True)]
            yield [PUBLISHED, *[""] * (len(called) - 1)], [*cells, ""]


def _across(table: Table, columns: Sequence[Column], rows: pd.DataFrame, seeds: int) -> tuple[list[str], list[Cells]]:
    """Headings are values of a factor, and there is a line per metric."""
    parts = selection.groups(rows, (table.across,))
    lines: list[Cells] = []
    for column in columns:
        found = [selection.mean(part, column.metric, column.where, seeds) for _, part in parts]
        if any(found):
            name = column.heading or labels.metric_name(column.metric)
            among = {str(f.factors["searched"]) for f in found if f and f.factors.get("searched")}
            name += f" ({', '.join(among)})" if among else ""
            lines.append(([name], [cell(column.metric, f) for f in found]))
    return [labels.value_label(table.across, key[table.across]) for key, _ in parts], lines


def _heading(column: Column) -> str:
    name = column.heading or labels.metric_label(column.metric).heading
    if column.heading or not column.where:
        return name
    given = [labels.value_label(n, v) for n, v in column.where.items() if not isinstance(v, tuple) and v is not None]
    if column.metric == "elbo_star" and given:
        return f"L(q*), {given[0]}"
    return ", ".join([name, *given])


def compared(found: Found, published: Published) -> str:
    """A published value, and how many standard errors ours lies above it."""
    shown = labels.metric_label(published.metric)
    text = f"{shown.scale * published.value:.{shown.digits}f}"
    if not math.isfinite(found.value) or not found.error > 0:
        return text
    return f"{text} [{(found.value - published.value) / found.error:+.0f}]"


def print_claims(lines: Sequence[Line], console: Console | None = None) -> None:
    """Print published claims beside what a run found, a table per data set."""
    console = console or plain_console()
    for table in claim_tables(lines):
        printed = _new_table()
        for heading in table.headings:
            printed.add_column(heading, overflow="fold")
        for line in table.cells:
            printed.add_row(*map(plain, line))
        console.print(f"{plain(table.title)}\n", printed, "", sep="\n")


def claim_tables(lines: Sequence[Line]) -> Iterator[Filled]:
    """Published claims beside what a run found, a table per data set."""
    headings = ("claim", "published", "source", "this run", "verdict")
    for dataset in dict.fromkeys(line.dataset for line in lines):
        cells = [
            (line.claim.text, line.claim.published[dataset], line.claim.source, line.measured, line.verdict)
            for line in lines
            if line.dataset == dataset
        ]
        title = f"Published claims (settings differ, so compare orderings), {labels.dataset_label(dataset)}"
        yield Filled(title, headings, cells, texts=headings[1:])


def _print(table: Filled, console: Console) -> None:
    """Print a table without cutting it; where it is split, the columns of names are repeated."""
    title, caption, names = plain(table.title), plain(table.caption), table.names
    headings, cells = [*map(plain, table.headings)], [[*map(plain, line)] for line in table.cells]
    spaces = [max(len(line[place]) for line in cells) for place in range(len(headings))]
    if _width(map(max, spaces, map(len, headings))) > console.width:
        headings = ["\n".join(_wrapped(heading, space)) for heading, space in zip(headings, spaces, strict=True)]
    sizes = [max(space, *map(len, h.split("\n"))) for h, space in zip(headings, spaces, strict=True)]
    console.print(title, end="\n\n")
    left, rest = list(range(names)), list(range(names, len(headings)))
    while rest:
        fitting = [n for n in range(1, len(rest) + 1) if _width(sizes[p] for p in left + rest[:n]) <= console.width]
        shown, rest = left + rest[: max(fitting, default=1)], rest[max(fitting, default=1) :]
        printed = _new_table()
        for place in shown:
            is_text = place < names or headings[place] in table.texts
            printed.add_column(headings[place], justify="left" if is_text else "right", overflow="fold")
        for line in cells:
            printed.add_row(*(line[place] for place in shown))
        console.print(printed, *([""] if rest else []), sep="\n")
    console.print(caption, end="\n\n" if caption else "\n")


def _new_table() -> Printed:
    return Printed(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _wrapped(heading: str, space: int) -> list[str]:
    return wrap(heading, max(space, *map(len, [*heading.split(), ""]))) or [""]


def _width(sizes: Iterable[int]) -> int:
    """Columns of a terminal that a table takes: between its columns there are two spaces."""
    return sum(size + 2 for size in sizes) - 2
