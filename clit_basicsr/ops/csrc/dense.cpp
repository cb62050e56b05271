// The first layer for a dense grid of queries: all queries with the same nearest pixel p share the products of its
// window, P_p[(g, h)] = W_(g, h) v[p + g] (C / H numbers to O), so that one query costs G * G * H * O operations
// instead of G * G * C * O.
#include "vec.h"
#include "tensors.h"
#include "window.h"

#include <algorithm>
#include <vector>

namespace clit {
namespace {

// One axis of the queries, as clit_basicsr.ops.geometry.axes.Axis, and the queries of each pixel.
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

// Pixels of one tile. Many share one reading of the weights; few leave room in the second-level cache for one head's
// attention (196 bytes a query for G = 7) and one panel's weights.
constexpr int64_t tile_pixels(double queries_per_pixel) {
  return std::clamp<int64_t>(int64_t(2560 / queries_per_pixel), 12, 64);
}

// Bytes of products made together, for kRows pixels: they are used while they lie in the first-level cache.
constexpr int64_t kProductBytes = 24 << 10;

template <typename T>
struct Dense {
  const T *q, *k, *v, *packed, *offset;
  T* out;
  int64_t width, channels, outputs, padded, num_cols;
  int heads, dim;
  Window window;
  const Axis<T>&rows, &cols;

  // A rectangle of pixels, counted from the axes' first ones.
  struct Tile {
    int64_t y0, y1, x0, x1;
    int64_t height() const { return y1 - y0; }
    int64_t width() const { return x1 - x0; }
    int64_t pixels() const { return height() * width(); }
  };

  // The tile and the margin that its windows need.
  int64_t patch_rows(const Tile& t) const { return t.height() + window.grid - 1; }
  int64_t patch_cols(const Tile& t) const { return t.width() + window.grid - 1; }

  // One head of a map around the tile, zeros outside the map: [row][column][dim], or [row][dim][column].
  template <bool kColumnsLast>
  void cut(const T* map, const Tile& t, int h, T* patch) const {
    const int r = window.grid / 2;
    const int64_t n = patch_cols(t);
    for (int64_t i = 0; i < patch_rows(t); ++i, patch += n * dim) {
      const int64_t y = rows.first + t.y0 + i - r;
      for (int64_t j = 0; j < n; ++j) {
        const int64_t x = cols.first + t.x0 + j - r;
        const bool inside = y >= 0 && y < window.height && x >= 0 && x < window.width;
        const T* from = inside ? map + (y * width + x) * channels + h * dim : nullptr;
        if constexpr (kColumnsLast)
          for (int c = 0; c < dim; ++c) patch[c * n + j] = inside ? from[c] : T(0);
        else if (inside)
          std::memcpy(patch + j * dim, from, dim * sizeof(T));
        else
          std::memset(patch + j * dim, 0, dim * sizeof(T));
      }
    }
  }

  // One head of one query, scaled: [dim].
  void sample(int64_t r, int64_t s, int h, T* query) const {
    const T scale = T(1) / std::sqrt(T(dim));
    const T* corner[4];
    T w[4];
    for (int i = 0; i < 4; ++i) {
      corner[i] = q + (rows.taps[2 * r + i / 2] * width + cols.taps[2 * s + i % 2]) * channels + h * dim;
      w[i] = rows.weights[2 * r + i / 2] * cols.weights[2 * s + i % 2] * scale;
    }
    for (int c = 0; c < dim; ++c)
      query[c] = w[0] * corner[0][c] + w[1] * corner[1][c] + w[2] * corner[2][c] + w[3] * corner[3][c];
  }

  // Equation (6) for one head of the tile: [query][G * G], the queries in the order of their pixels. keys:
  // [row][dim][column].
  void attend(const Tile& t, int h, const T* keys, T* attention) const {
    const int grid = window.grid, positions = window.positions();
    const int64_t s0 = cols.begin[t.x0], s1 = cols.begin[t.x1], n = patch_cols(t);
    const int stride = (grid + kNarrowLanes<T> - 1) / kNarrowLanes<T> * kNarrowLanes<T>;
    Buffer<T> query(dim), bias_x((s1 - s0) * stride), bias_y(grid);
    for (int64_t s = s0; s < s1; ++s)
      for (int j = 0; j < stride; ++j)
        bias_x.get()[(s - s0) * stride + j] = j < grid ? cols.bias[(s * grid + j) * heads + h] : T(0);
    for (int64_t y = t.y0; y < t.y1; ++y)
      for (int64_t x = t.x0; x < t.x1; ++x)
        for (int64_t r = rows.begin[y]; r < rows.begin[y + 1]; ++r) {
          for (int i = 0; i < grid; ++i) bias_y.get()[i] = rows.bias[(r * grid + i) * heads + h];
          for (int64_t s = cols.begin[x]; s < cols.begin[x + 1]; ++s, attention += positions) {
            sample(r, s, h, query.get());
            const T* key = keys + (y - t.y0) * dim * n + x - t.x0;
            // What is stored beyond a window row is overwritten by the next row, query or softmax.
            if (grid == 7 && stride == kNarrowLanes<T>)
              logits<7>(query.get(), key, n, bias_y.get(), bias_x.get() + (s - s0) * stride, attention);
            else
              for (int i = 0; i < grid; ++i)
                for (int j = 0; j < stride; j += kNarrowLanes<T>)
                  logits<1>(query.get(), key + i * dim * n + j, n, bias_y.get() + i,
                      bias_x.get() + (s - s0) * stride + j, attention + i * grid + j);
            softmax_in_place(attention, positions);
          }
        }
  }

  // kWindowRows rows of the window, kNarrowLanes columns of each. Not inlined, here and below: amid other code the
  // compiler runs out of registers.
  template <int kWindowRows>
  __attribute__((noinline)) void logits(
      const T* query, const T* key, int64_t n, const T* bias_y, const T* bias_x, T* to) const {
    narrow<T> acc[kWindowRows] = {};
    const T* row[kWindowRows];
    for (int i = 0; i < kWindowRows; ++i) row[i] = key + i * dim * n;
    int64_t at = 0;
    for (int c = 0; c < dim; ++c, at += n) {
      const narrow<T> value = query[c] - narrow<T>{};
#pragma GCC unroll 8
      for (int i = 0; i < kWindowRows; ++i) acc[i] += value * load_narrow(row[i] + at);
    }
    for (int i = 0; i < kWindowRows; ++i)
      store_narrow(to + i * window.grid, logit<narrow<T>>(acc[i], bias_y[i] - narrow<T>{}, load_narrow(bias_x)));
  }

  void run(const Tile& t) const {
    const int positions = window.positions();
    const int64_t panels = padded / kPanel<T>, pixels = t.pixels();
    std::vector<int64_t> start{0};  // of each pixel's queries among those of the tile
    for (int64_t y = t.y0; y < t.y1; ++y)
      for (int64_t x = t.x0; x < t.x1; ++x)
        start.push_back(start.back() + (rows.begin[y + 1] - rows.begin[y]) * (cols.begin[x + 1] - cols.begin[x]));
    const int64_t queries = start.back(), margin = kNarrowLanes<T> + kLanes<T>;
    const int largest = std::max<int64_t>(1, kProductBytes / (kRows * kPanel<T> * int64_t(sizeof(T))));
    const int passes = (positions + largest - 1) / largest, step = (positions + passes - 1) / passes;
    Buffer<T> keys(patch_rows(t) * patch_cols(t) * dim + margin), values(patch_rows(t) * patch_cols(t) * dim);
    Buffer<T> attention(queries * positions + margin);
    Buffer<T> shared(kRows * step * kPanel<T>), result(queries * padded);  // result: [panel][query][kPanel]
    T* to = result.get();
    for (int64_t o = 0; o < padded; o += kPanel<T>)
      for (int64_t m = 0; m < queries; ++m)
        for (int i = 0; i < kPanel<T>; ++i) *to++ = o + i < outputs ? offset[o + i] : T(0);
    std::vector<const T*> pixel(pixels), a(queries);
    for (int64_t p = 0; p < pixels; ++p)
      pixel[p] = values.get() + (p / t.width() * patch_cols(t) + p % t.width()) * dim;
    std::vector<int64_t> shift(positions);  // from a pixel's first window position to the others
    for (int g = 0; g < positions; ++g) shift[g] = (g / window.grid * patch_cols(t) + g % window.grid) * dim;
    const int64_t groups = (pixels + kRows - 1) / kRows;
    for (int h = 0; h < heads; ++h) {
      cut<true>(k, t, h, keys.get());
      cut<false>(v, t, h, values.get());
      attend(t, h, keys.get(), attention.get());
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int g0 = 0; g0 < positions; g0 += step) {
          const int n = std::min(step, positions - g0);
          const T* weight = packed + ((h * panels + panel) * positions + g0) * dim * kPanel<T>;
          for (int m = 0; m < queries; ++m) a[m] = attention.get() + m * positions + g0;
          for (int64_t group = 0; group < groups; ++group) {
            const int64_t p0 = pixels * group / groups, p1 = pixels * (group + 1) / groups;
            build(p1 - p0, shift.data() + g0, n, weight, pixel.data() + p0, shared.get());
            for (int64_t p = p0; p < p1; ++p)
              multiply_rows<T, true>(start[p + 1] - start[p], n, a.data() + start[p], 1,
                  shared.get() + (p - p0) * n * kPanel<T>, result.get() + (panel * queries + start[p]) * kPanel<T>,
                  kPanel<T>);
          }
        }
    }
    place(t, start, result.get());
  }

  // From the tile's order, [panel][query][kPanel], to that of the picture.
  void place(const Tile& t, const std::vector<int64_t>& start, const T* result) const {
    const int64_t queries = start.back();
    for (int64_t p = 0; p < t.pixels(); ++p) {
      const int64_t y = t.y0 + p / t.width(), x = t.x0 + p % t.width();
      int64_t m = start[p];
      for (int64_t r = rows.begin[y]; r < rows.begin[y + 1]; ++r)
        for (int64_t s = cols.begin[x]; s < cols.begin[x + 1]; ++s, ++m)
          for (int64_t o = 0; o < outputs; o += kPanel<T>)
            std::copy_n(result + o * queries + m * kPanel<T>, std::min<int64_t>(kPanel<T>, outputs - o),
                out + (r * num_cols + s) * outputs + o);
    }
  }

  // One panel of the products of n window positions for up to kRows pixels: [pixel][n][kPanel].
  void build(int pixels, const int64_t* shift, int n, const T* weight, const T* const* pixel, T* shared) const {
    switch (pixels) {
      case 6:
        build_rows<6>(shift, n, weight, pixel, shared);
        break;
      case 5:
        build_rows<5>(shift, n, weight, pixel, shared);
        break;
      case 4:
        build_rows<4>(shift, n, weight, pixel, shared);
        break;
      case 3:
        build_rows<3>(shift, n, weight, pixel, shared);
        break;
      case 2:
        build_rows<2>(shift, n, weight, pixel, shared);
        break;
      case 1:
        build_rows<1>(shift, n, weight, pixel, shared);
        break;
    }
  }
  template <int M>
  __attribute__((noinline)) void build_rows(
      const int64_t* shift, int n, const T* weight, const T* const* pixel, T* shared) const {
    for (int g = 0; g < n; ++g, weight += dim * kPanel<T>) {
      const T* a[M];
      for (int i = 0; i < M; ++i) a[i] = pixel[i] + shift[g];
      multiply<T, M, kPanelVectors, false>(dim, a, 1, weight, kPanel<T>, shared + g * kPanel<T>, n * kPanel<T>);
    }
  }
};

template <typename T>
void dense_linear_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& packed, const Tensor& offset,
    const Axis<T>& rows, const Axis<T>& cols, int64_t num_rows, int64_t num_cols, int64_t grid, int64_t heads,
    const Tensor& out) {
  const int64_t batch = v.size(0), height = v.size(1), width = v.size(2), channels = v.size(3),
                outputs = offset.size(0);
  const int64_t padded = round_up<T>(outputs), map = height * width * channels;
  const int64_t pixels = tile_pixels(double(num_rows * num_cols) / (rows.pixels() * cols.pixels()));
  const int64_t tile_x = std::min(pixels, cols.pixels()), tile_y = std::max<int64_t>(1, pixels / tile_x);
  const int64_t tiles_x = (cols.pixels() + tile_x - 1) / tile_x, tiles_y = (rows.pixels() + tile_y - 1) / tile_y;
  parallel(batch * tiles_y * tiles_x, [&](int64_t i) {
    const int64_t b = i / (tiles_y * tiles_x), y = i / tiles_x % tiles_y * tile_y, x = i % tiles_x * tile_x;
    const Dense<T> dense{read<T>(q) + b * map, read<T>(k) + b * map, read<T>(v) + b * map, read<T>(packed),
        read<T>(offset), write<T>(out) + b * num_rows * num_cols * outputs, width, channels, outputs, padded, num_cols,
        int(heads), int(channels / heads), Window{height, width, int(grid)}, rows, cols};
    dense.run({y, std::min(y + tile_y, rows.pixels()), x, std::min(x + tile_x, cols.pixels())});
  });
}

void dense_linear(Tensor q, Tensor k, Tensor v, Tensor packed, Tensor offset, Tensor row_nearest, Tensor row_taps,
    Tensor row_weights, Tensor row_bias, Tensor col_nearest, Tensor col_taps, Tensor col_weights, Tensor col_bias,
    Tensor out) {
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    const Axis<T> rows(row_nearest, row_taps, row_weights, row_bias),
        cols(col_nearest, col_taps, col_weights, col_bias);
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
