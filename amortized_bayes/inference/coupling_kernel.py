r"""Affine couplings with networks of a point's own: draws, path gradients and Adam in a C++ kernel built by Inductor.

A point's networks are small, and there is one of them for each point: as batches of matrix products they read and write
everything from memory several times a step. Here one point after the other passes through all layers, with what it
needs in the cache. Along with the draw :math:`z_K` goes :math:`\delta_k = \nabla_{z_k} \log q_k(z_k)`, which the path
gradient takes and which needs no way back: with :math:`(a, b) \mapsto (a, b e^{s(a)} + t(a))`,

.. math::
    \delta'_b = \delta_b e^{-s}, \qquad \delta'_a = \delta_a - \nabla_a \left[ t(a) \cdot \delta'_b +
    s(a) \cdot (b \delta_b + 1) \right], \qquad \delta_0 = -\epsilon / \sigma,

where b, :math:`\delta` and :math:`\delta'` are held (Vaitl, Nicoli, Nakajima & Kessel, *Path-Gradient Estimators for
Continuous Normalizing Flows*, ICML 2022, and for couplings *Fast and Unified Path Gradient Estimators for Normalizing
Flows*, ICLR 2024). Then :math:`\nabla_{z_K} \log p - \delta_K` is pulled back through the layers.

Numbers are float32. Weights lie as torch has them, their rows filled up with zeros to a multiple of 16.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

__all__ = ["coupling_kernel"]

logger = logging.getLogger(__name__)


@functools.cache
def coupling_kernel() -> Callable[..., None] | None:
    """The kernel, or ``None`` where it cannot be built; why is said once.

    Its arguments are those of ``kernel`` in the source: tensors for pointers, each contiguous, and numbers.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if not pick_vec_isa():
        return None
    kinds = ["const int64_t*", *["const float*"] * 6, *["float*"] * 8, *["int64_t"] * 6]
    try:
        return CppPythonBindingsCodeCache.load_pybinding(kinds, SOURCE)
    except Exception as error:  # the compiler's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("couplings of single points run without their kernel, which is slower: %s", reason)
        return None


SOURCE = r"""
#include <torch/csrc/inductor/cpp_prefix.h>
#include <cmath>
#include <cstring>
#include <vector>

using Vec = at::vec::Vectorized<float>;
using at::vec::fmadd;

constexpr int64_t W = Vec::size();
constexpr int TALL = W >= 16 ? 10 : 5;  // rows of a tile: with two vectors each, sums that fit the registers

static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// out[r][n] = start[n] + sum_k x[r * row + k * step] * w[k][n] for R rows and V vectors of columns.
template <int R, int V>
static inline void tile(int64_t depth, const float* x, int64_t row, int64_t step, const float* w, int64_t width,
                        const float* start, float* out) {
    Vec sum[R][V];
    #pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][v] = start ? Vec::loadu(start + v * W) : Vec(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        Vec line[V];
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) line[v] = Vec::loadu(w + k * width + v * W);
        #pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const Vec a(x[r * row + k * step]);
            #pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] = fmadd(a, line[v], sum[r][v]);
        }
    }
    #pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][v].store(out + r * width + v * W);
}

template <int R>
static void band(int64_t columns, int64_t depth, const float* x, int64_t row, int64_t step, const float* w,
                 const float* start, float* out) {
    int64_t n = 0;
    for (; n + 2 * W <= columns; n += 2 * W)
        tile<R, 2>(depth, x, row, step, w + n, columns, start ? start + n : start, out + n);
    for (; n < columns; n += W) tile<R, 1>(depth, x, row, step, w + n, columns, start ? start + n : start, out + n);
}

template <int R>
static int64_t bands(int64_t r, int64_t rows, int64_t columns, int64_t depth, const float* x, int64_t row, int64_t step,
                     const float* w, const float* start, float* out) {
    for (; r + R <= rows; r += R) band<R>(columns, depth, x + r * row, row, step, w, start, out + r * columns);
    return r;
}

static void product(int64_t rows, int64_t columns, int64_t depth, const float* x, int64_t row, int64_t step,
                    const float* w, const float* start, float* out) {
    int64_t r = bands<TALL>(0, rows, columns, depth, x, row, step, w, start, out);
    r = bands<6>(r, rows, columns, depth, x, row, step, w, start, out);
    r = bands<4>(r, rows, columns, depth, x, row, step, w, start, out);
    r = bands<2>(r, rows, columns, depth, x, row, step, w, start, out);
    bands<1>(r, rows, columns, depth, x, row, step, w, start, out);
}

// The transpose of w (rows, columns padded): (columns padded, rows padded).
static void transpose(const float* w, int64_t rows, int64_t columns, float* out) {
    const int64_t from = padded(columns), to = padded(rows), whole = rows / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16)
        for (int64_t j = 0; j < from; j += 16)
            at::vec::transpose_mxn<float, 16, 16>(w + i * from + j, from, out + j * to + i, to);
    float last[16 * 16] = {};  // rows that are no whole block
    for (int64_t j = 0; j < from && whole < rows; j += 16) {
        for (int64_t i = whole; i < rows; i++)
            std::memcpy(last + (i - whole) * 16, w + i * from + j, 16 * sizeof(float));
        at::vec::transpose_mxn<float, 16, 16>(last, 16, out + j * to + whole, to);
    }
}

// Where things lie in the numbers of a point.
struct Layout {
    int64_t dim, layers, draws, split, rest, linears;
    std::vector<int64_t> size, weight, bias, input;  // of a layer's network; its inputs, hidden units among them
    int64_t layer = 0, whole, growth, slope, moved, layer_kept = 0, kept, widest = 0, largest = 0;

    explicit Layout(const int64_t* sizes)
        : dim(sizes[0]), layers(sizes[1]), draws(sizes[2]), split(dim / 2), rest(dim - split), linears(sizes[3]),
          size(sizes + 4, sizes + 5 + sizes[3]) {
        for (int64_t j = 0; j < linears; j++) {
            weight.push_back(layer);
            bias.push_back(layer + size[j + 1] * padded(size[j]));
            layer = bias[j] + padded(size[j + 1]);
            input.push_back(layer_kept);
            layer_kept += draws * padded(size[j]);
            widest = std::max({widest, padded(size[j]), padded(size[j + 1])});
            largest = std::max(largest, padded(size[j]) * padded(size[j + 1]));
        }
        whole = layers * layer + 2 * padded(dim);
        growth = layer_kept;
        slope = growth + draws * rest;
        moved = slope + draws * rest;
        layer_kept = padded(moved + draws * rest);
        kept = layers * layer_kept + 2 * draws * dim;
    }
    int64_t scratch() const { return whole + largest + 2 * draws * widest; }
};

static void flip(float* rows, int64_t draws, int64_t dim) {
    for (int64_t s = 0; s < draws; s++) std::reverse(rows + s * dim, rows + (s + 1) * dim);
}

// The gradient with respect to a network's first inputs, in `g`, of outputs whose gradient is there; with `own`, also
// that of its weights. `other` is as large as `g`; what is returned is the one of both that has the result.
static float* pull(const Layout& at, const float* p, const float* kept, float* g, float* other, float* own) {
    for (int64_t j = at.linears - 1; j >= 0; j--) {
        const int64_t in = at.size[j], out = at.size[j + 1];
        const float* x = kept + at.input[j];
        if (own) {
            product(out, padded(in), at.draws, g, 1, padded(out), x, nullptr, own + at.weight[j]);
            for (int64_t n = 0; n < padded(out); n += W) {
                Vec sum(0.0f);
                for (int64_t s = 0; s < at.draws; s++) sum = sum + Vec::loadu(g + s * padded(out) + n);
                sum.store(own + at.bias[j] + n);
            }
        }
        product(at.draws, padded(in), out, g, padded(out), 1, p + at.weight[j], nullptr, other);
        if (j > 0) {  // ELU has the slope 1 or 1 + its value
            for (int64_t n = 0; n < at.draws * padded(in); n += W) {
                const Vec value = Vec::loadu(x + n), gradient = Vec::loadu(other + n);
                (gradient * at::vec::minimum(value + Vec(1.0f), Vec(1.0f))).store(other + n);
            }
        }
        std::swap(g, other);
    }
    return g;
}

// Draw z and the gradient of log q of it, both (draws, dim), at the end of `kept`.
static void draw(const Layout& at, const float* p, const float* loc, const float* scale, const float* noise,
                 float* kept, float* scratch, float bound) {
    float* turned = scratch + at.whole;
    float *out = turned + at.largest, *other = out + at.draws * at.widest;
    float *state = kept + at.layers * at.layer_kept, *delta = state + at.draws * at.dim;
    const float *shift = p + at.layers * at.layer, *log_scale = shift + padded(at.dim);
    for (int64_t d = 0; d < at.dim; d++) {
        const float sigma = scale[d] * std::exp(log_scale[d]), mean = loc[d] + scale[d] * shift[d];
        for (int64_t s = 0; s < at.draws; s++) {
            state[s * at.dim + d] = mean + sigma * noise[s * at.dim + d];
            delta[s * at.dim + d] = -noise[s * at.dim + d] / sigma;
        }
    }
    for (int64_t l = 0; l < at.layers; l++, p += at.layer, kept += at.layer_kept) {
        for (int64_t s = 0; s < at.draws; s++) {
            float* first = kept + at.input[0] + s * padded(at.split);
            std::memcpy(first, state + s * at.dim, at.split * sizeof(float));
            std::fill(first + at.split, first + padded(at.split), 0.0f);
        }
        for (int64_t j = 0; j < at.linears; j++) {
            const int64_t in = at.size[j], width = padded(at.size[j + 1]);
            float* to = j + 1 < at.linears ? kept + at.input[j + 1] : out;
            transpose(p + at.weight[j], at.size[j + 1], in, turned);
            product(at.draws, width, in, kept + at.input[j], padded(in), 1, turned, p + at.bias[j], to);
            for (int64_t n = 0; j + 1 < at.linears && n < at.draws * width; n += W) {
                const Vec x = Vec::loadu(to + n);
                const Vec below = at::vec::minimum(x, Vec(0.0f)).exp() - Vec(1.0f);
                (at::vec::maximum(x, Vec(0.0f)) + below).store(to + n);
            }
        }
        const int64_t width = padded(2 * at.rest);
        for (int64_t s = 0; s < at.draws; s++) {
            float *b = state + s * at.dim + at.split, *db = delta + s * at.dim + at.split, *row = out + s * width;
            for (int64_t n = 0; n < at.rest; n += W) {
                const int64_t count = std::min(W, at.rest - n), place = s * at.rest + n;
                const Vec clipped = (Vec::loadu(row + at.rest + n, count) / Vec(bound)).tanh();
                const Vec grown = (Vec(bound) * clipped).exp(), slope = Vec(1.0f) - clipped * clipped;
                const Vec before = Vec::loadu(b + n, count), was = Vec::loadu(db + n, count), now = was / grown;
                grown.store(kept + at.growth + place, count);
                slope.store(kept + at.slope + place, count);
                before.store(kept + at.moved + place, count);
                fmadd(before, grown, Vec::loadu(row + n, count)).store(b + n, count);
                now.store(db + n, count);
                now.store(row + n, count);
                (fmadd(before, was, Vec(1.0f)) * slope).store(row + at.rest + n, count);
            }
            std::fill(row + 2 * at.rest, row + width, 0.0f);
        }
        const float* pulled = pull(at, p, kept, out, other, nullptr);
        for (int64_t s = 0; s < at.draws; s++)
            for (int64_t d = 0; d < at.split; d++) delta[s * at.dim + d] -= pulled[s * padded(at.split) + d];
        if (l + 1 < at.layers || at.layers % 2 == 0) {  // an odd number of flips is undone at the end
            flip(state, at.draws, at.dim);
            flip(delta, at.draws, at.dim);
        }
    }
}

// The gradient `own` of minus the mean of log p - log q, from `slope`, (draws, dim), of log p with respect to z.
static void gradient(const Layout& at, const float* p, const float* scale, const float* noise, const float* slope,
                     int64_t stride, const float* kept, float* own) {
    float *out = own + at.whole + at.largest, *other = out + at.draws * at.widest;
    const float* delta = kept + at.layers * at.layer_kept + at.draws * at.dim;
    std::vector<float> g(at.draws * at.dim);
    for (int64_t s = 0; s < at.draws; s++)
        for (int64_t d = 0; d < at.dim; d++)
            g[s * at.dim + d] = (delta[s * at.dim + d] - slope[s * stride + d]) / at.draws;
    for (int64_t l = at.layers - 1; l >= 0; l--) {
        if (l + 1 < at.layers || at.layers % 2 == 0) flip(g.data(), at.draws, at.dim);
        const float *of_layer = kept + l * at.layer_kept, *weights = p + l * at.layer;
        const int64_t width = padded(2 * at.rest);
        for (int64_t s = 0; s < at.draws; s++) {
            float *gb = g.data() + s * at.dim + at.split, *row = out + s * width;
            for (int64_t n = 0; n < at.rest; n++) {
                const int64_t place = s * at.rest + n;
                const float grown = of_layer[at.growth + place] * gb[n];
                row[n] = gb[n];
                row[at.rest + n] = grown * of_layer[at.moved + place] * of_layer[at.slope + place];
                gb[n] = grown;
            }
            std::fill(row + 2 * at.rest, row + width, 0.0f);
        }
        const float* pulled = pull(at, weights, of_layer, out, other, own + l * at.layer);
        for (int64_t s = 0; s < at.draws; s++)
            for (int64_t d = 0; d < at.split; d++) g[s * at.dim + d] += pulled[s * padded(at.split) + d];
    }
    float *shift = own + at.layers * at.layer, *log_scale = shift + padded(at.dim);
    std::fill(shift, own + at.whole, 0.0f);
    const float* moved = p + at.layers * at.layer + padded(at.dim);
    for (int64_t s = 0; s < at.draws; s++)
        for (int64_t d = 0; d < at.dim; d++) {
            const float of_mean = g[s * at.dim + d] * scale[d];
            shift[d] += of_mean;
            log_scale[d] += of_mean * noise[s * at.dim + d] * std::exp(moved[d]);
        }
}

static float length(const float* g, int64_t count) {
    Vec sum[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
    int64_t n = 0;
    for (; n + 4 * W <= count; n += 4 * W)
        for (int v = 0; v < 4; v++) {
            const Vec x = Vec::loadu(g + n + v * W);
            sum[v] = fmadd(x, x, sum[v]);
        }
    for (; n < count; n += W) {
        const Vec x = Vec::loadu(g + n);
        sum[0] = fmadd(x, x, sum[0]);
    }
    const auto add = [](Vec& a, Vec& b) { return a + b; };
    return std::sqrt(at::vec::vec_reduce_all<float>(add, sum[0] + sum[1] + sum[2] + sum[3]));
}

// 1 / sqrt(x), x >= 0, to within 2 units in the last place.
static inline Vec inverse_root(const Vec& x) {
    #if defined(CPU_CAPABILITY_AVX512)
    const Vec y = _mm512_rsqrt14_ps(x);
    return y * fmadd(x * y, y * Vec(-0.5f), Vec(1.5f));
    #elif defined(CPU_CAPABILITY_AVX2)
    const Vec y = _mm256_rsqrt_ps(x);
    return y * fmadd(x * y, y * Vec(-0.5f), Vec(1.5f));
    #else
    return x.rsqrt();
    #endif
}

struct Numbers {  // of one step: of Adam (root is that of the bias of the second moment), and what is beside it
    float rate, beta1, beta2, root, growth, memory, bound;
};

static void adam(const Numbers& at, float factor, float share, int64_t count, const float* g, float* p, float* m,
                 float* v) {
    const Vec rate(at.rate * share * at.root), one(1.0f - at.beta1), two(at.beta2), three(1.0f - at.beta2);
    const Vec least(1e-16f * at.root * at.root);  // under the root; to numbers that have a gradient it is nothing
    for (int64_t n = 0; n < count; n += W) {
        const Vec x = factor > 0.0f ? Vec::loadu(g + n) * Vec(factor) : Vec(0.0f), old = Vec::loadu(m + n);
        const Vec mean = fmadd(x - old, one, old), square = fmadd(x * x, three, Vec::loadu(v + n) * two);
        mean.store(m + n);
        square.store(v + n);
        (Vec::loadu(p + n) - rate * mean * inverse_root(square + least)).store(p + n);
    }
}

static void climb(const Layout& at, const Numbers& step, const float* g, float* p, float* m, float* v, float* usual,
                  float* skipped) {
    const float norm = length(g, at.whole);
    const bool finite = std::isfinite(norm), known = *usual > 0.0f;
    const float longest = known ? step.growth * *usual : norm;
    if (!finite) *skipped += 1.0f;
    if (finite) *usual = known ? *usual + step.memory * (std::min(norm, longest) - *usual) : norm;
    const float factor = finite ? std::min(1.0f, longest / std::max(norm, 1e-30f)) : 0.0f;
    for (int64_t l = 0; l < at.layers; l++)
        for (int64_t j = 0; j < at.linears; j++) {
            const int64_t w = l * at.layer + at.weight[j], b = l * at.layer + at.bias[j];
            // All weights of a unit move at once, so that wide layers take less.
            adam(step, factor, std::min(1.0f, 32.0f / at.size[j]), b - w, g + w, p + w, m + w, v + w);
            adam(step, factor, 1.0f, padded(at.size[j + 1]), g + b, p + b, m + b, v + b);
        }
    const int64_t base = at.layers * at.layer;
    adam(step, factor, 1.0f, at.whole - base, g + base, p + base, m + base, v + base);
}

// For all points, with `move`, a step of Adam in `p` with moments m, v, from the slope of log p at the last draws;
// then, with `go`, the next draws z (draws, points, dim), while the point's numbers are in the cache. What the way back
// needs is in `kept`; `usual` is the usual length of a point's gradient, `skipped` counts those that were not finite.
extern "C" void kernel(const int64_t* sizes, const float* numbers, const float* loc, const float* scale,
                       const float* noise, const float* next, const float* slope, float* z, float* p, float* m,
                       float* v, float* kept, float* usual, float* skipped, float* scratch, int64_t points,
                       int64_t noise_stride, int64_t scratch_size, int64_t move, int64_t go, int64_t threads) {
    const Numbers step{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]};
    const Layout at(sizes);
    if (at.scratch() > scratch_size) throw std::runtime_error("too little scratch");
    #pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < points; i++) {
        float* own = scratch;
        #ifdef _OPENMP
        own += omp_get_thread_num() * scratch_size;
        #endif
        const float *loc_ = loc + i * at.dim, *scale_ = scale + i * at.dim;
        float *p_ = p + i * at.whole, *kept_ = kept + i * at.kept;
        if (move) {
            gradient(at, p_, scale_, noise + i * noise_stride, slope + i * at.dim, points * at.dim, kept_, own);
            climb(at, step, own, p_, m + i * at.whole, v + i * at.whole, usual + i, skipped + i);
        }
        if (go) {
            draw(at, p_, loc_, scale_, next + i * noise_stride, kept_, own, step.bound);
            const float* state = kept_ + at.layers * at.layer_kept;
            for (int64_t s = 0; s < at.draws; s++)
                std::memcpy(z + (s * points + i) * at.dim, state + s * at.dim, at.dim * sizeof(float));
        }
    }
}
"""
