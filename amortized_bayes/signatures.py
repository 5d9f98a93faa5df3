"""What programs and calls take: parameters that a model has, and keywords that nobody knows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import nn

from amortized_bayes.refusals import nearest

__all__ = ["check_arguments", "check_keywords", "own_options", "signature_of", "takes"]

P = ParamSpec("P")
R = TypeVar("R")


def signature_of(program: Any) -> inspect.Signature | None:
    """Parameters of a program, ``None`` where Python does not know them."""
    try:
        return inspect.signature(program.forward if isinstance(program, nn.Module) else program)
    except (TypeError, ValueError):
        return None


def takes(program: Any, name: str) -> bool:
    """Whether a program has a parameter of this name."""
    signature = signature_of(program)
    return signature is not None and name in signature.parameters


def check_arguments(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], what: str = "model") -> None:
    """Refuse arguments that a program does not take; ``index`` need not be passed.

    Raises:
        TypeError: too many arguments, too few, or others.
    """
    signature = signature_of(program)
    if signature is None:
        return
    given = kwargs
    if "index" in signature.parameters and "index" not in kwargs and len(args) <= _place(signature, "index"):
        given = {**kwargs, "index": None}
    try:
        signature.bind(*args, **given)
    except TypeError as error:
        got = ", ".join([*(type(a).__name__ for a in args), *(f"{name}=" for name in kwargs)])
        raise TypeError(f"expected the arguments of the {what}, {signature}, got ({got}): {error}") from None


def check_keywords(call: Any, program: Any, kwargs: dict[str, Any], what: str = "model") -> None:
    """Refuse keyword arguments that are neither options of ``call`` nor arguments of the model.

    Raises:
        TypeError: such a keyword, or a parameter that the model needs and that has the name of an option.
    """
    signature = signature_of(program)
    if signature is None:
        return
    kinds = [p.kind for p in signature.parameters.values()]
    own = [n for n, p in inspect.signature(call).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    known = [n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in kwargs:
        if name not in known and inspect.Parameter.VAR_KEYWORD not in kinds:
            near = nearest(name, [*own, *known])
            meant = f"; did you mean {near}=?" if near else ""
            raise TypeError(
                f"{call.__name__} got {name}=, which is neither an option of {call.__name__} nor an argument of the "
                f"{what}{meant}"
            )
    for name, parameter in signature.parameters.items():
        if name in own and parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise TypeError(
                f"the {what}'s argument {name}= has the name of an option of {call.__name__}; expected it bound "
                f"before, functools.partial({what}, {name}=...)"
            )


def own_options(call: Callable[P, R]) -> Callable[P, R]:
    """A call of a model that refuses options by names that the model's own arguments have as well.

    Which of the two is meant nobody knows. An argument of the model that is passed by its position, or bound before by
    ``functools.partial``, is told apart.

    Raises:
        TypeError: such a keyword.
    """
    parameters = inspect.signature(call).parameters.values()
    first = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    also = ", and the guide's likewise" if any(p.name == "guide" for p in parameters) else ""

    @functools.wraps(call)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        model = args[0] if args else kwargs.get("model")
        for name in options.intersection(kwargs, _open_names(model, len(args) - first)):
            raise TypeError(
                f"{call.__name__} got {name}=, which is an option of {call.__name__} and an argument of the model as "
                f"well; expected the model's bound before, functools.partial(model, {name}=...){also}"
            )
        return call(*args, **kwargs)

    return told


def _open_names(program: Any, taken: int) -> set[str]:
    """Arguments that a program takes by name, beside the first ones and those that are bound to it."""
    signature, bound = signature_of(program), set()
    while isinstance(program, functools.partial):
        bound |= set(program.keywords)
        program = program.func
    parameters = [] if signature is None else list(signature.parameters.values())[max(0, taken) :]
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - bound


def _place(signature: inspect.Signature, name: str) -> int:
    """Position of a parameter, beyond all where there is none."""
    names = list(signature.parameters)
    return names.index(name) if name in names else len(names)
