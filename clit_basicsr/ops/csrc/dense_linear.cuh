// Equation (7) and the first layer for a dense grid of queries in half precision, on tensor cores. Queries with one
// nearest pixel share its window: the products of its values with the layer's weights are made once, in registers, and
// weighted by each query's attention. Every warp works for itself, once a small table is made.
#pragma once

#include "dense_attention.cuh"

namespace clit {
namespace {

// A warp has kSlots places: the more, the less often the weights are read.
constexpr int kOutputs = 16;  // outputs of a warp
constexpr int kAbreast = 2;   // warps of a block that have the same queries and other outputs

// Where the queries of a piece are in the result.
struct alignas(16) Piece {
  int row, col, num_rows, num_cols;
};

// One warp: kSlots / kPlaces pieces (see DenseAxis) of kPlaces places each, some of them empty, and kOutputs outputs.
// attention: (warps, positions / 8, kSlots, 8), a position being one of a head's window, their number padded to whole
// eights; v: (h + 2 reach, w + 2 reach, C), zero outside the map; weight: (O / kOutputs, positions, 2, 32, 8), by lanes
// as the products take it (clit_basicsr.ops.backends.cuda_backend); out: (R, S, O).
template <typename T, int kPlaces>
__global__ void __launch_bounds__(kThreads, 1)
    dense_linear_kernel(Window window, int heads, int positions, int outputs, DenseAxis rows, DenseAxis cols,
        const T* attention, const T* v, const T* weight, const float* bias, int64_t width, T* out) {
  constexpr int kPieces = kSlots / kPlaces, kTiles = kPieces / 8, kTogether = kTiles < 2 ? kTiles : 2;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int64_t line = window.width + window.grid - 1;            // pixels of a line of v
  int64_t* offset = reinterpret_cast<int64_t*>(shared_memory());  // of a position, from the first of the window
  for (int i = threadIdx.x; i < positions; i += kThreads) {
    const int h = i / window.positions(), p = i % window.positions();
    offset[i] = h < heads ? (p / window.grid * line + p % window.grid) * heads * kHeadDim + h * kHeadDim : 0;
  }
  __syncthreads();

  const int64_t pieces = rows.pieces * cols.pieces;
  const int64_t across = (outputs + kOutputs * kAbreast - 1) / (kOutputs * kAbreast);
  const int64_t warp = blockIdx.x / across * (kThreads / kWarp / kAbreast) + warp_index() / kAbreast,
                first = warp * kPieces;
  const int64_t layer = blockIdx.x % across * kAbreast + warp_index() % kAbreast;
  if (first >= pieces || layer * kOutputs >= outputs) return;

  const T* value[kTiles];  // of the piece 8 n + g
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int64_t piece = first + n * 8 + g < pieces ? first + n * 8 + g : pieces - 1;
    value[n] =
        v + (rows.pixel[piece / cols.pieces] * line + cols.pixel[piece % cols.pieces]) * heads * kHeadDim + t * 8;
  }
  constexpr int kStep = kOutputs * kHeadDim;  // weights of a position
  weight += layer * positions * kStep + lane * 8;
  attention += warp * positions * kSlots + g * 8 + t * 2;

  float sum[kPieces][kPlaces / 8][4] = {};
  for (int begin = 0; begin < positions; begin += 8, weight += 8 * kStep, attention += 8 * kSlots)
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += kTogether) {
      unsigned products[kTogether][4]
                       [4];  // [tile][two positions][element]; rows: outputs, columns: the pieces of the tile
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        float product[2][kTogether][4];
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const uint4* from = reinterpret_cast<const uint4*>(weight + (j + b) * kStep);
          const uint4 early = from[0], late = from[kWarp];
          const int64_t at = offset[begin + j + b];
#pragma unroll
          for (int n = 0; n < kTogether; ++n) {
            // The sum over channels may take them in any order: a lane's eight neighbours are its places of both
            // products.
            const uint4 own = *reinterpret_cast<const uint4*>(value[tile + n] + at);
            multiply<T>(product[b][n], {0, 0, 0, 0}, {early.x, early.y, early.z, early.w}, {own.x, own.y});
            multiply<T>(product[b][n], product[b][n], {late.x, late.y, late.z, late.w}, {own.z, own.w});
          }
        }
#pragma unroll
        for (int n = 0; n < kTogether; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) products[n][j / 2][e] = pair<T>(product[0][n][e], product[1][n][e]);
      }
#pragma unroll
      for (int n = 0; n < kTogether; ++n) {
      // From two pieces and eight positions a lane to eight pieces and two positions, as the second product takes them.
#pragma unroll
        for (int e = 0; e < 4; ++e)
          transpose(products[n][0][e], products[n][1][e], products[n][2][e], products[n][3][e]);
#pragma unroll
        for (int s = 0; s < 8; ++s)
#pragma unroll
          for (int m = 0; m < kPlaces / 8; ++m) {
            const int piece = (tile + n) * 8 + s;
            const T* from = attention + (piece * kPlaces + m * 8) * 8;
            multiply<T>(sum[piece][m], sum[piece][m], {products[n][s / 2][s % 2], products[n][s / 2][s % 2 + 2]},
                *reinterpret_cast<const unsigned*>(from));
          }
      }
    }

  Piece* own = reinterpret_cast<Piece*>(offset + positions) + warp_index() * kPieces;
  if (lane < kPieces) {
    const int64_t i = (first + lane) / cols.pieces, j = (first + lane) % cols.pieces;
    own[lane] = first + lane < pieces
        ? Piece{int(rows.begin[i]), int(cols.begin[j]), int(rows.begin[i + 1] - rows.begin[i]),
              int(cols.begin[j + 1] - cols.begin[j])}
        : Piece{};
  }
  __syncwarp();
  const int o = layer * kOutputs + g, most = cols.most;
  const float upper = o < outputs ? bias[o] : 0, lower = o + 8 < outputs ? bias[o + 8] : 0;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const Piece piece = own[p];
#pragma unroll
    for (int m = 0; m < kPlaces / 8; ++m)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int place = m * 8 + t * 2 + e, r = place / most, s = place % most;
        if (r >= piece.num_rows || s >= piece.num_cols) continue;
        T* to = out + ((piece.row + r) * width + piece.col + s) * outputs + o;
        if (o < outputs) to[0] = T(sum[p][m][e] + upper);
        if (o + 8 < outputs) to[8] = T(sum[p][m][e + 2] + lower);
      }
  }
}

// The attention of a tile of pieces and its first layer, tile by tile: as few pieces that the attention is still in the
// second-level cache when it is read. q, k: (h, w, C); v: (h + grid - 1, w + grid - 1, C), zero outside the map; slots:
// places of a piece, 8, 16 or 32; height, width: pieces of a tile; attention: room for that of one tile, see
// dense_linear_kernel; out: (R, S, O). The loop is here as a launch from Python costs a host several times as much.
void dense_linear(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, Tensor row_taps, Tensor row_weights,
    Tensor row_bias, Tensor row_pixel, Tensor row_begin, Tensor col_taps, Tensor col_weights, Tensor col_bias,
    Tensor col_pixel, Tensor col_begin, int64_t rows_most, int64_t cols_most, int64_t slots, int64_t height,
    int64_t width, Tensor attention, Tensor out, int64_t stream) {
  const DenseAxis rows(row_taps, row_weights, row_bias, row_pixel, row_begin, rows_most);
  const DenseAxis cols(col_taps, col_weights, col_bias, col_pixel, col_begin, cols_most);
  const int outputs = out.size(2), positions = attention.size(1) * 8, grid = row_bias.size(1);
  const int heads = row_bias.size(2);
  const Window window{k.size(0), k.size(1), grid};
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  if (ceil(height * width * slots, kSlots) > attention.size(0))
    throw std::runtime_error("clit_basicsr: the attention of a tile does not fit in the room for it");
  const auto run = [&](auto zero, auto places, const DenseAxis& down, const DenseAxis& across) {
    using T = decltype(zero);
    constexpr int kPlaces = decltype(places)::value;
    constexpr int kPieces = kSlots / kPlaces, kWarps = kThreads / kWarp;
    const int64_t abreast = ceil(outputs, kOutputs * kAbreast), warps = ceil(down.pieces * across.pieces, kPieces);
    const int64_t shared = positions * sizeof(int64_t) + kWarps * kPieces * sizeof(Piece);
    launch("dense_linear", &dense_linear_kernel<T, kPlaces>, ceil(warps, kWarps / kAbreast) * abreast, dim3(kThreads),
        shared, stream, window, heads, positions, outputs, down, across, read<T>(attention), read<T>(v),
        read<T>(weight), read<float>(bias), out.size(1), write<T>(out));
  };
  by_type([&](auto zero) {
    if constexpr (sizeof(zero) == 2) {
      if (slots == 8 || slots == 16 || slots == 32) {
        for (int64_t top = 0; top < rows.pieces; top += height)
          for (int64_t left = 0; left < cols.pieces; left += width) {
            const DenseAxis down = rows.part(top, height), across = cols.part(left, width);
            attend_dense(zero, q, k, heads, down, across, slots, kSlots, positions, attention, stream, window);
            if (slots == 8) run(zero, std::integral_constant<int, 8>(), down, across);
            if (slots == 16) run(zero, std::integral_constant<int, 16>(), down, across);
            if (slots == 32) run(zero, std::integral_constant<int, 32>(), down, across);
          }
        return;
      }
    }
    throw std::runtime_error(
        "clit_basicsr: the CUDA kernel dense_linear takes 8, 16 or 32 places in float16 or bfloat16");
  }, q, k, v, weight, attention, out);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def(
      "dense_linear(Tensor q, Tensor k, Tensor v, Tensor weight, Tensor bias, Tensor row_taps, Tensor row_weights, "
      "Tensor row_bias, Tensor row_pixel, Tensor row_begin, Tensor col_taps, Tensor col_weights, Tensor col_bias, "
      "Tensor col_pixel, Tensor col_begin, int rows_most, int cols_most, int slots, int height, int width, Tensor(a!) "
      "attention, Tensor(b!) out, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) { m.impl("dense_linear", TORCH_BOX(&dense_linear)); }

}  // namespace clit
