"""How a model is called: which arguments hold a row per data point, which plate holds the points."""

from amortized_bayes.calls.binding import Bound, PerPointNames, bind_points, check_several, named_rows, with_index
from amortized_bayes.calls.trials import MOST_NUMBERS, only_plate

__all__ = [
    "MOST_NUMBERS",
    "Bound",
    "PerPointNames",
    "bind_points",
    "check_several",
    "named_rows",
    "only_plate",
    "with_index",
]
