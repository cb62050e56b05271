// Equation (6) for a dense grid of queries: attention weights, with the queries interpolated on the way. In half
// precision on tensor cores, a warp for all the queries of a pixel, whose keys they share; else a warp per query.
#pragma once

#include "attention.cuh"
#include "matrix.cuh"

namespace clit {
namespace {

// One axis of a dense grid of queries (clit_basicsr.ops.geometry.axes.Axis) in pieces: those of the i-th, whose nearest
// pixel is pixel[i], are begin[i] ... begin[i + 1] - 1, `most` of them at most.
struct DenseAxis {
  const int64_t* taps;
  const float *weights, *bias;
  const int64_t *pixel, *begin;
  int64_t pieces, most;

  DenseAxis(const Tensor& taps_, const Tensor& weights_, const Tensor& bias_, const Tensor& pixel_,
      const Tensor& begin_, int64_t most_)
      : taps(read<int64_t>(taps_)),
        weights(read<float>(weights_)),
        bias(read<float>(bias_)),
        pixel(read<int64_t>(pixel_)),
        begin(read<int64_t>(begin_)),
        pieces(pixel_.size(0)),
        most(most_) {}

  // `count` pieces from `first` on, or as many as there are.
  DenseAxis part(int64_t first, int64_t count) const {
    DenseAxis own = *this;
    own.pixel += first, own.begin += first;
    own.pieces = count < pieces - first ? count : pieces - first;
    return own;
  }
};

constexpr int kHeadDim = 32;  // channels of a head
constexpr int kSlots = 256;   // slots that lie together in what these kernels hand over to the first layer

// One warp per place: `rows.most` x `cols.most` places for two pieces, of which those beyond the pieces' own queries
// stay empty. The weights of place p of piece n are those of slot n * slots + p. out: (slots / group, positions / 8,
// group, 8), a position being one of a head's window; if their number is padded to whole eights, with zeros.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) dense_attention_kernel(Window window, int heads, int dim, DenseAxis rows,
    DenseAxis cols, const T* q, const T* k, int64_t slots, int64_t group, int64_t padded, T* out) {
  const int64_t item = global_warp(), places = rows.most * cols.most, piece = item / places, place = item % places;
  if (piece >= rows.pieces * cols.pieces) return;
  const int channels = heads * dim, positions = window.positions(), lane = lane_index();
  const int64_t i = piece / cols.pieces, j = piece % cols.pieces;
  const int64_t r = rows.begin[i] + place / cols.most, s = cols.begin[j] + place % cols.most;
  if (r >= rows.begin[i + 1] || s >= cols.begin[j + 1]) return;
  const int64_t slot = piece * slots + place;
  out += slot / group * group * padded + slot % group * 8;
  for (int n = heads * positions + lane; n < padded; n += kWarp) out[n / 8 * group * 8 + n % 8] = T(0.0f);
  float* scaled = shared_memory() + warp_index() * attend_floats<kDim>(channels, positions);
  const float scale = 1 / sqrtf(float(dim));
  for (int c = lane; c < channels; c += kWarp) {
    float sum = 0;
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 2; ++b)
        sum += rows.weights[2 * r + a] * cols.weights[2 * s + b] *
            float(q[(rows.taps[2 * r + a] * window.width + cols.taps[2 * s + b]) * channels + c]);
    scaled[c] = scale * sum;
  }
  __syncwarp();
  attend<T, kDim>(window, heads, dim, scaled, k, rows.pixel[i], cols.pixel[j], rows.bias + r * window.grid * heads,
      cols.bias + s * window.grid * heads, scaled + channels, out, group * 8);
}

// The same in half precision for windows of up to 8 x 8 positions: one warp per piece, head by head all keys of its
// window (rows) times all its queries (columns). The bias is two more products: which line and which column of the
// window a row is, times what these add to a query's logits, as the sum of two numbers, as one would round it. A piece
// has kPlaces slots, kSlots of which make a group of `out`.
template <typename T, int kPlaces>
__global__ void __launch_bounds__(kThreads) dense_attention_tiles_kernel(
    Window window, int heads, DenseAxis rows, DenseAxis cols, const T* q, const T* k, int padded, T* out) {
  constexpr int kRows = 4, kCols = kPlaces / 8;  // tiles of 16 positions, of 8 queries
  const int64_t piece = global_warp();
  if (piece >= rows.pieces * cols.pieces) return;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int channels = heads * kHeadDim, positions = window.positions(), grid = window.grid, most = cols.most;
  const int64_t i = piece / cols.pieces, j = piece % cols.pieces, first_row = rows.begin[i], first_col = cols.begin[j];
  const int last_row = rows.begin[i + 1] - first_row - 1, last_col = cols.begin[j + 1] - first_col - 1;
  if (last_row < 0 || last_col < 0) return;

  const T* tap[kCols][4];  // of the query 8 n + g; an empty slot is made like the last of its row or column
  float share[kCols][4];
  const float *bias_y[kCols], *bias_x[kCols];
#pragma unroll
  for (int n = 0; n < kCols; ++n) {
    const int64_t r = first_row + min((n * 8 + g) / most, last_row), s = first_col + min((n * 8 + g) % most, last_col);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t a = 2 * r + c / 2, b = 2 * s + c % 2;
      tap[n][c] = q + (rows.taps[a] * window.width + cols.taps[b]) * channels + t * 8;
      share[n][c] = rows.weights[a] * cols.weights[b];
    }
    bias_y[n] = rows.bias + r * grid * heads, bias_x[n] = cols.bias + s * grid * heads;
  }
  const T* key[kRows][2];  // of the positions 16 m + g and g + 8
  unsigned where[kRows][4];
#pragma unroll
  for (int m = 0; m < kRows; ++m)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int p = m * 16 + b * 8 + g, line = p / grid, column = p % grid;
      const int64_t pixel = p < positions ? window.pixel(rows.pixel[i], cols.pixel[j], line, column) : -1;
      key[m][b] = pixel < 0 ? nullptr : k + pixel * channels + t * 8;
      where[m][b] = pair<T>(line == t * 2, line == t * 2 + 1);
      where[m][b + 2] = pair<T>(column == t * 2, column == t * 2 + 1);
    }

  T* staged = reinterpret_cast<T*>(shared_memory()) + warp_index() * padded * kPlaces;  // (padded / 8, kPlaces, 8)
  const auto at = [&](int position, int place) { return (position / 8 * kPlaces + place) * 8 + position % 8; };
  const float root = sqrtf(float(kHeadDim)), scale = 1.44269504f / root;  // the logits are powers of 2 here
  for (int h = 0; h < heads; ++h) {
    unsigned query[kCols][4], high[kCols][2], low[kCols][2];
#pragma unroll
    for (int n = 0; n < kCols; ++n) {
      float sum[8] = {};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float value[8];
        load<8>(tap[n][c] + h * kHeadDim, value);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[e] += share[n][c] * value[e];
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) query[n][e] = pair<T>(sum[2 * e], sum[2 * e + 1]);
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) {
        const float* table = (axis == 0 ? bias_y : bias_x)[n] + h;
        const float first = t * 2 < grid ? root * table[t * 2 * heads] : 0;
        const float second = t * 2 + 1 < grid ? root * table[(t * 2 + 1) * heads] : 0;
        high[n][axis] = pair<T>(first, second);
        low[n][axis] = pair<T>(first - float(T(first)), second - float(T(second)));
      }
    }
    float weight[kRows][kCols][4];
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const uint4 upper = key[m][0] ? reinterpret_cast<const uint4*>(key[m][0] + h * kHeadDim)[0] : uint4{};
      const uint4 lower = key[m][1] ? reinterpret_cast<const uint4*>(key[m][1] + h * kHeadDim)[0] : uint4{};
#pragma unroll
      for (int n = 0; n < kCols; ++n) {
        // The sum over channels may take them in any order: a lane's eight neighbours are its places of both products.
        multiply<T>(weight[m][n], {0, 0, 0, 0}, {upper.x, lower.x, upper.y, lower.y}, {query[n][0], query[n][1]});
        multiply<T>(weight[m][n], weight[m][n], {upper.z, lower.z, upper.w, lower.w}, {query[n][2], query[n][3]});
        multiply<T>(weight[m][n], weight[m][n], where[m], high[n]);
        multiply<T>(weight[m][n], weight[m][n], where[m], low[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < kCols; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float largest = -INFINITY, total = 0;
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int b = 0; b < 2; ++b)
            if (m * 16 + b * 8 + g < positions) largest = fmaxf(largest, weight[m][n][2 * b + e]);
        largest = columns_max(largest) * scale;
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            float& own = weight[m][n][2 * b + e];
            own = power_of_2(scale * own - largest);
            if (m * 16 + b * 8 + g < positions) total += own;
          }
        total = 1 / columns_sum(total);
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const int p = m * 16 + b * 8 + g;
            if (p < positions) staged[at(h * positions + p, n * 8 + t * 2 + e)] = T(total * weight[m][n][2 * b + e]);
          }
      }
  }
  for (int n = lane; n < (padded - heads * positions) * kPlaces; n += kWarp)
    staged[at(heads * positions + n / kPlaces, n % kPlaces)] = T(0.0f);
  __syncwarp();
  const int64_t slot = piece * kPlaces;
  out += slot / kSlots * kSlots * padded + slot % kSlots * 8;
  for (int n = lane; n < padded / 8 * kPlaces; n += kWarp)
    reinterpret_cast<uint4*>(out)[n / kPlaces * kSlots + n % kPlaces] = reinterpret_cast<const uint4*>(staged)[n];
}

// Of q and k (h, w, C), into `out` as the kernels lay it out, by the one that fits.
template <typename T>
void attend_dense(T, const Tensor& q, const Tensor& k, int heads, const DenseAxis& rows, const DenseAxis& cols,
    int64_t slots, int64_t group, int64_t padded, const Tensor& out, int64_t stream, const Window& window) {
  const int channels = k.size(2), dim = channels / heads;
  if constexpr (sizeof(T) == 2) {
    const bool fits = padded * slots * int64_t(sizeof(T)) <= kSharedBytes && window.grid <= 8 && group == kSlots;
    const auto tiles = [&](auto kernel) {
      launch_warps("dense_attention", kernel, rows.pieces * cols.pieces, padded * slots / 2, stream, window, heads,
          rows, cols, read<T>(q), read<T>(k), padded, write<T>(out));
    };
    if (fits && dim == kHeadDim && aligned_by_eight(dim, q, k, out)) {
      if (slots == 8) return tiles(&dense_attention_tiles_kernel<T, 8>);
      if (slots == 16) return tiles(&dense_attention_tiles_kernel<T, 16>);
      if (slots == 32) return tiles(&dense_attention_tiles_kernel<T, 32>);
    }
  }
  const int64_t items = rows.most * cols.most * rows.pieces * cols.pieces;
  const auto run = [&](auto kernel, int64_t floats) {
    launch_warps("dense_attention", kernel, items, floats, stream, window, heads, dim, rows, cols, read<T>(q),
        read<T>(k), slots, group, padded, write<T>(out));
  };
  if (dim == 32 && aligned_by_eight(dim, k))
    run(&dense_attention_kernel<T, 32>, attend_floats<32>(channels, window.positions()));
  else
    run(&dense_attention_kernel<T, 0>, attend_floats<0>(channels, window.positions()));
}

// All pieces, every position of a head's window next to the other.
void dense_attention(Tensor q, Tensor k, Tensor row_taps, Tensor row_weights, Tensor row_bias, Tensor row_pixel,
    Tensor row_begin, Tensor col_taps, Tensor col_weights, Tensor col_bias, Tensor col_pixel, Tensor col_begin,
    int64_t rows_most, int64_t cols_most, Tensor out, int64_t stream) {
  const DenseAxis rows(row_taps, row_weights, row_bias, row_pixel, row_begin, rows_most);
  const DenseAxis cols(col_taps, col_weights, col_bias, col_pixel, col_begin, cols_most);
  const Window window{k.size(0), k.size(1), int(row_bias.size(1))};
  by_type([&](auto zero) {
    attend_dense(zero, q, k, row_bias.size(2), rows, cols, rows_most * cols_most, 1, out.size(2), out, stream, window);
  }, k, q, out);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def(
      "dense_attention(Tensor q, Tensor k, Tensor row_taps, Tensor row_weights, Tensor row_bias, Tensor row_pixel, "
      "Tensor row_begin, Tensor col_taps, Tensor col_weights, Tensor col_bias, Tensor col_pixel, Tensor col_begin, int "
      "rows_most, int cols_most, Tensor(a!) out, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) { m.impl("dense_attention", TORCH_BOX(&dense_attention)); }

}  // namespace clit
