// Queries anywhere, as in training: attention weights, and the first layer on attention-weighted values that are
// gathered, used and forgotten chunk by chunk. Each sum is made by one thread in a fixed order. Queries are visited in
// the order of their pixels, so that the next one finds most of its window in the cache.
#include "tensors.h"
#include "vec.h"
#include "window.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace clit {
namespace {

constexpr int64_t kChunk = 192;
// Rows of a panel that are multiplied together: they stay in the first-level cache.
constexpr int64_t kDepth = 128;

// What all of these kernels are given: maps (B, h, w, C), pixels y, x (B, Q).
struct Queries {
  int64_t batch, count, channels;
  int heads, dim;
  const int64_t *y, *x;
  Window window;
  std::vector<int64_t> order;  // images one after another, the queries of each by their pixels

  Queries(const Tensor& map, const Tensor& y_, const Tensor& x_, int64_t grid, int64_t heads_)
      : batch(map.size(0)),
        count(y_.size(1)),
        channels(map.size(3)),
        heads(heads_),
        dim(channels / heads_),
        y(read<int64_t>(y_)),
        x(read<int64_t>(x_)),
        window{map.size(1), map.size(2), int(grid)},
        order(total()) {
    std::iota(order.begin(), order.end(), int64_t(0));
    for (int64_t b = 0; b < batch; ++b)
      std::stable_sort(order.begin() + b * count, order.begin() + (b + 1) * count,
          [&](int64_t i, int64_t j) { return y[i] != y[j] ? y[i] < y[j] : x[i] < x[j]; });
  }

  int positions() const { return window.positions(); }
  int64_t map_size() const { return window.height * window.width * channels; }
  int64_t total() const { return batch * count; }
  // Where a query's window pixel g lies in the maps, -1 outside.
  int64_t address(int64_t n, int g) const {
    const int64_t pixel = window.pixel(y[n], x[n], g);
    return pixel < 0 ? -1 : n / count * map_size() + pixel * channels;
  }
  // The same for the query that is visited `ahead` places after place i; -1 also where there is none.
  int64_t address_after(int64_t i, int g, int64_t ahead = 1) const {
    return i + ahead < total() ? address(order[i + ahead], g) : -1;
  }
};

// Asks for n numbers of a map before they are needed: neighbouring queries read distant places.
template <typename T>
void fetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<T>) __builtin_prefetch(p + i);
}

template <typename T>
void attention_of(const Queries& all, const T* query, const T* k, const T* bias_y, const T* bias_x, T* out) {
  const T scale = T(1) / std::sqrt(T(all.dim));
  const int grid = all.window.grid, positions = all.positions();
  parallel((all.total() + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int stride = positions + kLanes<T>;  // softmax_in_place overwrites some numbers behind a head's logits
    Buffer<T> logits(all.heads * stride);
    for (int64_t i = chunk * kChunk; i < std::min(all.total(), (chunk + 1) * kChunk); ++i) {
      const int64_t n = all.order[i];
      for (int g = 0; g < positions; ++g) {
        const int64_t at = all.address(n, g), next = all.address_after(i, g);
        if (next >= 0) fetch(k + next, all.channels);
        const T *by = bias_y + (n * grid + g / grid) * all.heads, *bx = bias_x + (n * grid + g % grid) * all.heads;
        for (int h = 0; h < all.heads; ++h) {
          const T product =
              at < 0 ? T(0) : scale * dot(query + n * all.channels + h * all.dim, k + at + h * all.dim, all.dim);
          logits.get()[h * stride + g] = logit(product, by[h], bx[h]);
        }
      }
      for (int h = 0; h < all.heads; ++h) {
        softmax_in_place(logits.get() + h * stride, positions);
        std::copy_n(logits.get() + h * stride, positions, out + (n * all.heads + h) * positions);
      }
    }
  });
}

// One head of one image at a time: its gradients belong to it alone.
template <typename T>
void attention_backward_of(const Queries& all, const T* grad, const T* out, const T* query, const T* k, T* grad_query,
    T* grad_k, T* grad_y, T* grad_x) {
  const T scale = T(1) / std::sqrt(T(all.dim));
  const int grid = all.window.grid, positions = all.positions(), heads = all.heads, dim = all.dim;
  parallel(all.batch * heads, [&](int64_t item) {
    const int h = item % heads;
    std::vector<T> scaled(dim);
    for (int64_t i = item / heads * all.count; i < (item / heads + 1) * all.count; ++i) {
      const int64_t n = all.order[i];
      const T *value = out + (n * heads + h) * positions, *gradient = grad + (n * heads + h) * positions;
      T* to_query = grad_query + n * all.channels + h * dim;
      const T total = dot(value, gradient, positions);
      for (int c = 0; c < dim; ++c) to_query[c] = 0, scaled[c] = scale * query[n * all.channels + h * dim + c];
      for (int row = 0; row < grid; ++row)
        grad_y[(n * grid + row) * heads + h] = grad_x[(n * grid + row) * heads + h] = 0;
      for (int g = 0; g < positions; ++g) {
        const T logit_gradient = softmax_gradient(value[g], gradient[g], total);
        grad_y[(n * grid + g / grid) * heads + h] += logit_gradient;
        grad_x[(n * grid + g % grid) * heads + h] += logit_gradient;
        const int64_t at = all.address(n, g), next = all.address_after(i, g);
        if (next >= 0) fetch(k + next + h * dim, dim), fetch(grad_k + next + h * dim, dim);
        if (at < 0) continue;
        axpy(logit_gradient * scale, k + at + h * dim, to_query, dim);
        axpy(logit_gradient, scaled.data(), grad_k + at + h * dim, dim);
      }
    }
  });
}

// Attention-weighted values of one window position, channels c0 ... c0 + n - 1, for the queries in the places
// q0 ... q1 - 1.
template <typename T>
void weigh(const Queries& all, const T* attention, const T* v, int g, int64_t q0, int64_t q1, int64_t c0, int64_t n,
    int64_t stride, T* out) {
  const int positions = all.positions();
  constexpr int64_t kAhead = 12;
  for (int64_t i = q0; i < q1; ++i, out += stride) {
    const int64_t q = all.order[i], at = all.address(q, g), later = all.address_after(i, g, kAhead);
    if (later >= 0) {
      fetch(v + later + c0, n);
      for (int64_t h = c0 / all.dim; h <= (c0 + n - 1) / all.dim; ++h)
        __builtin_prefetch(attention + (all.order[i + kAhead] * all.heads + h) * positions + g);
    }
    if (at < 0) {
      std::fill(out, out + n, T(0));
      continue;
    }
    for (int64_t c = c0; c < c0 + n;) {
      const int64_t h = c / all.dim, end = std::min((h + 1) * all.dim, c0 + n);
      const T a = attention[(q * all.heads + h) * positions + g];
      for (; c < end; ++c) out[c - c0] = a * v[at + c];
    }
  }
}

template <typename T>
void attend_linear_of(const Queries& all, const T* attention, const T* v, const T* packed, int64_t outputs, T* out) {
  const int64_t padded = round_up<T>(outputs), panels = padded / kPanel<T>, channels = all.channels;
  parallel((all.total() + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t q0 = chunk * kChunk, q1 = std::min(all.total(), q0 + kChunk), m = q1 - q0;
    Buffer<T> z(m * std::min(kDepth, channels)), result(m * padded);  // result: [panel][query][kPanel]
    std::fill(result.get(), result.get() + m * padded, T(0));
    std::vector<const T*> a(m);
    for (int g = 0; g < all.positions(); ++g) {
      for (int64_t depth = 0; depth < channels; depth += kDepth) {
        const int64_t n = std::min(kDepth, channels - depth);
        weigh(all, attention, v, g, q0, q1, depth, n, n, z.get());
        for (int64_t i = 0; i < m; ++i) a[i] = z.get() + i * n;
        for (int64_t panel = 0; panel < panels; ++panel)
          multiply_rows<T, true>(m, n, a.data(), 1, packed + ((g * panels + panel) * channels + depth) * kPanel<T>,
              result.get() + panel * m * kPanel<T>, kPanel<T>);
      }
    }
    for (int64_t i = 0; i < m; ++i)
      for (int64_t o = 0; o < outputs; o += kPanel<T>)
        std::copy_n(result.get() + o * m + i * kPanel<T>, std::min<int64_t>(kPanel<T>, outputs - o),
            out + all.order[q0 + i] * outputs + o);
  });
}

// The gradients (B, Q, O) as weight_gradient_of reads them: (O, B * Q), the queries in the order of their places. Rows
// of six pages or more apart: the processor follows them as streams of their own, rows within a page it confuses.
template <typename T>
void transpose(const Queries& all, const T* grad, int64_t outputs, T* out) {
  constexpr int64_t kLine = 16;
  parallel((outputs + kLine - 1) / kLine, [&](int64_t line) {
    const int64_t o0 = line * kLine, o1 = std::min(outputs, o0 + kLine);
    for (int64_t i = 0; i < all.total(); ++i)
      for (int64_t o = o0; o < o1; ++o) out[o * all.total() + i] = grad[all.order[i] * outputs + o];
  });
}

// One window position and a few panels of channels at a time: together they read the gradients once. grad: from
// `transpose`.
template <typename T>
void weight_gradient_of(const Queries& all, const T* grad, const T* attention, const T* v, int64_t outputs, T* out) {
  constexpr int64_t kPanels = 4;
  const int64_t channels = all.channels, panels = round_up<T>(channels) / kPanel<T>, total = all.total();
  const int64_t groups = (panels + kPanels - 1) / kPanels;
  parallel(all.positions() * groups, [&](int64_t item) {
    const int g = item / groups;
    const int64_t first = item % groups * kPanels, count = std::min(kPanels, panels - first);
    Buffer<T> z(count * kDepth * kPanel<T>), result(count * outputs * kPanel<T>);  // [panel][query or output][kPanel]
    std::fill(z.get(), z.get() + count * kDepth * kPanel<T>, T(0));
    std::fill(result.get(), result.get() + count * outputs * kPanel<T>, T(0));
    std::vector<const T*> a(outputs);
    const auto width = [&](int64_t i) { return std::min<int64_t>(kPanel<T>, channels - (first + i) * kPanel<T>); };
    for (int64_t q0 = 0; q0 < total; q0 += kDepth) {
      const int64_t q1 = std::min(total, q0 + kDepth);
      for (int64_t o = 0; o < outputs; ++o) a[o] = grad + o * total + q0;
      for (int64_t i = 0; i < count; ++i) {
        T* panel = z.get() + i * kDepth * kPanel<T>;
        weigh(all, attention, v, g, q0, q1, (first + i) * kPanel<T>, width(i), kPanel<T>, panel);
        multiply_rows<T, true>(outputs, q1 - q0, a.data(), 1, panel, result.get() + i * outputs * kPanel<T>, kPanel<T>);
      }
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t o = 0; o < outputs; ++o)
        std::copy_n(result.get() + (i * outputs + o) * kPanel<T>, width(i),
            out + (o * all.positions() + g) * channels + (first + i) * kPanel<T>);
  });
}

// A few whole heads of one image at a time. grad: (B, Q, O); packed: (blocks of heads, G * G, panels, O, kPanel).
template <typename T>
void value_gradient_of(const Queries& all, const T* grad, const T* attention, const T* v, const T* packed,
    int64_t outputs, int64_t together, T* grad_attention, T* grad_v) {
  constexpr int64_t kQueries = 64;  // their gradients, 6 KB each, stay in the second-level cache
  const int positions = all.positions(), dim = all.dim;
  const int64_t blocks = (all.heads + together - 1) / together, padded = round_up<T>(together * dim);
  parallel(all.batch * blocks, [&](int64_t item) {
    const int64_t b = item / blocks, h0 = item % blocks * together;
    const int64_t h1 = std::min<int64_t>(all.heads, h0 + together), c0 = h0 * dim, n = (h1 - h0) * dim;
    const int64_t end = (b + 1) * all.count;
    Buffer<T> gradient(kQueries * positions * padded);
    std::vector<const T*> a(kQueries);
    for (int64_t q0 = b * all.count; q0 < end; q0 += kQueries) {
      const int64_t m = std::min(kQueries, end - q0);
      for (int64_t i = 0; i < m; ++i) a[i] = grad + all.order[q0 + i] * outputs;
      const T* panel = packed + item % blocks * positions * padded * outputs;
      for (int g = 0; g < positions; ++g)
        for (int64_t p = 0; p < padded; p += kPanel<T>, panel += outputs * kPanel<T>)
          multiply_rows<T, false>(m, outputs, a.data(), 1, panel, gradient.get() + g * padded + p, positions * padded);
      for (int64_t i = 0; i < m; ++i)
        for (int g = 0; g < positions; ++g) {
          const int64_t q = all.order[q0 + i], at = all.address(q, g), next = all.address_after(q0 + i, g);
          if (next >= 0) fetch(v + next + c0, n), fetch(grad_v + next + c0, n);
          const T* row = gradient.get() + (i * positions + g) * padded;
          for (int64_t h = h0; h < h1; ++h, row += dim) {
            const int64_t slot = (q * all.heads + h) * positions + g;
            grad_attention[slot] = at < 0 ? T(0) : dot(row, v + at + h * dim, dim);
            if (at >= 0) axpy(attention[slot], row, grad_v + at + h * dim, dim);
          }
        }
    }
  });
}

// Columns of one panel of a packed matrix.
int64_t panel(bool of_double) { return of_double ? kPanel<double> : kPanel<float>; }

void attention(Tensor query, Tensor k, Tensor bias_y, Tensor bias_x, Tensor y, Tensor x, Tensor out) {
  const Queries all(k, y, x, bias_y.size(2), bias_y.size(3));
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    attention_of<T>(all, read<T>(query), read<T>(k), read<T>(bias_y), read<T>(bias_x), write<T>(out));
  };
  is_double(k) ? call(double()) : call(float());
}

void attention_backward(Tensor grad, Tensor out, Tensor query, Tensor k, Tensor y, Tensor x, Tensor grad_query,
    Tensor grad_k, Tensor grad_y, Tensor grad_x) {
  const Queries all(k, y, x, grad_y.size(2), grad_y.size(3));
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    attention_backward_of<T>(all, read<T>(grad), read<T>(out), read<T>(query), read<T>(k), write<T>(grad_query),
        write<T>(grad_k), write<T>(grad_y), write<T>(grad_x));
  };
  is_double(k) ? call(double()) : call(float());
}

void attend_linear(Tensor attention, Tensor v, Tensor packed, Tensor y, Tensor x, int64_t grid, Tensor out) {
  const Queries all(v, y, x, grid, attention.size(2));
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    attend_linear_of<T>(all, read<T>(attention), read<T>(v), read<T>(packed), out.size(2), write<T>(out));
  };
  is_double(v) ? call(double()) : call(float());
}

void attend_linear_backward(Tensor grad, Tensor attention, Tensor v, Tensor packed, int64_t together, Tensor y,
    Tensor x, int64_t grid, Tensor grad_attention, Tensor grad_v, Tensor grad_weight) {
  const Queries all(v, y, x, grid, attention.size(2));
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    const Buffer<T> columns(all.total() * grad.size(2));
    transpose<T>(all, read<T>(grad), grad.size(2), columns.get());
    weight_gradient_of<T>(all, columns.get(), read<T>(attention), read<T>(v), grad.size(2), write<T>(grad_weight));
    value_gradient_of<T>(all, read<T>(grad), read<T>(attention), read<T>(v), read<T>(packed), grad.size(2), together,
        write<T>(grad_attention), write<T>(grad_v));
  };
  is_double(v) ? call(double()) : call(float());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(clit_cpu, m) {
  m.def("panel(bool of_double) -> int");
  m.def("attention(Tensor query, Tensor k, Tensor bias_y, Tensor bias_x, Tensor y, Tensor x, Tensor(a!) out) -> ()");
  m.def(
      "attention_backward(Tensor grad, Tensor out, Tensor query, Tensor k, Tensor y, Tensor x, Tensor(a!) grad_query, "
      "Tensor(b!) grad_k, Tensor(c!) grad_y, Tensor(d!) grad_x) -> ()");
  m.def("attend_linear(Tensor attention, Tensor v, Tensor packed, Tensor y, Tensor x, int grid, Tensor(a!) out) -> ()");
  m.def(
      "attend_linear_backward(Tensor grad, Tensor attention, Tensor v, Tensor packed, int "
      "together, Tensor y, Tensor x, int grid, Tensor(a!) grad_attention, Tensor(b!) grad_v, Tensor(c!) grad_weight) "
      "-> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clit_cpu, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("attend_linear", TORCH_BOX(&attend_linear));
  m.impl("attend_linear_backward", TORCH_BOX(&attend_linear_backward));
}
STABLE_TORCH_LIBRARY_IMPL(clit_cpu, CompositeExplicitAutograd, m) { m.impl("panel", TORCH_BOX(&panel)); }

}  // namespace clit
