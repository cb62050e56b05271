// The first layer for a dense grid of queries: all queries with the same nearest pixel p share the products of its window,
// P_p[(g, h)] = W_(g, h) v[p + g] (C / H numbers to O), so that one query costs G * G * H * O operations instead of G * G * C * O.
#include "vec.h"
#include "tensors.h"
#include "window.h"

#include <algorithm>
#include <vector>

namespace clit {
namespace {

// One axis of the queries, as clit_basicsr.ops.axes.Axis, and the queries of each pixel.
template <typename T>
struct Axis {
  const int64_t *nearest, *taps;
  const T *weights, *bias;
  int64_t first;
  std::vector<int64_t> begin;  // queries of pixel first + i: begin[i] ... begin[i + 1] - 1

  Axis(const Tensor& nearest_, const Tensor& taps_, const Tensor& weights_, const Tensor& bias_)
      : nearest(read<int64_t>(nearest_)),
        taps(read<int64_t>(taps_)),
        weights(read<T>(weights_)),
        bias(read<T>(bias_)),
        first(nearest[0]) {
    const int64_t n = nearest_.size(0);
    int64_t query = 0;
    for (int64_t pixel = first; pixel <= nearest[n - 1]; ++pixel) {
      begin.push_back(query);
      while (query < n && nearest[query] == pixel) ++query;
    }
    begin.push_back(n);
  }
  int64_t pixels() const { return begin.size() - 1; }
};

// Bytes of products and results that one tile works on: they have to stay in the second-level cache. More pixels share the
// reading of the weights, but leave less room for products where each pixel has many queries.
constexpr int64_t kTileBytes = 5 << 18;
constexpr int64_t tile_pixels(double queries_per_pixel) { return queries_per_pixel > 6 ? 32 : 64; }

template <typename T>
struct Dense {
  const T *q, *k, *v, *packed, *offset;
  T* out;
  int64_t width, channels, outputs, padded, num_cols;
  int heads, dim;
  Window window;
  const Axis<T>&rows, &cols;

  // A rectangle of pixels and the memory for it.
  struct Tile {
    int64_t y0, y1, x0, x1;  // counted from the axes' first pixels
    std::vector<int64_t> start;  // of each pixel's queries among those of the tile
    std::vector<int64_t> lanes;  // of each pixel's attention, in vectors
  };

  int64_t patch_rows(const Tile& t) const { return t.y1 - t.y0 + window.grid - 1; }
  int64_t patch_cols(const Tile& t) const { return t.x1 - t.x0 + window.grid - 1; }

  // One head of a map around the tile: [rows][columns][dim], zeros outside the map.
  void cut(const T* map, const Tile& t, int h, T* patch) const {
    const int r = window.grid / 2;
    for (int64_t i = 0; i < patch_rows(t); ++i) {
      const int64_t y = rows.first + t.y0 + i - r;
      for (int64_t j = 0; j < patch_cols(t); ++j, patch += dim) {
        const int64_t x = cols.first + t.x0 + j - r;
        if (y >= 0 && y < window.height && x >= 0 && x < window.width)
          std::memcpy(patch, map + (y * width + x) * channels + h * dim, dim * sizeof(T));
        else
          std::memset(patch, 0, dim * sizeof(T));
      }
    }
  }

  // One head's queries of a pixel, scaled, as columns: [dim][lanes].
  void sample(int64_t y, int64_t x, int h, int64_t lanes, T* query) const {
    std::memset(query, 0, dim * lanes * sizeof(T));
    const T scale = T(1) / std::sqrt(T(dim));
    int64_t m = 0;
    for (int64_t r = rows.begin[y]; r < rows.begin[y + 1]; ++r)
      for (int64_t s = cols.begin[x]; s < cols.begin[x + 1]; ++s, ++m) {
        const T* corner[4];
        T w[4];
        for (int i = 0; i < 4; ++i) {
          corner[i] = q + (rows.taps[2 * r + i / 2] * width + cols.taps[2 * s + i % 2]) * channels + h * dim;
          w[i] = rows.weights[2 * r + i / 2] * cols.weights[2 * s + i % 2] * scale;
        }
        for (int c = 0; c < dim; ++c)
          query[c * lanes + m] = w[0] * corner[0][c] + w[1] * corner[1][c] + w[2] * corner[2][c] + w[3] * corner[3][c];
      }
  }

  // Equation (6) for the queries of one pixel: [G * G][lanes].
  void attend(const Tile& t, int64_t y, int64_t x, int h, const T* keys, T* query, T* bias, T* attention) const {
    constexpr int L = kLanes<T>;
    const int64_t count_x = cols.begin[x + 1] - cols.begin[x];
    const int64_t count = (rows.begin[y + 1] - rows.begin[y]) * count_x;
    const int64_t lanes = (count + L - 1) / L * L;
    const int grid = window.grid;
    sample(y, x, h, lanes, query);
    std::memset(bias, 0, 2 * grid * lanes * sizeof(T));
    for (int64_t m = 0; m < count; ++m)
      for (int i = 0; i < grid; ++i) {
        bias[i * lanes + m] = rows.bias[((rows.begin[y] + m / count_x) * grid + i) * heads + h];
        bias[(grid + i) * lanes + m] = cols.bias[((cols.begin[x] + m % count_x) * grid + i) * heads + h];
      }
    for (int64_t lane = 0; lane < lanes; lane += L) {
      for (int i = 0; i < grid; ++i) {
        const T* key = keys + ((y - t.y0 + i) * patch_cols(t) + x - t.x0) * dim;
        T* row = attention + i * grid * lanes + lane;
        int j = 0;
        for (; j + 7 <= grid; j += 7) products<7>(key + j * dim, query + lane, lanes, row + j * lanes);
        for (; j < grid; ++j) products<1>(key + j * dim, query + lane, lanes, row + j * lanes);
      }
      vec<T> largest = fill(T(-INFINITY)), total{};
      for (int g = 0; g < window.positions(); ++g) {
        T* a = attention + g * lanes + lane;
        const T *by = bias + g / grid * lanes + lane, *bx = bias + (grid + g % grid) * lanes + lane;
        const vec<T> value = logit(load(a), load(by), load(bx));
        largest = value > largest ? value : largest;
        store(a, value);
      }
      for (int g = 0; g < window.positions(); ++g) {
        T* a = attention + g * lanes + lane;
        const vec<T> value = exp_negative(load(a) - largest);
        total += value;
        store(a, value);
      }
      const vec<T> factor = T(1) / total;
      for (int g = 0; g < window.positions(); ++g) store(attention + g * lanes + lane, load(attention + g * lanes + lane) * factor);
    }
  }

  template <int M>
  void products(const T* key, const T* query, int64_t lanes, T* out_row) const {
    const T* a[M];
    for (int i = 0; i < M; ++i) a[i] = key + i * dim;
    multiply<T, M, 1, false>(dim, a, 1, query, lanes, out_row, lanes);
  }

  void run(Tile& t) const {
    const int64_t nx = t.x1 - t.x0, pixels = (t.y1 - t.y0) * nx;
    int64_t queries = 0, vectors = 0, widest = 0;
    t.start.clear(), t.lanes.clear();
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t y = t.y0 + p / nx, x = t.x0 + p % nx;
      const int64_t count = (rows.begin[y + 1] - rows.begin[y]) * (cols.begin[x + 1] - cols.begin[x]);
      const int64_t lanes = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
      t.start.push_back(queries), t.lanes.push_back(vectors);
      queries += count, vectors += lanes, widest = std::max(widest, lanes);
    }
    t.start.push_back(queries), t.lanes.push_back(vectors);

    const int grid = window.grid, positions = window.positions();
    const int64_t panels = padded / kPanel<T>;
    const int64_t left = kTileBytes - queries * padded * int64_t(sizeof(T));
    const int largest = std::clamp<int64_t>(left / (pixels * padded * int64_t(sizeof(T))), grid, positions);
    const int passes = (positions + largest - 1) / largest, step = (positions + passes - 1) / passes;
    Buffer<T> keys(patch_rows(t) * patch_cols(t) * dim), values(patch_rows(t) * patch_cols(t) * dim);
    Buffer<T> query(dim * widest), bias(2 * grid * widest), attention(positions * vectors);
    Buffer<T> shared(pixels * panels * step * kPanel<T>), result(queries * padded);
    for (int64_t m = 0; m < queries; ++m) {
      std::copy(offset, offset + outputs, result.get() + m * padded);
      std::fill(result.get() + m * padded + outputs, result.get() + (m + 1) * padded, T(0));
    }
    std::vector<const T*> a(std::max(pixels, queries));
    for (int h = 0; h < heads; ++h) {
      cut(k, t, h, keys.get());
      cut(v, t, h, values.get());
      for (int64_t p = 0; p < pixels; ++p)
        attend(t, t.y0 + p / nx, t.x0 + p % nx, h, keys.get(), query.get(), bias.get(),
               attention.get() + positions * t.lanes[p]);
      for (int g0 = 0; g0 < positions; g0 += step) {
        const int n = std::min(step, positions - g0);
        build(t, h, g0, n, values.get(), shared.get(), a.data());
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t lanes = t.lanes[p + 1] - t.lanes[p], count = t.start[p + 1] - t.start[p];
          const T* weights = attention.get() + positions * t.lanes[p] + g0 * lanes;
          for (int64_t m = 0; m < count; ++m) a[m] = weights + m;
          for (int64_t panel = 0; panel < panels; ++panel)
            multiply_rows<T, true>(count, n, a.data(), lanes, shared.get() + (p * panels + panel) * n * kPanel<T>,
                                   result.get() + t.start[p] * padded + panel * kPanel<T>, padded);
        }
      }
    }
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t y = t.y0 + p / nx, x = t.x0 + p % nx;
      const T* from = result.get() + t.start[p] * padded;
      for (int64_t r = rows.begin[y]; r < rows.begin[y + 1]; ++r)
        for (int64_t s = cols.begin[x]; s < cols.begin[x + 1]; ++s, from += padded)
          std::copy(from, from + outputs, out + (r * num_cols + s) * outputs);
    }
  }

  // The products of the positions g0 ... g0 + n - 1: [pixel][panel][n][kPanel]. Weights are read once, in order.
  void build(const Tile& t, int h, int g0, int n, const T* values, T* shared, const T** a) const {
    const int64_t nx = t.x1 - t.x0, pixels = (t.y1 - t.y0) * nx, panels = padded / kPanel<T>;
    const int64_t size = dim * kPanel<T>, stride = panels * n * kPanel<T>, full = pixels / kRows * kRows;
    const int64_t fetch = kPanel<T> * kRows / std::max<int64_t>(full, 1);
    const T* weight = packed + (int64_t(h) * window.positions() + g0) * panels * size;
    for (int g = g0; g < g0 + n; ++g) {
      const T** to = a;
      for (int64_t y = g / window.grid; y < t.y1 - t.y0 + g / window.grid; ++y)
        for (int64_t x = g % window.grid; x < nx + g % window.grid; ++x) *to++ = values + (y * patch_cols(t) + x) * dim;
      for (int64_t panel = 0; panel < panels; ++panel, weight += size) {
        T* c = shared + (panel * n + g - g0) * kPanel<T>;
        for (int64_t p = 0; p < full; p += kRows)
          multiply<T, kRows, kPanelVectors, false, true>(dim, a + p, 1, weight, kPanel<T>, c + p * stride, stride,
                                                         weight + size + p / kRows * dim * fetch, fetch);
        multiply_rows<T, false>(pixels - full, dim, a + full, 1, weight, c + full * stride, stride);
      }
    }
  }
};

template <typename T>
void dense_linear_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& packed, const Tensor& offset,
                     const Axis<T>& rows, const Axis<T>& cols, int64_t num_rows, int64_t num_cols, int64_t grid,
                     int64_t heads, const Tensor& out) {
  const int64_t batch = v.size(0), height = v.size(1), width = v.size(2), channels = v.size(3), outputs = offset.size(0);
  const int64_t padded = round_up<T>(outputs), map = height * width * channels;
  const int64_t pixels = tile_pixels(double(num_rows * num_cols) / (rows.pixels() * cols.pixels()));
  const int64_t tile_x = std::min(pixels, cols.pixels()), tile_y = std::max<int64_t>(1, pixels / tile_x);
  const int64_t tiles_x = (cols.pixels() + tile_x - 1) / tile_x, tiles_y = (rows.pixels() + tile_y - 1) / tile_y;
  parallel(batch * tiles_y * tiles_x, [&](int64_t i) {
    const int64_t b = i / (tiles_y * tiles_x), y = i / tiles_x % tiles_y * tile_y, x = i % tiles_x * tile_x;
    const Dense<T> dense{read<T>(q) + b * map, read<T>(k) + b * map, read<T>(v) + b * map, read<T>(packed), read<T>(offset),
                         write<T>(out) + b * num_rows * num_cols * outputs, width, channels, outputs, padded, num_cols,
                         int(heads), int(channels / heads), Window{height, width, int(grid)}, rows, cols};
    typename Dense<T>::Tile tile{y, std::min(y + tile_y, rows.pixels()), x, std::min(x + tile_x, cols.pixels()), {}, {}};
    dense.run(tile);
  });
}

void dense_linear(Tensor q, Tensor k, Tensor v, Tensor packed, Tensor offset, Tensor row_nearest, Tensor row_taps,
                  Tensor row_weights, Tensor row_bias, Tensor col_nearest, Tensor col_taps, Tensor col_weights,
                  Tensor col_bias, Tensor out) {
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    const Axis<T> rows(row_nearest, row_taps, row_weights, row_bias), cols(col_nearest, col_taps, col_weights, col_bias);
    dense_linear_of<T>(q, k, v, packed, offset, rows, cols, row_nearest.size(0), col_nearest.size(0), row_bias.size(1),
                       row_bias.size(2), out);
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
