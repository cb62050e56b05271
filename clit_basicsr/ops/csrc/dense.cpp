// The first layer for a dense grid of queries: all queries with the same nearest pixel p share the products of its
// window, P_p[(g, h)] = W_(g, h) v[p + g] (C / H numbers to O), so that one query costs G * G * H * O operations
// instead of G * G * C * O.
#include "dense.h"

namespace clit {
namespace {

// Pixels of one tile. Many share one reading of the weights; few leave room in the second-level cache for one head's
// attention (196 bytes a query for G = 7) and one panel's weights.
constexpr int64_t tile_pixels(double queries_per_pixel) {
  return std::clamp<int64_t>(int64_t(2560 / queries_per_pixel), 12, 64);
}
// Squares have the smallest margins.
constexpr int64_t kTall = 8;

// Bytes of products made together, for kRows pixels: they are used while they lie in the first-level cache.
constexpr int64_t kProductBytes = 24 << 10;

// One panel of the products of n window positions for M pixels: [pixel][n][kPanel]. Not inlined: amid other code the
// compiler runs out of registers.
template <typename T, int M>
__attribute__((noinline)) void build_rows(
    int dim, const int64_t* shift, int n, const T* weight, const T* const* pixel, T* shared) {
  for (int g = 0; g < n; ++g, weight += dim * kPanel<T>) {
    const T* a[M];
    for (int i = 0; i < M; ++i) a[i] = pixel[i] + shift[g];
    multiply<T, M, kPanelVectors, false>(dim, a, 1, weight, kPanel<T>, shared + g * kPanel<T>, n * kPanel<T>);
  }
}

// The same for up to kRows pixels.
template <typename T>
void build(int pixels, int dim, const int64_t* shift, int n, const T* weight, const T* const* pixel, T* shared) {
  switch (pixels) {
    case 6:
      return build_rows<T, 6>(dim, shift, n, weight, pixel, shared);
    case 5:
      return build_rows<T, 5>(dim, shift, n, weight, pixel, shared);
    case 4:
      return build_rows<T, 4>(dim, shift, n, weight, pixel, shared);
    case 3:
      return build_rows<T, 3>(dim, shift, n, weight, pixel, shared);
    case 2:
      return build_rows<T, 2>(dim, shift, n, weight, pixel, shared);
    case 1:
      return build_rows<T, 1>(dim, shift, n, weight, pixel, shared);
  }
}

template <typename T>
void run(const Dense<T>& d, const typename Dense<T>::Tile& t) {
  const int positions = d.window.positions(), dim = d.dim;
  const int64_t panels = d.padded / kPanel<T>, pixels = t.pixels(), n_patch = d.patch_cols(t);
  const std::vector<int64_t> start = d.starts(t);
  const int64_t queries = start.back(), margin = kNarrowLanes<T> + kLanes<T>;
  const int largest = std::max<int64_t>(1, kProductBytes / (kRows * kPanel<T> * int64_t(sizeof(T))));
  const int passes = (positions + largest - 1) / largest, step = (positions + passes - 1) / passes;
  Buffer<T> keys(d.patch_rows(t) * n_patch * dim + margin), values(d.patch_rows(t) * n_patch * dim);
  Buffer<T> attention(queries * positions + margin);
  Buffer<T> shared(kRows * step * kPanel<T>), result(queries * d.padded);  // result: [panel][query][kPanel]
  d.begin(queries, result.get());
  std::vector<const T*> pixel(pixels), a(queries);
  for (int64_t p = 0; p < pixels; ++p) pixel[p] = values.get() + (p % t.height() * n_patch + p / t.height()) * dim;
  std::vector<int64_t> shift(positions);  // from a pixel's first window position to the others
  for (int g = 0; g < positions; ++g) shift[g] = (g / d.window.grid * n_patch + g % d.window.grid) * dim;
  const int64_t groups = (pixels + kRows - 1) / kRows;
  for (int h = 0; h < d.heads; ++h) {
    d.template cut<true>(d.k, t, h, keys.get());
    d.template cut<false>(d.v, t, h, values.get());
    d.attend(t, h, keys.get(), attention.get());
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int g0 = 0; g0 < positions; g0 += step) {
        const int n = std::min(step, positions - g0);
        const T* weight = d.packed + ((h * panels + panel) * positions + g0) * dim * kPanel<T>;
        for (int m = 0; m < queries; ++m) a[m] = attention.get() + m * positions + g0;
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t p0 = pixels * group / groups, p1 = pixels * (group + 1) / groups;
          build(p1 - p0, dim, shift.data() + g0, n, weight, pixel.data() + p0, shared.get());
          for (int64_t p = p0; p < p1; ++p)
            multiply_rows<T, true>(start[p + 1] - start[p], n, a.data() + start[p], 1,
                shared.get() + (p - p0) * n * kPanel<T>, result.get() + (panel * queries + start[p]) * kPanel<T>,
                kPanel<T>);
        }
      }
  }
  d.place(t, queries, result.get());
}

void dense_linear(Tensor q, Tensor k, Tensor v, Tensor packed, Tensor offset, Tensor row_nearest, Tensor row_taps,
    Tensor row_weights, Tensor row_bias, Tensor col_nearest, Tensor col_taps, Tensor col_weights, Tensor col_bias,
    Tensor out) {
  const DenseCall all{q, k, v, packed, offset, row_nearest, row_taps, row_weights, row_bias, col_nearest, col_taps,
      col_weights, col_bias, out};
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    all.tiles<T>(tile_pixels, kTall, run<T>);
  };
  is_double(q) ? call(double()) : call(float());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(clit_cpu, m) {
  m.def(
      "dense_linear(Tensor q, Tensor k, Tensor v, Tensor packed, Tensor offset, Tensor row_nearest, Tensor row_taps, "
      "Tensor row_weights, Tensor row_bias, Tensor col_nearest, Tensor col_taps, Tensor col_weights, Tensor col_bias, "
      "Tensor(a!) out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clit_cpu, CPU, m) { m.impl("dense_linear", TORCH_BOX(&dense_linear)); }

}  // namespace clit
