r"""Sums of Bernoulli log probabilities and their gradients in one pass, by a C++ kernel that Inductor builds.

With logits l and targets t,

.. math::
    \sum_p \log p(t_p \mid l_p) = \sum_p \big(t_p l_p - \max(l_p, 0)\big) - \log \prod_p \big(1 + e^{-|l_p|}\big),
    \qquad \frac{\partial}{\partial l_p} = t_p - \sigma(l_p).

Both need the same exponential, and one logarithm serves 64 factors, each between 1 and 2: log1p of each takes twice as
long as all the rest. Errors are those of float32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["kernel_available"]

logger = logging.getLogger(__name__)


def kernel_available() -> bool:
    """Whether the kernel could be built here; if not, say why, once."""
    return _kernel() is not None


@functools.cache
def _kernel() -> Callable[..., None] | None:
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if not pick_vec_isa():
        return None
    floats = [*["const float*"] * 5, *["float*"] * 3]
    try:
        return CppPythonBindingsCodeCache.load_pybinding([*floats, *["const int64_t"] * 6], SOURCE)
    except Exception as error:  # the compiler's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("Bernoulli likelihoods are compiled in parts, which is slower: %s", reason)
        return None


def _bernoulli(
    mean: Tensor, scale: Tensor | None, nodes: Tensor | None, target: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = _kernel()
    assert kernel is not None
    mean, target, upstream = mean.contiguous(), target.contiguous(), upstream.contiguous()
    total, of_mean, of_scale = _outputs(mean, scale, nodes, target, upstream)
    scaled = (mean, mean) if scale is None or nodes is None else (scale.contiguous(), nodes.contiguous())
    size, count = mean.shape[-1], 1 if nodes is None else len(nodes)
    rows, target_rows = mean.numel() // size, target.numel() // size
    sizes = (count, rows, target_rows, size, int(scale is not None), torch.get_num_threads())
    kernel(mean, *scaled, target, upstream, total, of_mean, of_scale, *sizes)
    return total, of_mean, of_scale


def _outputs(
    mean: Tensor, scale: Tensor | None, nodes: Tensor | None, target: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_scale = mean.new_empty(0 if scale is None else scale.shape)
    return mean.new_empty(upstream.shape[:-1]), mean.new_empty(mean.shape), of_scale


SOURCE = r"""
#include <torch/csrc/inductor/cpp_prefix.h>

using Vec = at::vec::Vectorized<float>;
using Int = at::vec::Vectorized<int32_t>;
using at::vec::fmadd;

// exp(-a) for a >= 0, to within 2 units in the last place (Cephes' expf); NaN stays NaN.
static inline Vec exp_of_minus(const Vec& a) {
    const Vec x = at::vec::minimum(a, Vec(87.0f)).neg();
    const Vec n = (x * Vec(1.44269504088896341f)).round();
    const Vec r = fmadd(n, Vec(2.12194440e-4f), fmadd(n, Vec(-0.693359375f), x));
    Vec p = fmadd(Vec(1.9875691500e-4f), r, Vec(1.3981999507e-3f));
    p = fmadd(p, r, Vec(8.3334519073e-3f));
    p = fmadd(p, r, Vec(4.1665795894e-2f));
    p = fmadd(p, r, Vec(1.6666665459e-1f));
    p = fmadd(p, r, Vec(5.0000001201e-1f));
    p = fmadd(p, r * r, r + Vec(1.0f));
    const Int power = (at::vec::convert_to_int_of_same_size(n) + Int(127)) << Int(23);  // the bits of 2^n
    return p * at::vec::cast<float, int32_t>(power);
}

template <bool scaled>
static void rows_of(const float* mean, const float* scale, const float* nodes, const float* target, const float* weight,
                    float* value, float* d_mean, float* d_scale, int64_t num_nodes, int64_t rows, int64_t target_rows,
                    int64_t size, int64_t threads) {
    constexpr int64_t width = Vec::size();
    constexpr int64_t per_log = 64;  // products of so many numbers of 1 to 2 stay below the largest float
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        const float* t = target + (row % target_rows) * size;
        for (int64_t first = 0; first < size; first += per_log * width) {
            const int64_t stop = std::min(size, first + per_log * width);
            for (int64_t i = 0; i < num_nodes; i++) {
                const Vec w(weight[i * rows + row]), node(scaled ? nodes[i] : 0.0f);
                Vec product(1.0f), sum(0.0f);
                for (int64_t at = first; at < stop; at += width) {
                    const int64_t count = std::min(width, stop - at), place = row * size + at;
                    const Vec x = Vec::loadu(t + at, count);
                    Vec logit = Vec::loadu(mean + place, count);
                    if (scaled) logit = fmadd(node, Vec::loadu(scale + place, count), logit);
                    const Vec small = exp_of_minus(logit.abs());
                    const Vec whole = small + Vec(1.0f);
                    const Vec share = Vec(1.0f) / whole;
                    const Vec sigmoid = Vec::blendv(small * share, share, logit >= Vec(0.0f));
                    const Vec gradient = (sigmoid - x) * w;
                    sum = sum + (x * logit - at::vec::maximum(logit, Vec(0.0f)));
                    product = product * (count == width ? whole : Vec::set(Vec(1.0f), whole, count));
                    const Vec before = i == 0 ? Vec(0.0f) : Vec::loadu(d_mean + place, count);
                    (before + gradient).store(d_mean + place, count);
                    if (scaled) {
                        const Vec others = i == 0 ? Vec(0.0f) : Vec::loadu(d_scale + place, count);
                        fmadd(gradient, node, others).store(d_scale + place, count);
                    }
                }
                const Vec terms = sum - product.log();
                const float total = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, terms);
                value[i * rows + row] = (first ? value[i * rows + row] : 0.0f) + total;
            }
        }
    }
}

extern "C" void kernel(const float* mean, const float* scale, const float* nodes, const float* target,
                       const float* weight, float* value, float* d_mean, float* d_scale, const int64_t num_nodes,
                       const int64_t rows, const int64_t target_rows, const int64_t size, const int64_t scaled,
                       const int64_t threads) {
    (scaled ? rows_of<true> : rows_of<false>)(mean, scale, nodes, target, weight, value, d_mean, d_scale, num_nodes,
                                              rows, target_rows, size, threads);
}
"""

# Of logits mean (..., P), or mean + scale * nodes (I, ..., P), targets of their last dimensions and upstream (..., 1):
# the sums (...); upstream * (sigmoid(logits) - target), summed over nodes; and the same times the nodes, likewise.
_library = torch.library.Library("amortized_bayes", "FRAGMENT")
_library.define(
    "bernoulli(Tensor mean, Tensor? scale, Tensor? nodes, Tensor target, Tensor upstream) -> (Tensor, Tensor, Tensor)"
)
_library.impl("bernoulli", _bernoulli, "CPU")
torch.library.register_fake("amortized_bayes::bernoulli", _outputs, lib=_library)
