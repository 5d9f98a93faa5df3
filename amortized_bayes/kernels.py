"""Matrix products of a captured graph by the library that is quickest for them on this processor."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor, fx

__all__ = ["mkl_lags", "multiply_by_onednn"]

aten = torch.ops.aten
MIN_PRODUCT = 2**22
"""Multiplications below which a matrix product stays with MKL: oneDNN takes 12 microseconds longer to start."""


@functools.cache
def mkl_lags() -> bool:
    """Whether oneDNN may be faster than MKL, which was seen to leave AVX-512 unused on processors by AMD."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:
        processor = platform.processor()
    return "AuthenticAMD" in processor and torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiply_by_onednn(graph: fx.Graph, *, compiled: bool) -> None:
    """Give the large float32 matrix products on a CPU to oneDNN, which has none in float64."""
    for node in list(graph.nodes):
        if node.target is aten.mm.default:
            bias, (left, right) = None, node.args
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, left, right = node.args
        else:
            continue
        if not _suits_onednn(bias, left, right):
            continue
        with graph.inserting_before(node):
            if compiled and not left.meta["val"].is_contiguous():  # Inductor writes it so where it is made
                left = graph.call_function(aten.clone.default, (left,), {"memory_format": torch.contiguous_format})
            transposed = graph.call_function(aten.t.default, (right,))
            product = graph.call_function(torch.ops.amortized_bayes.product.default, (left, transposed, bias))
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def _suits_onednn(bias: fx.Node | None, left: fx.Node, right: fx.Node) -> bool:
    values = [v for v in (left.meta.get("val"), right.meta.get("val")) if isinstance(v, Tensor)]
    plain = all(v.dtype == torch.float32 and v.device.type == "cpu" for v in values)
    dense = all(v.is_contiguous() or v.t().is_contiguous() for v in values)
    if len(values) < 2 or not plain or not dense:
        return False
    (m, k), (_, n) = values[0].shape, values[1].shape
    return m * k * n >= MIN_PRODUCT and (bias is None or bias.meta["val"].shape == (n,))


# An operator of our own around oneDNN's, which Inductor takes for weights that never change.
_library = torch.library.Library("amortized_bayes", "FRAGMENT")
_library.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("product", lambda x, w, b: torch.ops.mkldnn._linear_pointwise.default(x, w, b, "none", [], ""), "CPU")
torch.library.register_fake("amortized_bayes::product", lambda x, w, b: x.new_empty(len(x), len(w)), lib=_library)
