"""The device that a command runs on."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["machine"]


def machine(device: str) -> tuple[torch.device, dict[str, Any]]:
    """The device to run on, and what ``environment.json`` says of it.

    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for --device cuda, got none")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu"
    return chosen, {"device": name, "threads": torch.get_num_threads()}
