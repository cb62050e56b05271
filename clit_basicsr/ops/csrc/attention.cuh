// Equation (6), attention weights: one warp per query, its logits in shared memory, arithmetic in single precision.
#pragma once

#include "cuda.cuh"

namespace clit {
namespace {

// Attention of one query.
// query: the C channels, divided by sqrt(C / H), in shared memory; bias_y, bias_x: (G, H); logits: kHeads * G * G
// numbers of shared memory; out: (H, G * G), of which every 8 numbers lie together, `far` from the next.
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
  attend<T, kDim>(all.window, all.heads, all.dim, scaled, k + all.image(n), all.y[n], all.x[n], bias_y + table,
      bias_x + table, scaled + all.channels, out + n * all.heads * all.window.positions(), 8);
}

// Everything of the backward pass that belongs to one query; what goes to k is gathered afterwards from `slope`, the
// gradient of the logits, (B, Q, H, G * G).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) attention_backward_kernel(
    Queries all, const T* grad, const T* out, const T* k, T* grad_query, T* slope, T* grad_y, T* grad_x) {
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
    if (all.dim == 32 && aligned_by_eight(all.dim, k))
      run(&attention_kernel<T, 32>, attend_floats<32>(all.channels, all.window.positions()));
    else
      run(&attention_kernel<T, 0>, attend_floats<0>(all.channels, all.window.positions()));
  }, k, query, out);
}

void attention_backward(Tensor grad, Tensor out, Tensor k, Tensor y, Tensor x, Tensor grad_query, Tensor slope,
    Tensor grad_y, Tensor grad_x, int64_t stream) {
  const Queries all(k, y, x, out.size(2), out.size(3));
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel) {
      launch_warps("attention_backward", kernel, all.total, all.heads * all.window.positions(), stream, all,
          read<T>(grad), read<T>(out), read<T>(k), write<T>(grad_query), write<T>(slope), write<T>(grad_y),
          write<T>(grad_x));
    };
    if (aligned_by_eight(all.dim, k, grad_query))
      run(&attention_backward_kernel<T, 8>);
    else
      run(&attention_backward_kernel<T, 1>);
  }, k, grad, out, grad_query, slope, grad_y, grad_x);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def(
      "attention(Tensor query, Tensor k, Tensor bias_y, Tensor bias_x, Tensor y, Tensor x, Tensor(a!) out, int stream) "
      "-> ()");
  m.def(
      "attention_backward(Tensor grad, Tensor out, Tensor k, Tensor y, Tensor x, Tensor(a!) grad_query, Tensor(b!) "
      "slope, "
      "Tensor(c!) grad_y, Tensor(d!) grad_x, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace clit
