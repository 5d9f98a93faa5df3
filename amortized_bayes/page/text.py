"""Texts that may stand in a page: what neither HTML nor XML can hold is shown as U+FFFD."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["clean"]

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(value: Any) -> Any:
    r"""A text without control characters and halves of surrogate pairs; other values, and markup, as they are.

    Example:
        >>> clean("a\x1b[31mb")
        'a�[31mb'
    """
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value
