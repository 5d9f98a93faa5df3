"""Names of classes in tables and figures, for data sets that have them."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from amortized_bayes.data.catalogue import DATASETS
from amortized_bayes.labels import is_missing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["class_name", "with_class_names"]


def class_name(dataset: str, label: Any) -> str:
    """The name of a class; its number where the data set has no names for its classes.

    Example:
        >>> class_name("fashion-mnist", 9), class_name("mnist", 9)
        ('ankle boot', '9')
    """
    names = DATASETS[dataset].classes if dataset in DATASETS else ()
    return names[int(label)] if isinstance(label, Integral) and 0 <= int(label) < len(names) else str(label)


def with_class_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose factor ``label`` is the name of the class, where any data set among them has names."""
    if not {"label", "dataset"} <= set(rows.columns):
        return rows
    if not any(DATASETS[name].classes for name in rows["dataset"].dropna().unique() if name in DATASETS):
        return rows
    pairs = zip(rows["dataset"], rows["label"], strict=True)
    named: Any = [None if is_missing(label) else class_name(dataset, label) for dataset, label in pairs]
    return rows.assign(label=named)
