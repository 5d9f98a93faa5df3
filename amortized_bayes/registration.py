"""Modules whose parameters ``pyro.infer.SVI`` moves.

Pyro's own SVI moves what ``pyro.param`` statements name while it listens, and nothing else. A ``PyroModule`` makes such
a statement whenever an attribute is read, and keeps its parameters in the global param store under names that another
module of the same class shares: a second guide of that class would never move, and a fit of ours would find the
parameters of every guide that was ever run. So our modules make the statements only while somebody listens (as SVI
does, by a trace of parameters alone), each run anew, and take a name over from a module that has it. Everywhere else
they are plain modules, and the param store stays as it is.
"""

from __future__ import annotations

import weakref
from typing import Any

import pyro
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn
from torch.distributions import constraints

from amortized_bayes.errors import ProgramError

__all__ = ["Registered", "register"]


class Registered(nn.Module):
    """A module whose parameters Pyro's own SVI sees, and moves, whenever it calls the module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the ``pyro.param`` statements, where they are listened to, and run the module."""
        register(self)
        return super().__call__(*args, **kwargs)


def register(module: nn.Module) -> None:
    """Make a ``pyro.param`` statement for each parameter of a module that requires a gradient, if somebody listens.

    A parameter is called by its class and path, as in ``Amortized.encoder.1.0.weight``.

    Raises:
        ValueError: the param store has other values under such a name, loaded from a file for example.
    """
    listener = next((h for h in _PYRO_STACK if isinstance(h, TraceMessenger) and h.param_only), None)
    if listener is None:
        return
    store = pyro.get_param_store()
    for path, parameter in module.named_parameters():
        if parameter.requires_grad:
            name = store.param_name(parameter)
            if name is None:
                name = _free_name(f"{type(module).__name__}.{path}", listener)
                _enter(store, name, parameter)
            _state(name, parameter)


def _free_name(name: str, listener: TraceMessenger) -> str:
    """The name, or with a number where another module of the class has it in the same run."""
    module, path = name.split(".", 1)
    numbered, count = name, 1
    while numbered in listener.trace:
        numbered, count = f"{module}_{count}.{path}", count + 1
    return numbered


def _enter(store: ParamStoreDict, name: str, parameter: nn.Parameter) -> None:
    """Enter a parameter itself: the store's own methods would copy one that is not contiguous."""
    if name in store:
        before = store._params[name]
        if not isinstance(before, nn.Parameter):
            raise ProgramError(
                f"the param store has other values for {name!r}; copy them by load_state_dict, then call "
                "pyro.clear_param_store() before the fit"
            )
        store._param_to_name.pop(before, None)
    store._params[name], store._constraints[name] = parameter, constraints.real
    store._param_to_name[parameter] = name


def _state(name: str, parameter: nn.Parameter) -> None:
    """The statement itself. Its value is an alias: a parameter with the attribute that Pyro sets cannot be pickled."""
    value: Any = parameter.detach()
    value.unconstrained = weakref.ref(parameter)
    effectful(lambda *_, **__: value, type="param")(
        name, parameter, constraint=constraints.real, event_dim=None, name=name
    )
