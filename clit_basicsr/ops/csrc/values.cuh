// Equation (7) for queries anywhere: attention-weighted values z for a chunk of queries, small enough to stay in the
// second-level cache, which a library product then multiplies with the decoder's first layer; and the way back.
#pragma once

#include "cuda.cuh"

namespace clit {
namespace {

// One warp per query first ... first + count - 1 (counted over all images) and row of its window: a chunk alone has too
// few queries to keep a GPU busy. z: (count, G * G, C).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    weigh_kernel(Queries all, const T* attention, const T* v, int64_t first, int64_t count, T* z) {
  const int grid = all.window.grid, positions = all.window.positions();
  const int64_t item = global_warp() / grid, n = first + item;
  if (item >= count) return;
  const int i = global_warp() % grid;
  const int64_t y = all.y[n], x = all.x[n];
  const T* image = v + all.image(n);
  z += (item * positions + i * grid) * all.channels;
  for (int c = lane_index() * V; c < all.channels; c += kWarp * V) {
    const T* own = attention + (n * all.heads + c / all.dim) * positions + i * grid;
    for (int j = 0; j < grid; ++j) {
      const int64_t pixel = all.window.pixel(y, x, i, j);
      float value[V] = {};
      if (pixel >= 0) load<V>(image + pixel * all.channels + c, value);
      store<V>(z + j * all.channels + c, value, own[j]);
    }
  }
}

// One warp per query order[first] ... order[first + count - 1] and row of its window. z: (count, G * G, C), on entry
// its own gradient; on return the attention-weighted values, which the weights' gradient needs. grad_attention: (B, Q,
// H, G * G).
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) weigh_backward_kernel(Queries all, const int64_t* order, const T* attention,
    const T* v, int64_t first, int64_t count, T* z, T* grad_attention) {
  using L = Lanes<kDim>;
  const int grid = all.window.grid, positions = all.window.positions(), i = global_warp() % grid;
  const int64_t item = global_warp() / grid;
  if (item >= count) return;
  const int64_t n = order[first + item], y = all.y[n], x = all.x[n];
  const int lane = lane_index();
  const auto [part, slot] = L(lane);
  const T* image = v + all.image(n);
  float* results = shared_memory() + warp_index() * L::kHeads * grid;
  z += (item * positions + i * grid) * all.channels;
  for (int begin = 0; begin < all.heads; begin += L::kHeads) {
    const int h = begin + slot, here = L::heads(begin, all.heads);
    const bool active = slot < here;
    const T* own = attention + (n * all.heads + (active ? h : 0)) * positions + i * grid;
    for (int j = 0; j < grid; ++j) {
      const int64_t pixel = all.window.pixel(y, x, i, j);
      float sum = 0;
      for (int c = h * all.dim + part * L::kPack; active && c < (h + 1) * all.dim; c += L::kPerHead * L::kPack) {
        float value[L::kPack] = {}, gradient[L::kPack];
        if (pixel >= 0) load<L::kPack>(image + pixel * all.channels + c, value);
        load<L::kPack>(z + j * all.channels + c, gradient);
#pragma unroll
        for (int e = 0; e < L::kPack; ++e) sum += value[e] * gradient[e];
        store<L::kPack>(z + j * all.channels + c, value, own[j]);
      }
      sum = lanes_sum<L::kPerHead>(sum);
      if (active && part == 0) results[slot * grid + j] = sum;
    }
    __syncwarp();
    for (int e = lane; e < here * grid; e += kWarp)
      grad_attention[(n * all.heads + begin + e / grid) * positions + i * grid + e % grid] = T(results[e]);
    __syncwarp();
  }
}

void weigh(Tensor attention, Tensor v, Tensor y, Tensor x, int64_t first, Tensor z, int64_t stream) {
  const Queries all(v, y, x, attention.size(2), attention.size(3));
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel) {
      launch_warps("weigh", kernel, z.size(0) * all.window.grid, 0, stream, all, read<T>(attention), read<T>(v), first,
          z.size(0), write<T>(z));
    };
    if (aligned_by_eight(all.dim, v, z))
      run(&weigh_kernel<T, 8>);
    else
      run(&weigh_kernel<T, 1>);
  }, v, attention, z);
}

void weigh_backward(Tensor attention, Tensor v, Tensor y, Tensor x, Tensor order, int64_t first, Tensor z,
    Tensor grad_attention, int64_t stream) {
  const Queries all(v, y, x, attention.size(2), attention.size(3));
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel, int heads) {
      launch_warps("weigh_backward", kernel, z.size(0) * all.window.grid, heads * all.window.grid, stream, all,
          read<int64_t>(order), read<T>(attention), read<T>(v), first, z.size(0), write<T>(z),
          write<T>(grad_attention));
    };
    if (all.dim == 32 && aligned_by_eight(all.dim, v, z))
      run(&weigh_backward_kernel<T, 32>, Lanes<32>::kHeads);
    else
      run(&weigh_backward_kernel<T, 0>, Lanes<0>::kHeads);
  }, v, attention, z, grad_attention);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def("weigh(Tensor attention, Tensor v, Tensor y, Tensor x, int first, Tensor(a!) z, int stream) -> ()");
  m.def(
      "weigh_backward(Tensor attention, Tensor v, Tensor y, Tensor x, Tensor order, int first, Tensor(a!) z, "
      "Tensor(b!) grad_attention, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) {
  m.impl("weigh", TORCH_BOX(&weigh));
  m.impl("weigh_backward", TORCH_BOX(&weigh_backward));
}

}  // namespace clit
