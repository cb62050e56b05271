// Gradients of the maps k and v without atomics: every pixel adds up what the queries whose window holds it have for
// it, always in the same order. The queries are sorted by their nearest pixel, so those of a row of pixels follow each
// other.
#pragma once

#include "cuda.cuh"

namespace clit {
namespace {

struct Sorted {
  const int64_t *order, *begin;  // begin: (B * h * w + 1), where the queries of each pixel begin in the order
  int64_t first, last;           // only these places of the order take part
};

// One block per pixel of the images image ... image + images - 1, whose warps share out the rows of the window: one
// image alone has too few pixels to keep a GPU busy, and every number is found through three others. coefficients: (B,
// Q, H, G * G); values: `by_place` (places, G * G, C), else (B, Q, C); out: (images, h, w, C).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) gather_kernel(Queries all, Sorted sorted, int64_t image, bool by_place,
    const T* coefficients, const T* values, float scale, bool add, float* out) {
  const int64_t height = all.window.height, width = all.window.width, item = blockIdx.x;
  const int warps = blockDim.x / kWarp, grid = all.window.grid, positions = all.window.positions(), reach = grid / 2;
  const int64_t y = item / width % height, x = item % width;
  const int64_t left = x < reach ? 0 : x - reach, right = x + reach < width ? x + reach : width - 1;
  float* partial = shared_memory() + lane_index() * V;  // of each warp in turn
  for (int first = 0; first < all.channels; first += kWarp * V) {
    const int c = first + lane_index() * V, h = c / all.dim;
    const bool active = c < all.channels;
    float sum[V] = {};
    for (int i = warp_index(); active && i < grid; i += warps) {
      const int64_t row = y + reach - i;  // this pixel is in line i of the windows of this row's queries
      if (row < 0 || row >= height) continue;
      const int64_t line = ((image + item / (height * width)) * height + row) * width;
      const int64_t begin = sorted.begin[line + left], end = sorted.begin[line + right + 1];
      for (int64_t place = begin > sorted.first ? begin : sorted.first; place < end && place < sorted.last; ++place) {
        const int64_t n = sorted.order[place];
        const int g = i * grid + int(x - all.x[n]) + reach;
        const T* from =
            by_place ? values + ((place - sorted.first) * positions + g) * all.channels : values + n * all.channels;
        float value[V];
        load<V>(from + c, value);
        const float coefficient = coefficients[(n * all.heads + h) * positions + g];
#pragma unroll
        for (int e = 0; e < V; ++e) sum[e] += coefficient * value[e];
      }
    }
#pragma unroll
    for (int e = 0; e < V; ++e) partial[warp_index() * kWarp * V + e] = sum[e];
    __syncthreads();
    if (warp_index() == 0 && active) {
      float* to = out + item * all.channels + c;
      float total[V] = {};
      if (add) load<V>(to, total);
      for (int w = 0; w < warps; ++w)
#pragma unroll
        for (int e = 0; e < V; ++e) total[e] += scale * partial[w * kWarp * V + e];
      store<V>(to, total);
    }
    __syncthreads();
  }
}

void gather(Tensor coefficients, Tensor values, Tensor y, Tensor x, Tensor order, Tensor begin, int64_t first,
    int64_t last, int64_t image, bool by_place, double scale, bool add, Tensor out, int64_t stream) {
  const Queries all(out, y, x, coefficients.size(2), coefficients.size(3));
  const Sorted sorted{read<int64_t>(order), read<int64_t>(begin), first, last};
  by_type([&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel, int pack) {
      const int warps = all.window.grid < kThreads / kWarp ? all.window.grid : kThreads / kWarp;
      launch("gather", kernel, out.size(0) * out.size(1) * out.size(2), dim3(warps * kWarp),
          warps * kWarp * pack * sizeof(float), stream, all, sorted, image, by_place, read<T>(coefficients),
          read<T>(values), scale, add, write<float>(out));
    };
    if (aligned_by_eight(all.dim, values, out))
      run(&gather_kernel<T, 8>, 8);
    else
      run(&gather_kernel<T, 1>, 1);
  }, values, coefficients);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def(
      "gather(Tensor coefficients, Tensor values, Tensor y, Tensor x, Tensor order, Tensor begin, int first, int last, "
      "int image, "
      "bool by_place, float scale, bool add, Tensor(a!) out, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) { m.impl("gather", TORCH_BOX(&gather)); }

}  // namespace clit
