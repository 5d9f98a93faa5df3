"""Text that is valid in a page: characters that HTML or XML cannot hold are shown as U+FFFD."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["clean"]

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(value: Any) -> Any:
    r"""Text without control characters and unpaired surrogates; other values, and markup, are returned unchanged.

    Example:
        >>> clean("a\x1b[31mb")
        'a�[31mb'
    """
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value
