// A 3 x 3 convolution over an upsampled map: its nine products are made by the library at the resolution of the map
// below; here they are interpolated along both axes and summed over the taps in one pass, rows first, so that neither
// the upsampled map nor a half-interpolated one ever exists. And the transpose.
#pragma once

#include "cuda.cuh"

namespace clit {
namespace {

constexpr int kLanes = 64, kGroups = 4;  // channels of a block, and threads that share the work on each
constexpr int kFine = 32;                // fine columns that are in work together
constexpr int kCoarse = 16;              // columns of the map below whose rows have been interpolated
constexpr int kOwn = 8;                  // the transpose: columns of the map below that a block answers for

// Where the three taps of one axis read (clit_basicsr.ops.geometry.axes.convolution_taps): index, weight (n, 3, 2);
// both pixels of a tap ascend with n. first, last (3, length): the fine pixels whose tap t reads pixel p are
// first[t][p] ... last[t][p] - 1.
struct Taps {
  const int64_t* index;
  const float* weight;
  const int64_t *first, *last;
  int64_t fine, length;

  // What tap t of fine pixel i takes of a pixel of the map below.
  __device__ __forceinline__ float share(int64_t i, int t, int64_t pixel) const {
    const int64_t* at = index + (i * 3 + t) * 2;
    const float* w = weight + (i * 3 + t) * 2;
    return (at[0] == pixel ? w[0] : 0.0f) + (at[1] == pixel ? w[1] : 0.0f);
  }
  // The fine pixels of which any tap reads the pixels low ... high.
  __device__ __forceinline__ int64_t begin(int64_t low) const {
    const int64_t a = first[low], b = first[length + low], c = first[2 * length + low];
    return a < b ? (a < c ? a : c) : (b < c ? b : c);
  }
  __device__ __forceinline__ int64_t end(int64_t high) const {
    const int64_t a = last[high], b = last[length + high], c = last[2 * length + high];
    return a > b ? (a > c ? a : c) : (b > c ? b : c);
  }
};

// One block: a fine row, kFine columns of it, kLanes channels. products: (B, h, w, 3, 3, O); out: (B, R, S, O).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    interpolate_kernel(Taps rows, Taps cols, int64_t outputs, const T* products, const float* bias, T* out) {
  const int64_t chunks = (outputs + kLanes - 1) / kLanes, tiles = (cols.fine + kFine - 1) / kFine;
  const int64_t o = blockIdx.x % chunks * kLanes + threadIdx.x, s0 = blockIdx.x / chunks % tiles * kFine;
  const int64_t line = blockIdx.x / chunks / tiles, r = line % rows.fine;
  const int64_t s1 = s0 + kFine < cols.fine ? s0 + kFine : cols.fine;
  const bool active = o < outputs;
  const T* image = products + line / rows.fine * rows.length * cols.length * 9 * outputs;
  float (*coarse)[kCoarse][kLanes] =
      reinterpret_cast<float (*)[kCoarse][kLanes]>(shared_memory());  // [tx][column][channel]
  float sum[kFine / kGroups] = {};
  const int64_t low = cols.index[s0 * 6], high = cols.index[s1 * 6 - 1];
  for (int64_t x0 = low; x0 <= high; x0 += kCoarse) {
    for (int i = threadIdx.y; i < 3 * kCoarse; i += kGroups) {
      const int tx = i / kCoarse, column = i % kCoarse;
      float value = 0;
      if (active && x0 + column <= high)
        for (int ty = 0; ty < 3; ++ty)
          for (int a = 0; a < 2; ++a) {
            const int64_t at = (r * 3 + ty) * 2 + a;
            const int64_t pixel = rows.index[at] * cols.length + x0 + column;
            value += rows.weight[at] * float(image[(pixel * 9 + ty * 3 + tx) * outputs + o]);
          }
      coarse[tx][column][threadIdx.x] = value;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kFine / kGroups; ++i) {
      const int64_t s = s0 + threadIdx.y + i * kGroups;
      if (s >= s1) continue;
      for (int tx = 0; tx < 3; ++tx)
        for (int b = 0; b < 2; ++b) {
          const int64_t at = (s * 3 + tx) * 2 + b, column = cols.index[at] - x0;
          if (column >= 0 && column < kCoarse) sum[i] += cols.weight[at] * coarse[tx][column][threadIdx.x];
        }
    }
    __syncthreads();
  }
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kFine / kGroups; ++i) {
    const int64_t s = s0 + threadIdx.y + i * kGroups;
    if (s < s1) out[(line * cols.fine + s) * outputs + o] = T(sum[i] + bias[o]);
  }
}

// One block: a row of the map below, kOwn columns of it, kLanes channels. grad: (B, R, S, O); grad_products: (B, h, w,
// 3, 3, O).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    interpolate_backward_kernel(Taps rows, Taps cols, int64_t outputs, const T* grad, T* grad_products) {
  const int64_t chunks = (outputs + kLanes - 1) / kLanes, tiles = (cols.length + kOwn - 1) / kOwn;
  const int64_t o = blockIdx.x % chunks * kLanes + threadIdx.x, x0 = blockIdx.x / chunks % tiles * kOwn;
  const int64_t line = blockIdx.x / chunks / tiles, y = line % rows.length;
  const int64_t x1 = x0 + kOwn < cols.length ? x0 + kOwn : cols.length;
  const bool active = o < outputs;
  const T* image = grad + line / rows.length * rows.fine * cols.fine * outputs;
  float (*fine)[kFine][kLanes] = reinterpret_cast<float (*)[kFine][kLanes]>(shared_memory());  // [ty][column][channel]
  float total[kOwn / kGroups][9] = {};
  const int64_t begin = cols.begin(x0), end = cols.end(x1 - 1), r0 = rows.begin(y), r1 = rows.end(y);
  for (int64_t s0 = begin; s0 < end; s0 += kFine) {
    float sum[3][kFine / kGroups] = {};
    for (int64_t r = r0; r < r1; ++r) {
      const float share[3] = {rows.share(r, 0, y), rows.share(r, 1, y), rows.share(r, 2, y)};
#pragma unroll
      for (int i = 0; i < kFine / kGroups; ++i) {
        const int64_t s = s0 + threadIdx.y + i * kGroups;
        if (!active || s >= end) continue;
        const float value = image[(r * cols.fine + s) * outputs + o];
#pragma unroll
        for (int ty = 0; ty < 3; ++ty) sum[ty][i] += share[ty] * value;
      }
    }
#pragma unroll
    for (int ty = 0; ty < 3; ++ty)
#pragma unroll
      for (int i = 0; i < kFine / kGroups; ++i) fine[ty][threadIdx.y + i * kGroups][threadIdx.x] = sum[ty][i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwn / kGroups; ++i) {
      const int64_t x = x0 + threadIdx.y + i * kGroups;
      if (x >= x1) continue;
#pragma unroll
      for (int tx = 0; tx < 3; ++tx) {
        const int64_t first = cols.first[tx * cols.length + x], last = cols.last[tx * cols.length + x];
        for (int64_t s = first > s0 ? first : s0; s < last && s < s0 + kFine; ++s) {
          const float share = cols.share(s, tx, x);
#pragma unroll
          for (int ty = 0; ty < 3; ++ty) total[i][ty * 3 + tx] += share * fine[ty][s - s0][threadIdx.x];
        }
      }
    }
    __syncthreads();
  }
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kOwn / kGroups; ++i) {
    const int64_t x = x0 + threadIdx.y + i * kGroups;
    if (x >= x1) continue;
    T* to = grad_products + (line * cols.length + x) * 9 * outputs + o;
#pragma unroll
    for (int t = 0; t < 9; ++t) to[t * outputs] = T(total[i][t]);
  }
}

void interpolate(Tensor products, Tensor bias, Tensor row_index, Tensor row_weight, Tensor col_index, Tensor col_weight,
    Tensor out, int64_t stream) {
  const Taps rows{read<int64_t>(row_index), read<float>(row_weight), nullptr, nullptr, out.size(1), products.size(1)};
  const Taps cols{read<int64_t>(col_index), read<float>(col_weight), nullptr, nullptr, out.size(2), products.size(2)};
  const int64_t outputs = out.size(3), tiles = (cols.fine + kFine - 1) / kFine;
  const int64_t blocks = (outputs + kLanes - 1) / kLanes * tiles * rows.fine * out.size(0);
  by_type([&](auto zero) {
    using T = decltype(zero);
    launch("interpolate", &interpolate_kernel<T>, blocks, dim3(kLanes, kGroups), 3 * kCoarse * kLanes * sizeof(float),
        stream, rows, cols, outputs, read<T>(products), read<float>(bias), write<T>(out));
  }, products, out);
}

void interpolate_backward(Tensor grad, Tensor row_index, Tensor row_weight, Tensor row_first, Tensor row_last,
    Tensor col_index, Tensor col_weight, Tensor col_first, Tensor col_last, Tensor grad_products, int64_t stream) {
  const Taps rows{read<int64_t>(row_index), read<float>(row_weight), read<int64_t>(row_first), read<int64_t>(row_last),
      grad.size(1), grad_products.size(1)};
  const Taps cols{read<int64_t>(col_index), read<float>(col_weight), read<int64_t>(col_first), read<int64_t>(col_last),
      grad.size(2), grad_products.size(2)};
  const int64_t outputs = grad.size(3), tiles = (cols.length + kOwn - 1) / kOwn;
  const int64_t blocks = (outputs + kLanes - 1) / kLanes * tiles * rows.length * grad.size(0);
  by_type([&](auto zero) {
    using T = decltype(zero);
    launch("interpolate_backward", &interpolate_backward_kernel<T>, blocks, dim3(kLanes, kGroups),
        3 * kFine * kLanes * sizeof(float), stream, rows, cols, outputs, read<T>(grad), write<T>(grad_products));
  }, grad, grad_products);
}

}  // namespace

CLIT_LIBRARY(m) {
  m.def(
      "interpolate(Tensor products, Tensor bias, Tensor row_index, Tensor row_weight, Tensor col_index, Tensor "
      "col_weight, "
      "Tensor(a!) out, int stream) -> ()");
  m.def(
      "interpolate_backward(Tensor grad, Tensor row_index, Tensor row_weight, Tensor row_first, Tensor row_last, "
      "Tensor col_index, "
      "Tensor col_weight, Tensor col_first, Tensor col_last, Tensor(a!) grad_products, int stream) -> ()");
}
CLIT_LIBRARY_IMPL(m) {
  m.impl("interpolate", TORCH_BOX(&interpolate));
  m.impl("interpolate_backward", TORCH_BOX(&interpolate_backward));
}

}  // namespace clit
