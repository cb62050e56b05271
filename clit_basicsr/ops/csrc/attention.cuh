// Equation (6), attention weights: one warp per query, its logits in shared memory, arithmetic in single precision.
#pragma once

#include "cuda.cuh"

namespace clit {
namespace {

// Attention of one query.
// query: the C channels, divided by sqrt(C / H), in shared memory; bias_y, bias_x: (G, H); logits: kHeads * G * G numbers of
// shared memory; out: (H, G * G), of which every 8 numbers lie together, `far` from the next.
template <typename T, int kDim>
__device__ void attend(const Window& window, int heads, int dim, const float* query, const T* k, int64_t y, int64_t x,
                       const float* bias_y, const float* bias_x, float* logits, T* out, int64_t far) {
  using L = Lanes<kDim>;
  const int lane = lane_index();
  const auto [part, slot] = L(lane);
  const int positions = window.positions(), grid = window.grid, channels = heads * dim;
  float* own = logits + slot * positions;
  for (int first = 0; first < heads; first += L::kHeads) {
    const int h = first + slot, here = L::heads(first, heads);
    const bool active = slot < here;
    const int channel = active ? h * dim + part * L::kPack : 0;
    float mine[L::kPack];
    if constexpr (kDim != 0) load<L::kPack>(query + channel, mine);
    for (int i = 0; i < grid; ++i)
      for (int j = 0; j < grid; ++j) {
        const int64_t pixel = window.pixel(y, x, i, j);
        float product = 0;
        if (pixel >= 0) {  // the same for the whole warp
          const T* key = k + pixel * channels + channel;
          if constexpr (kDim != 0) {
            float other[L::kPack];
            load<L::kPack>(key, other);
#pragma unroll
            for (int c = 0; c < L::kPack; ++c) product += mine[c] * other[c];
          } else {
            for (int c = part; c < dim; c += kWarp) product += query[channel - part + c] * float(key[c - part]);
          }
          product = lanes_sum<L::kPerHead>(product);
        }
        if (active && part == 0) own[i * grid + j] = logit(product, bias_y[i * heads + h], bias_x[j * heads + h]);
      }
    __syncwarp();
    float largest = -INFINITY, total = 0;
    for (int g = part; active && g < positions; g += L::kPerHead) largest = fmaxf(largest, own[g]);
    largest = lanes_max<L::kPerHead>(largest);
    for (int g = part; active && g < positions; g += L::kPerHead) total += own[g] = expf(own[g] - largest);
    total = lanes_sum<L::kPerHead>(total);
    for (int g = part; active && g < positions; g += L::kPerHead) own[g] /= total;
    __syncwarp();
    for (int i = lane; i < here * positions; i += kWarp) {
      const int at = first * positions + i;
      out[at / 8 * far + at % 8] = T(logits[i]);
    }
    __syncwarp();
  }
}

// Shared memory of a warp: its query, then its logits.
template <int kDim>
CLIT_FUNCTION int attend_floats(int channels, int positions) {
  return channels + Lanes<kDim>::kHeads * positions;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(Queries all, const T* query, const T* k, const float* bias_y, const float* bias_x, T* out) {
  const int64_t n = global_warp();
  if (n >= all.total) return;
  float* scaled = shared_memory() + warp_index() * attend_floats<kDim>(all.channels, all.window.positions());
  const float scale = 1 / sqrtf(float(all.dim));
  for (int c = lane_index(); c < all.channels; c += kWarp) scaled[c] = scale * float(query[n * all.channels + c]);
  __syncwarp();
  const int64_t table = n * all.window.grid * all.heads;
  attend<T, kDim>(all.window, all.heads, all.dim, scaled, k + all.image(n), all.y[n], all.x[n], bias_y + table, bias_x + table,
                  scaled + all.channels, out + n * all.heads * all.window.positions(), 8);
}

// One axis of a dense grid of queries (clit_basicsr.ops.axes.Axis) in pieces: those of the i-th, whose nearest pixel is pixel[i], are
// begin[i] ... begin[i + 1] - 1, `most` of them at most.
struct DenseAxis {
  const int64_t* taps;
  const float *weights, *bias;
  const int64_t *pixel, *begin;
  int64_t pieces, most;
};

// One warp per place: `rows.most` x `cols.most` places for two pieces, of which those beyond the pieces' own queries stay empty.
// The weights of place p of piece n are those of slot n * slots + p. out: (slots / group, positions / 8, group, 8), a position being one
// of a head's window; if their number is padded to whole eights, with zeros.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    dense_attention_kernel(Window window, int heads, int dim, DenseAxis rows, DenseAxis cols, const T* q, const T* k, int64_t slots,
                           int64_t group, int64_t padded, T* out) {
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

// Everything of the backward pass that belongs to one query; what goes to k is gathered afterwards from `slope`, the gradient of
// the logits, (B, Q, H, G * G).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    attention_backward_kernel(Queries all, const T* grad, const T* out, const T* k, T* grad_query, T* slope, T* grad_y, T* grad_x) {
  const int64_t n = global_warp();
  if (n >= all.total) return;
  const int lane = lane_index(), heads = all.heads, grid = all.window.grid, positions = all.window.positions();
  const int64_t y = all.y[n], x = all.x[n], base = n * heads * positions;
  float* slopes = shared_memory() + warp_index() * heads * positions;
  for (int h = 0; h < heads; ++h) {
    const T *value = out + base + h * positions, *gradient = grad + base + h * positions;
    float total = 0;
    for (int g = lane; g < positions; g += kWarp) total += float(value[g]) * float(gradient[g]);
    total = lanes_sum<kWarp>(total);
    for (int g = lane; g < positions; g += kWarp) {
      const float s = softmax_gradient(float(value[g]), float(gradient[g]), total);
      slopes[h * positions + g] = s;
      slope[base + h * positions + g] = T(s);
    }
  }
  __syncwarp();
  for (int item = lane; item < grid * heads; item += kWarp) {
    const float* own = slopes + item % heads * positions;
    const int line = item / heads;
    float along_x = 0, along_y = 0;
    for (int i = 0; i < grid; ++i) along_x += own[line * grid + i], along_y += own[i * grid + line];
    grad_y[n * grid * heads + item] = T(along_x);
    grad_x[n * grid * heads + item] = T(along_y);
  }
  const float scale = 1 / sqrtf(float(all.dim));
  const T* image = k + all.image(n);
  for (int c = lane * V; c < all.channels; c += kWarp * V) {
    const float* own = slopes + c / all.dim * positions;
    float sum[V] = {};
    for (int i = 0; i < grid; ++i)
      for (int j = 0; j < grid; ++j) {
        const int64_t pixel = all.window.pixel(y, x, i, j);
        if (pixel < 0) continue;
        float key[V];
        load<V>(image + pixel * all.channels + c, key);
        const float s = own[i * grid + j];
#pragma unroll
        for (int e = 0; e < V; ++e) sum[e] += s * key[e];
      }
    store<V>(grad_query + n * all.channels + c, sum, scale);
  }
}

void attention(Tensor query, Tensor k, Tensor bias_y, Tensor bias_x, Tensor y, Tensor x, Tensor out, int64_t stream) {
  const Queries all(k, y, x, out.size(2), out.size(3));
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel, int64_t floats) {
      launch_warps("attention", kernel, all.total, floats, stream, all, read<T>(query), read<T>(k), read<float>(bias_y),
                   read<float>(bias_x), write<T>(out));
    };
    if (all.dim == 32 && by_eights(all.dim, k))
      run(&attention_kernel<T, 32>, attend_floats<32>(all.channels, all.window.positions()));
    else
      run(&attention_kernel<T, 0>, attend_floats<0>(all.channels, all.window.positions()));
  }, k, query, out);
}

void attention_backward(Tensor grad, Tensor out, Tensor k, Tensor y, Tensor x, Tensor grad_query, Tensor slope, Tensor grad_y,
                        Tensor grad_x, int64_t stream) {
  const Queries all(k, y, x, out.size(2), out.size(3));
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel) {
      launch_warps("attention_backward", kernel, all.total, all.heads * all.window.positions(), stream, all, read<T>(grad),
                   read<T>(out), read<T>(k), write<T>(grad_query), write<T>(slope), write<T>(grad_y), write<T>(grad_x));
    };
    if (by_eights(all.dim, k, grad_query))
      run(&attention_backward_kernel<T, 8>);
    else
      run(&attention_backward_kernel<T, 1>);
  }, k, grad, out, grad_query, slope, grad_y, grad_x);
}

void dense_attention(Tensor q, Tensor k, Tensor row_taps, Tensor row_weights, Tensor row_bias, Tensor row_pixel, Tensor row_begin,
                     Tensor col_taps, Tensor col_weights, Tensor col_bias, Tensor col_pixel, Tensor col_begin, int64_t rows_most,
                     int64_t cols_most, int64_t slots, int64_t group, int64_t padded, Tensor out, int64_t stream) {
  const int grid = row_bias.size(1), heads = row_bias.size(2), channels = k.size(2), dim = channels / heads;
  const Window window{k.size(0), k.size(1), grid};
  const auto axis = [](const Tensor& taps, const Tensor& weights, const Tensor& bias, const Tensor& pixel, const Tensor& begin,
                       int64_t most) {
    return DenseAxis{read<int64_t>(taps),  read<float>(weights), read<float>(bias), read<int64_t>(pixel),
                     read<int64_t>(begin), pixel.size(0),        most};
  };
  const DenseAxis rows = axis(row_taps, row_weights, row_bias, row_pixel, row_begin, rows_most);
  const DenseAxis cols = axis(col_taps, col_weights, col_bias, col_pixel, col_begin, cols_most);
  const int64_t items = rows.most * cols.most * rows.pieces * cols.pieces;
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel, int64_t floats) {
      launch_warps("dense_attention", kernel, items, floats, stream, window, heads, dim, rows, cols, read<T>(q), read<T>(k), slots,
                   group, padded, write<T>(out));
    };
    if (dim == 32 && by_eights(dim, k))
      run(&dense_attention_kernel<T, 32>, attend_floats<32>(channels, window.positions()));
    else
      run(&dense_attention_kernel<T, 0>, attend_floats<0>(channels, window.positions()));
  }, k, q, out);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def(
      "attention(Tensor query, Tensor k, Tensor bias_y, Tensor bias_x, Tensor y, Tensor x, Tensor(a!) out, int stream) -> ()");
  m.def(
      "attention_backward(Tensor grad, Tensor out, Tensor k, Tensor y, Tensor x, Tensor(a!) grad_query, Tensor(b!) slope, "
      "Tensor(c!) grad_y, Tensor(d!) grad_x, int stream) -> ()");
  m.def(
      "dense_attention(Tensor q, Tensor k, Tensor row_taps, Tensor row_weights, Tensor row_bias, Tensor row_pixel, "
      "Tensor row_begin, Tensor col_taps, Tensor col_weights, Tensor col_bias, Tensor col_pixel, Tensor col_begin, int rows_most, "
      "int cols_most, int slots, int group, int padded, Tensor(a!) out, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("dense_attention", TORCH_BOX(&dense_attention));
}

}  // namespace clit
