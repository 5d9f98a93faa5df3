"""One face for whatever a call found: ``Comparison`` and ``Diagnosis`` are read, saved and handed on alike."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from torch import Tensor

from amortized_bayes.page.parts import Badge, Page, Part
from amortized_bayes.page.rendering import render, render_fragment
from amortized_bayes.reports import storage
from amortized_bayes.reports.contents import contents
from amortized_bayes.results.durable import write_atomically
from amortized_bayes.results.encoding import one_line

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Group", "Report", "Words"]


class Words(Protocol):
    """What was found, in words; ``str`` of it is them.

    ``reasons`` say why it abstains, one line each; it has none where it does not.
    """

    @property
    def words(self) -> str:
        """What was found."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it abstains."""
        ...

    @property
    def abstains(self) -> bool:
        """Whether no answer is given."""
        ...


class Group(NamedTuple):
    """Arrays of one group of a ``DataTree``.

    Args:
        arrays: by name, names of the dimensions and values.
        coordinates: labels along dimensions, by dimension.
    """

    arrays: Mapping[str, tuple[tuple[str, ...], Any]]
    coordinates: Mapping[str, Any] = {}


class Report(ABC):
    """What a call found: ``print`` it for words, ``summary()`` for means, ``to_frame()`` for all numbers.

    Subclasses are frozen dataclasses; ``KIND`` is their name in files.
    """

    KIND: ClassVar[str]

    @property
    @abstractmethod
    def verdict(self) -> Words:
        """What was found, in words."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """All numbers, as rows."""

    @abstractmethod
    def summary(self) -> pd.DataFrame:
        """The numbers to look at first."""

    @abstractmethod
    def plot(self) -> Figure:
        """Draw what was found."""

    @abstractmethod
    def _pack(self) -> tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]]:
        """Groups of tensors, and everything else as JSON can hold it."""

    @abstractmethod
    def _badges(self) -> Iterator[Badge]:
        """Judgements in a word or two."""

    @abstractmethod
    def _parts(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        """What a page shows besides verdict and summary, by name; a part that cannot be made raises."""

    @classmethod
    @abstractmethod
    def _unpack(cls, groups: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> Self:
        """Made from what ``_pack`` gave; groups without tensors are missing."""

    @abstractmethod
    def _groups(self) -> Mapping[str, Group]:
        """What ``to_xarray`` holds, by group."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but programs into one safetensors file with a JSON header.

        Raises:
            ValueError: the file cannot be written.
        """
        write_atomically(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """What ``save`` writes."""
        return storage.dump(self.KIND, *self._pack())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote; nothing is unpickled.

        Raises:
            ValueError: no such file, or one that is truncated, changed or of another kind.
        """
        groups, header = storage.load(cls.KIND, path)
        try:
            report = cls._unpack(groups, header)
            str(report)  # what cannot be told is none
        except Exception as error:  # its checksum holds, so another program wrote it: no closed list
            raise ValueError(f"{path} holds no {cls.KIND} that can be read: {one_line(error)}") from error
        return report

    def to_html(self, title: str = "") -> str:
        """One page about it: a whole HTML document that needs nothing from outside, and has no scripts.

        Args:
            title: its name; by default the kind of the report.

        Example:
            ``pathlib.Path("report.html").write_text(report.to_html("my model"), encoding="utf-8")``
        """
        return render(self._page(title))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return render_fragment(self._page(""))

    def _page(self, title: str) -> Page:
        sections = contents(self.verdict, self.summary, self._parts())
        return Page(title or self.KIND.capitalize(), repr(self), [""], [list(self._badges())], sections)

    def to_xarray(self) -> Any:
        """The arrays behind all numbers as an ``xarray.DataTree``, as ArviZ takes and returns them.

        Raises:
            ImportError: xarray is not installed.
        """
        try:
            xarray = import_module("xarray")
        except ImportError as error:
            raise ImportError("to_xarray needs xarray 2024.10 or later: pip install xarray") from error
        groups = {
            name: xarray.Dataset(dict(group.arrays), dict(group.coordinates)) for name, group in self._groups().items()
        }
        tree = xarray.DataTree.from_dict(groups)
        tree.attrs = {"kind": self.KIND, "verdict": str(self.verdict)}
        return tree

    def __str__(self) -> str:
        return str(self.verdict)
