// A 3 x 3 convolution over a bilinearly upsampled map, after its products: they are made at the resolution of the map
// below (convolution and upsampling commute), here they are interpolated and summed over the taps, one axis at a time,
// in buffers that stay in the cache. The backward pass is the transpose.
#include "tensors.h"

#include <algorithm>
#include <array>
#include <vector>

namespace clit {
namespace {

constexpr int64_t kColumns = 8;  // fine pixels of a row that are interpolated together

// Where the fine pixels of one axis read the map below: three taps of two pixels each, from `convolution_taps`.
template <typename T>
struct Taps {
  const int64_t* index;
  const T* weight;
  int64_t count;

  Taps(const Tensor& index_, const Tensor& weight_)
      : index(read<int64_t>(index_)), weight(read<T>(weight_)), count(index_.size(0)) {}

  // The most pixels of the map below between the first and the last that one fine pixel reads, these included.
  int64_t span() const {
    int64_t most = 1;
    for (int64_t i = 0; i < count; ++i) {
      const auto [low, high] = std::minmax_element(index + 6 * i, index + 6 * i + 6);
      most = std::max(most, *high - *low + 1);
    }
    return most;
  }
};

// The products (h, w, 3, 3, O) of one image: tap in y, tap in x, channel.
struct Products {
  int64_t height, width, channels;

  int64_t at(int64_t y, int64_t x, int ty, int tx) const { return (((y * width + x) * 3 + ty) * 3 + tx) * channels; }
};

// to = offset + the sum of w[i] * from[i], all of n numbers.
template <typename T>
void combine(const T* offset, const std::array<T, 6>& w, const std::array<const T*, 6>& from, int64_t n, T* to) {
  const T *a = from[0], *b = from[1], *c = from[2], *d = from[3], *e = from[4], *f = from[5];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    to[i] = offset[i] + w[0] * a[i] + w[1] * b[i] + w[2] * c[i] + w[3] * d[i] + w[4] * e[i] + w[5] * f[i];
}

// Some columns of the result, from its first row to its last. Rows of the map below that are interpolated along x are
// kept for all the fine rows that read them.
template <typename T>
void forward_columns(const Products& size, const T* products, const T* bias, const Taps<T>& rows, const Taps<T>& cols,
    int64_t x0, int64_t x1, int64_t slots, T* out) {
  const int64_t n = size.channels, wide = (x1 - x0) * n;
  Buffer<T> lines(slots * 3 * wide), zeros(n);
  std::fill_n(zeros.get(), n, T(0));
  std::vector<int64_t> held(slots, -1);  // which row of the map below a slot holds
  const auto line = [&](int64_t y) {
    T* to = lines.get() + y % slots * 3 * wide;
    if (held[y % slots] == y) return to;
    held[y % slots] = y;
    for (int64_t x = x0; x < x1; ++x)
      for (int ty = 0; ty < 3; ++ty) {
        std::array<const T*, 6> from;
        std::array<T, 6> w;
        for (int i = 0; i < 6; ++i) {
          from[i] = products + size.at(y, cols.index[6 * x + i], ty, i / 2);
          w[i] = cols.weight[6 * x + i];
        }
        combine(zeros.get(), w, from, n, to + ty * wide + (x - x0) * n);
      }
    return to;
  };
  for (int64_t r = 0; r < rows.count; ++r) {
    std::array<const T*, 6> from;
    std::array<T, 6> w;
    for (int i = 0; i < 6; ++i) {
      from[i] = line(rows.index[6 * r + i]) + i / 2 * wide;
      w[i] = rows.weight[6 * r + i];
    }
    for (int64_t x = x0; x < x1; ++x) {
      combine(bias, w, from, n, out + (r * cols.count + x) * n);
      for (auto& p : from) p += n;
    }
  }
}

// One image: products (h, w, 3, 3, O), bias (O,), out (R, S, O).
template <typename T>
void forward_of(
    const Products& size, const T* products, const T* bias, const Taps<T>& rows, const Taps<T>& cols, T* out) {
  const int64_t slots = rows.span();
  parallel((cols.count + kColumns - 1) / kColumns, [&](int64_t block) {
    const int64_t x0 = block * kColumns, x1 = std::min(x0 + kColumns, cols.count);
    forward_columns(size, products, bias, rows, cols, x0, x1, slots, out);
  });
}

// Adds w[i] * from to each of six places, all of n numbers; no two of the places overlap.
template <typename T>
void distribute(const T* from, const std::array<T, 6>& w, const std::array<T*, 6>& to, int64_t n) {
  T *a = to[0], *b = to[1], *c = to[2], *d = to[3], *e = to[4], *f = to[5];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T value = from[i];
    a[i] += w[0] * value, b[i] += w[1] * value, c[i] += w[2] * value;
    d[i] += w[3] * value, e[i] += w[4] * value, f[i] += w[5] * value;
  }
}

// The six weights of a fine pixel and the places `at(pixel of the map below, tap)` that they go to. At the edge of the
// map the two pixels of a tap are the same: then the first takes both weights, and the other goes to `spare`, which is
// `step` numbers for each tap.
template <typename T, typename F>
void targets(const Taps<T>& taps, int64_t fine, T* spare, int64_t step, const F& at, std::array<T, 6>& w,
    std::array<T*, 6>& to) {
  const int64_t* index = taps.index + 6 * fine;
  std::copy_n(taps.weight + 6 * fine, 6, w.begin());
  for (int i = 0; i < 6; i += 2) {
    const bool same = index[i] == index[i + 1];
    to[i] = at(index[i], i / 2);
    to[i + 1] = same ? spare + i / 2 * step : at(index[i + 1], i / 2);
    if (same) w[i] += w[i + 1], w[i + 1] = 0;
  }
}

// Some rows of the map below, y0 ... y1 - 1, whose gradients nobody else writes. Those of their interpolated lines are
// collected column block by column block, and passed on to the products once no later fine row reads the line.
// row_sums (R, O): for the gradient of the bias, of the fine rows whose first pixel of the map below is one of these.
template <typename T>
void backward_rows(const Products& size, const T* grad, const Taps<T>& rows, const Taps<T>& cols, int64_t y0,
    int64_t y1, int64_t slots, T* grad_products, T* row_sums) {
  const int64_t n = size.channels, most = kColumns * n;
  Buffer<T> lines(slots * 3 * most), spare(3 * most);
  std::fill_n(spare.get(), 3 * most, T(0));
  std::array<T, 6> w;
  std::array<T*, 6> to;
  for (int64_t x0 = 0; x0 < cols.count; x0 += kColumns) {
    const int64_t wide = std::min(kColumns, cols.count - x0) * n;
    std::fill_n(lines.get(), slots * 3 * most, T(0));
    const auto line = [&](int64_t y, int ty) { return lines.get() + (y % slots * 3 + ty) * most; };
    const auto pass_on = [&](int64_t y) {
      for (int ty = 0; y >= y0 && y < y1 && ty < 3; ++ty)
        for (int64_t i = 0; i < wide; i += n) {
          const auto at = [&](int64_t x, int tx) { return grad_products + size.at(y, x, ty, tx); };
          targets(cols, x0 + i / n, spare.get(), n, at, w, to);
          distribute(line(y, ty) + i, w, to, n);
        }
      std::fill_n(line(y, 0), 3 * most, T(0));
    };
    int64_t first = size.height, last = -1;  // the lines that are held
    for (int64_t r = 0; r < rows.count; ++r) {
      const auto [low, high] = std::minmax_element(rows.index + 6 * r, rows.index + 6 * r + 6);
      if (*high < y0 || *low >= y1) continue;
      for (; first < *low && first <= last; ++first) pass_on(first);
      first = *low, last = *high;
      const T* from = grad + (r * cols.count + x0) * n;
      targets(rows, r, spare.get(), most, line, w, to);
      distribute(from, w, to, wide);
      if (*low >= y0)
        for (int64_t i = 0; i < wide; i += n)
          for (int64_t c = 0; c < n; ++c) row_sums[r * n + c] += from[i + c];
    }
    for (; first <= last; ++first) pass_on(first);
  }
}

// One image: grad (R, S, O); grad_products (h, w, 3, 3, O) is zero before.
template <typename T>
void backward_of(const Products& size, const T* grad, const Taps<T>& rows, const Taps<T>& cols, int64_t parts,
    T* grad_products, T* grad_bias) {
  const int64_t slots = rows.span(), n = size.channels;
  Buffer<T> row_sums(rows.count * n);
  std::fill_n(row_sums.get(), rows.count * n, T(0));
  parallel(parts, [&](int64_t part) {
    const int64_t y0 = size.height * part / parts, y1 = size.height * (part + 1) / parts;
    backward_rows(size, grad, rows, cols, y0, y1, slots, grad_products, row_sums.get());
  });
  std::vector<double> total(n, 0.0);
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t c = 0; c < n; ++c) total[c] += row_sums.get()[r * n + c];
  std::copy(total.begin(), total.end(), grad_bias);
}

Products size_of(const Tensor& products, const Tensor& bias) {
  return {products.size(0), products.size(1), bias.size(0)};
}

void interpolate_products(Tensor products, Tensor bias, Tensor row_index, Tensor row_weight, Tensor col_index,
    Tensor col_weight, Tensor out) {
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    forward_of<T>(size_of(products, bias), read<T>(products), read<T>(bias), {row_index, row_weight},
        {col_index, col_weight}, write<T>(out));
  };
  is_double(products) ? call(double()) : call(float());
}

void interpolate_products_backward(Tensor grad, Tensor row_index, Tensor row_weight, Tensor col_index,
    Tensor col_weight, int64_t parts, Tensor grad_products, Tensor grad_bias) {
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    backward_of<T>(size_of(grad_products, grad_bias), read<T>(grad), {row_index, row_weight}, {col_index, col_weight},
        parts, write<T>(grad_products), write<T>(grad_bias));
  };
  is_double(grad) ? call(double()) : call(float());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(clit_cpu, m) {
  m.def(
      "interpolate_products(Tensor products, Tensor bias, Tensor row_index, Tensor row_weight, Tensor col_index, "
      "Tensor col_weight, Tensor(a!) out) -> ()");
  m.def(
      "interpolate_products_backward(Tensor grad, Tensor row_index, Tensor row_weight, Tensor col_index, Tensor "
      "col_weight, int parts, Tensor(a!) grad_products, Tensor(b!) grad_bias) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clit_cpu, CPU, m) {
  m.impl("interpolate_products", TORCH_BOX(&interpolate_products));
  m.impl("interpolate_products_backward", TORCH_BOX(&interpolate_products_backward));
}

}  // namespace clit
