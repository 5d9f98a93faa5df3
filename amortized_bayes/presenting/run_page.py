"""One page about a run, or about several side by side: the sentences, tables, figures and claims of the other commands.

Parts for which a run has no rows or arrays are left out, and listed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from amortized_bayes import labels, selection
from amortized_bayes.experiments import experiment
from amortized_bayes.page.parts import Code, Drawing, Facts, Missing, Page, Part, Section, Table, Words
from amortized_bayes.page.svg import drawing
from amortized_bayes.presenting.again import command_again
from amortized_bayes.presenting.badges import badges
from amortized_bayes.presenting.cells import ROW_ERRORS, why_not
from amortized_bayes.presenting.claims import claims_found
from amortized_bayes.presenting.figures import drawn_figures
from amortized_bayes.presenting.hardest import data_thumbnail, hardest_points
from amortized_bayes.presenting.sentences import sentences, told_apart
from amortized_bayes.presenting.tables import claim_tables, filled_tables
from amortized_bayes.presenting.view import RunView
from amortized_bayes.progress import duration
from amortized_bayes.results.seals import finish_record
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    from amortized_bayes.results import RunFolder

__all__ = ["run_page"]

HEADINGS = (
    *("What was found", "The run", "Numbers", "Figures", "The hardest points", "Published claims"),
    "How to reproduce",
)
MISSING = "Not shown"
SUBTITLE = "amortized_bayes: what does amortized inference cost?"


def run_page(folders: Sequence[RunFolder]) -> Page:
    """The page of some runs.

    Args:
        folders: one or more, finished or not.

    Raises:
        ValueError: no run, or one that is damaged.
    """
    if not folders:
        raise ValueError("expected a run or more, got none")
    runs = [_Run(folder) for folder in folders]
    names = [f"{run.folder.experiment}/{run.folder.name}" for run in runs]
    columns = [run.parts() for run in runs]
    sections = [Section(heading, [column[heading] for column in columns]) for heading in (*HEADINGS, MISSING)]
    if len(runs) > 1:
        sections.insert(1, Section("What differs", [[_differences(runs, names)]], whole=True))
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs side by side"
    return Page(title, SUBTITLE, names, [run.badges for run in runs], sections)


class _Run:
    """A run, read once."""

    def __init__(self, folder: RunFolder) -> None:
        folder.check()
        self.folder, self.view = folder, RunView(folder)
        self.rows, self.about = self.view.rows, folder.environment()
        self.module = experiment(folder.experiment)
        self.badges = list(badges(folder, self.rows))
        self.finished, self.kept = finish_record(folder.path)
        self.missing: list[str] = []

    def parts(self) -> dict[str, list[Part]]:
        """The parts under each heading; what is missing comes last, since only then it is known."""
        found: dict[str, list[Part]] = {heading: [] for heading in (*HEADINGS, MISSING)}
        makers = (self._words, self._facts, self._tables, self._figures, self._hardest, self._claims, self._again)
        for heading, make in zip(HEADINGS, makers, strict=True):
            if len(self.rows) or make in (self._facts, self._again):
                try:
                    found[heading].extend(make())
                except ROW_ERRORS as error:
                    self.missing.append(f"{heading.lower()}: {why_not(error)}")
        found[MISSING] = [Missing(self.missing)] if self.missing else []
        return found

    def _words(self) -> Iterator[Words]:
        """All sentences, those of a data set under its name."""
        names = [labels.dataset_label(str(name)) for name in self._datasets()]
        said: dict[str, list[str]] = {name: [] for name in ("", *names)}
        for line in sentences(self.rows, getattr(self.module, "FINDINGS", ())):
            name = next((name for name in names if line.startswith(f"{name}: ")), "")
            said[name].append(line.removeprefix(f"{name}: ") if name else line)
        for name, lines in said.items():
            if lines:
                yield Words([line[:1].upper() + line[1:] if name else line for line in lines], name)

    def _datasets(self) -> list[str]:
        return list(dict.fromkeys(self.rows["dataset"].dropna())) if "dataset" in self.rows.columns else []

    def _tables(self) -> Iterator[Table]:
        for table in self.module.TABLES:
            try:
                yield from filled_tables(table, self.rows)
            except ROW_ERRORS as error:
                self.missing.append(f"table {table.title!r}: {why_not(error)}")

    def _figures(self) -> Iterator[Drawing]:
        """Every declared figure that can be drawn; the others are listed as missing, with the reason."""
        for name, _, figure, problem in drawn_figures(self.module.FIGURES, self.view, self.rows):
            if figure is not None:
                shown = labels.describe(selection.factors_of(self.rows))
                yield drawing(figure, f"figure {name}: {shown}", self._certificates() if name == "bounds" else "")
                continue
            self.missing.append(f"figure {name}: {problem or self._lacking()}")

    def _lacking(self) -> str:
        """Why a part that needs arrays is not shown."""
        arrays = any((self.folder.path / "arrays").glob("[!.]*.npz"))
        return "this run has no rows or arrays for it" if arrays else "this run was kept without arrays"

    def _certificates(self) -> str:
        """What the certificates say, as a caption for the ladder of bounds."""
        finals = summarise(self.rows)
        chosen = finals[finals["metric"] == "certificate_gap"]
        whose = told_apart(finals, chosen)
        said = [f"{name}: {note}" if name else note for name, note in zip(whose, chosen["note"], strict=True) if note]
        return ". ".join(said)

    def _hardest(self) -> Iterator[Part]:
        found = list(hardest_points(self.view))
        if not found and any(name in ("bounds", "extremes") for name in self.module.FIGURES):
            self.missing.append(f"the hardest points: {self._lacking()}")
        yield from found

    def _claims(self) -> Iterator[Table]:
        preset = str(self.about.get("preset", ""))
        yield from claim_tables(list(claims_found(self.folder.experiment, summarise(self.rows), preset)))

    def _facts(self) -> Iterator[Part]:
        thumbnail = data_thumbnail(self.view)
        if thumbnail is not None:
            yield drawing(thumbnail, "some of the data")
        else:
            self.missing.append("images of the data: this run kept none")
        yield Facts([(name, value) for name, value in self._pairs() if value])

    def _pairs(self) -> Iterator[tuple[str, str]]:
        about, shared = self.about, selection.factors_of(self.rows) if len(self.rows) else {}
        git, versions = about.get("git") or {}, about.get("packages", {})
        seeds = sorted({int(seed) for seed in self.rows["seed"].dropna()}) if "seed" in self.rows.columns else []
        yield "experiment", self.folder.experiment
        yield "data", ", ".join(labels.dataset_label(str(name)) for name in self._datasets())
        yield "seeds", ", ".join(map(str, seeds))
        yield "shared by all rows", labels.describe({n: v for n, v in shared.items() if n not in ("dataset", "seed")})
        yield "preset", str(about.get("preset", ""))
        yield "jobs", f"{len(self.folder.done())} done"
        yield "started", str(about.get("started", ""))[:19].replace("T", " ")
        yield "from start to finish", _duration(about.get("started"), self.finished)
        yield "commit", f"{str(git.get('commit', ''))[:10]}{', with changes' if git.get('dirty') else ''}"
        yield "machine", str(about.get("platform", ""))
        device, threads = (str(about.get(name, "") or "") for name in ("device", "threads"))
        yield "device", f"{device}, threads per job: {threads}" if threads else device
        known = ("torch", "pyro-ppl", "numpy")
        software = [f"{name} {versions[name]}" for name in known if versions.get(name)]
        yield "software", ", ".join([f"Python {about.get('python', '?')}", *software])
        yield "note", str(about.get("note", ""))

    def _again(self) -> Iterator[Part]:
        """The command, the configuration and the checksums."""
        yield Code(command_again(self.folder, self.about))
        yield Code(self.folder.read("config.yaml").decode("utf-8", "replace"), "config.yaml")
        data = self.about.get("data", {}).items()
        if sums := [f"{checksum}  {name}: {file}" for name, files in data for file, checksum in files.items()]:
            yield Code("\n".join(sums), "checksums of the data (SHA-256)")
        if self.kept:
            text = "\n".join(f"{checksum}  {file}" for file, checksum in self.kept.items())
            yield Code(text, "checksums of the run's files (SHA-256)")


def _duration(started: Any, finished: str) -> str:
    """From start to finish; empty where either is not known."""
    try:
        start, end = (datetime.fromisoformat(str(when)) for when in (started, finished))
        return duration((end - start).total_seconds())
    except (TypeError, ValueError):
        return ""


def _differences(runs: Sequence[_Run], names: Sequence[str]) -> Table:
    """Settings in which runs differ, and facts that do."""
    settings = [dict(_flat(run.view.config)) | dict(run._pairs()) for run in runs]
    every = list(dict.fromkeys(name for found in settings for name in found))
    lines = [(name, *(found.get(name, "") for found in settings)) for name in every]
    lines = [line for line in lines if len(set(line[1:])) > 1]
    return Table("Settings and facts in which the runs differ", ["", *names], lines, texts=names)


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Settings by name, those of nested ones with dots."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
