"""Import torchvision beside a CPU-only torch.

The registry's torchvision wheel is linked against torch with CUDA. Beside a CPU-only torch its compiled part cannot be
loaded, so the operators ``torchvision::nms`` and ``torchvision::qnms`` are never declared, and ``import torchvision``
fails where it registers their shape functions: ``operator torchvision::nms does not exist``. Data sets need neither
operator. So where, and only where, the import fails in this way, the missing schemas are declared here and the import
is tried once more.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["import_torchvision_datasets"]

SCHEMA = "{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_kept_alive: list[Any] = []  # torch drops what a Library declared when that Library is collected


def import_torchvision_datasets() -> ModuleType:
    """Import ``torchvision.datasets``, declaring the schemas of ``nms`` and ``qnms`` first if that is what it lacks.

    Raises ``ImportError`` if torchvision is not installed, ``RuntimeError`` if the import fails in another way.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    _forget_half_imported()
    _declare_missing_schemas()
    return importlib.import_module("torchvision.datasets")


def _forget_half_imported() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


def _declare_missing_schemas() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(SCHEMA.format(name=name))
    _kept_alive.append(library)
