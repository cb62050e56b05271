// A dense grid of queries, tile by tile: what the kernels for it share. Each axis is a small table; a tile is a
// rectangle of pixels with all the queries that are nearest to them, in the order of their pixels, column by column.
#pragma once

#include "tensors.h"
#include "vec.h"
#include "window.h"

#include <algorithm>
#include <vector>

namespace clit {

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

  // Where each pixel's queries begin among those of the tile, and how many there are.
  std::vector<int64_t> starts(const Tile& t) const {
    std::vector<int64_t> start{0};
    for (int64_t x = t.x0; x < t.x1; ++x)
      for (int64_t y = t.y0; y < t.y1; ++y)
        start.push_back(start.back() + (rows.begin[y + 1] - rows.begin[y]) * (cols.begin[x + 1] - cols.begin[x]));
    return start;
  }

  // Equation (6) for one head of the tile: [query][G * G]. keys: [row][dim][column].
  void attend(const Tile& t, int h, const T* keys, T* attention) const {
    const int grid = window.grid, positions = window.positions();
    const int64_t r0 = rows.begin[t.y0], r1 = rows.begin[t.y1], n = patch_cols(t);
    const int stride = (grid + kNarrowLanes<T> - 1) / kNarrowLanes<T> * kNarrowLanes<T>;
    Buffer<T> query(dim), bias_x(stride), bias_y((r1 - r0) * grid);
    for (int64_t i = 0; i < (r1 - r0) * grid; ++i) bias_y.get()[i] = rows.bias[(r0 * grid + i) * heads + h];
    for (int64_t x = t.x0; x < t.x1; ++x)
      for (int64_t y = t.y0; y < t.y1; ++y)
        for (int64_t r = rows.begin[y]; r < rows.begin[y + 1]; ++r)
          for (int64_t s = cols.begin[x]; s < cols.begin[x + 1]; ++s, attention += positions) {
            for (int j = 0; j < stride; ++j) bias_x.get()[j] = j < grid ? cols.bias[(s * grid + j) * heads + h] : T(0);
            sample(r, s, h, query.get());
            const T *key = keys + (y - t.y0) * dim * n + x - t.x0, *bias = bias_y.get() + (r - r0) * grid;
            // What is stored beyond a window row is overwritten by the next row, query or softmax.
            if (grid == 7 && stride == kNarrowLanes<T>)
              logits<7>(query.get(), key, n, bias, bias_x.get(), attention);
            else
              for (int i = 0; i < grid; ++i)
                for (int j = 0; j < stride; j += kNarrowLanes<T>)
                  logits<1>(
                      query.get(), key + i * dim * n + j, n, bias + i, bias_x.get() + j, attention + i * grid + j);
            softmax_in_place(attention, positions);
          }
  }

  // kWindowRows rows of the window, kNarrowLanes columns of each. Not inlined: amid other code the compiler runs out
  // of registers.
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

  // [panel][query][kPanel], the first layer's bias in each.
  void begin(int64_t queries, T* result) const {
    for (int64_t o = 0; o < padded; o += kPanel<T>)
      for (int64_t m = 0; m < queries; ++m)
        for (int i = 0; i < kPanel<T>; ++i) *result++ = o + i < outputs ? offset[o + i] : T(0);
  }

  // From the tile's order, [panel][query][kPanel], to that of the picture.
  void place(const Tile& t, int64_t queries, const T* result) const {
    int64_t m = 0;
    for (int64_t x = t.x0; x < t.x1; ++x)
      for (int64_t y = t.y0; y < t.y1; ++y)
        for (int64_t r = rows.begin[y]; r < rows.begin[y + 1]; ++r)
          for (int64_t s = cols.begin[x]; s < cols.begin[x + 1]; ++s, ++m)
            for (int64_t o = 0; o < outputs; o += kPanel<T>)
              std::copy_n(result + o * queries + m * kPanel<T>, std::min<int64_t>(kPanel<T>, outputs - o),
                  out + (r * num_cols + s) * outputs + o);
  }
};

// What a kernel of torch.ops.clit_cpu for dense queries is given, and its tiles.
struct DenseCall {
  Tensor q, k, v, packed, offset, row_nearest, row_taps, row_weights, row_bias, col_nearest, col_taps, col_weights,
      col_bias, out;

  // Calls f(dense, tile) for all tiles of all images; size(queries per pixel) -> pixels of a tile, high at most `tall`.
  template <typename T, typename Size, typename F>
  void tiles(const Size& size, int64_t tall, const F& f) const {
    const Axis<T> rows(row_nearest, row_taps, row_weights, row_bias),
        cols(col_nearest, col_taps, col_weights, col_bias);
    const int64_t batch = v.size(0), height = v.size(1), width = v.size(2), channels = v.size(3);
    const int64_t num_rows = row_nearest.size(0), num_cols = col_nearest.size(0), outputs = offset.size(0);
    const int64_t heads = row_bias.size(2), map = height * width * channels;
    const int64_t pixels = size(double(num_rows * num_cols) / (rows.pixels() * cols.pixels()));
    const int64_t tile_y = std::min({tall, pixels, rows.pixels()});
    const int64_t tile_x = std::min(std::max<int64_t>(1, pixels / tile_y), cols.pixels());
    const int64_t tiles_x = (cols.pixels() + tile_x - 1) / tile_x, tiles_y = (rows.pixels() + tile_y - 1) / tile_y;
    parallel(batch * tiles_y * tiles_x, [&](int64_t i) {
      const int64_t b = i / (tiles_y * tiles_x), y = i / tiles_x % tiles_y, x = i % tiles_x;
      const Dense<T> dense{read<T>(q) + b * map, read<T>(k) + b * map, read<T>(v) + b * map, read<T>(packed),
          read<T>(offset), write<T>(out) + b * num_rows * num_cols * outputs, width, channels, outputs,
          round_up<T>(outputs), num_cols, int(heads), int(channels / heads),
          Window{height, width, int(row_bias.size(1))}, rows, cols};
      f(dense,
          {rows.pixels() * y / tiles_y, rows.pixels() * (y + 1) / tiles_y, cols.pixels() * x / tiles_x,
              cols.pixels() * (x + 1) / tiles_x});
    });
  }
};

}  // namespace clit
