"""Dropout and batch norm in training mode, noticed while a program runs, whoever holds the modules.

Noise of dropout is drawn by no ``pyro.sample``, and batch norm makes of each point what its neighbours say: neither is
part of the density of a point. Where that is measured, both are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["in_evaluation_mode"]

DROPOUT = {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"} | {f"dropout{d}d" for d in (1, 2, 3)}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
ATTENTION = {"multi_head_attention_forward": 10, "scaled_dot_product_attention": 4}
"""Place of the probability of dropout among the arguments."""
WHY = {
    "dropout": "whose noise is no part of log {}",
    "batch norm": "by which log {} of a point changes with its neighbours",
}


@contextmanager
def in_evaluation_mode(what: str, density: str) -> Iterator[None]:
    """Refuse dropout and batch norm in training mode that are called meanwhile.

    What else is raised then gives way: it may be said of what they do.

    Args:
        what: the program, in words.
        density: its density, in words.

    Raises:
        ValueError: they were.
    """
    calls = _Calls()
    try:
        with calls:
            yield
    finally:
        if calls.found is not None:
            raise ValueError(
                f"expected {what} in evaluation mode, got {calls.found} in training mode, "
                f"{WHY[calls.found].format(density)}: call .eval() on its modules"
            ) from None


class _Calls(TorchFunctionMode):
    """Which of them was called first."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        self.found = self.found or _kind(getattr(func, "__name__", "").rstrip("_"), args, named)
        return func(*args, **named)


def _kind(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    """What is in training mode in a call of a function of torch."""

    def given(keys: tuple[str, ...], place: int, default: Any) -> Any:
        return next((named[key] for key in keys if key in named), args[place] if len(args) > place else default)

    if name in DROPOUT:
        return "dropout" if given(("p",), 1, 0.5) and given(("training", "train"), 2, True) else None
    if name == "rrelu":
        return "dropout" if given(("training",), 3, False) else None
    if name in ATTENTION:
        return "dropout" if given(("dropout_p",), ATTENTION[name], 0.0) and named.get("training", True) else None
    if name in RECURRENT:
        place = next((place for place, value in enumerate(args) if isinstance(value, float)), -1)
        return "dropout" if place >= 0 and args[place] and args[place + 1] else None
    if name == "batch_norm":  # without running statistics it has no other mode; torch and its functional differ
        mean = given(("running_mean",), 1 if "training" in named else 3, None)
        return "batch norm" if given(("training",), 5, False) and mean is not None else None
    return None
