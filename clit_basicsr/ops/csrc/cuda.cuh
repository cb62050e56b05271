// What all CUDA kernels are made of: numbers in the tensors' own type, reductions over lanes, checked launches.
// The device code is plain enough to run in the tests' emulation of the execution model too, compiled by g++.
#pragma once

#if defined(CLIT_EMULATION)
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "tensors.h"
#include "window.h"

#if defined(CLIT_EMULATION)
#define CLIT_LIBRARY(m) STABLE_TORCH_LIBRARY_FRAGMENT(clit_emulated, m)
#define CLIT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(clit_emulated, CPU, m)
#else
#define CLIT_LIBRARY(m) STABLE_TORCH_LIBRARY_FRAGMENT(clit_cuda, m)
#define CLIT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(clit_cuda, CUDA, m)
#endif

namespace clit {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

constexpr int kWarp = 32;
constexpr int kThreads = 256;
// What every block may use without asking. Shared memory is requested at launch, as the sizes depend on the grid.
constexpr int64_t kSharedBytes = 48 << 10;

// V neighbouring numbers of a tensor. For V = 8 they are moved 16 bytes at a time, and the address is a multiple of 16:
// through the built-in vector type, and stored by an intrinsic, as the compiler takes plain stores apart again.
template <int V, typename T>
__device__ __forceinline__ void load(const T* from, float (&to)[V]) {
  T value[V];
  if constexpr (V == 1) {
    value[0] = *from;
  } else {
    constexpr int kPieces = sizeof(value) / sizeof(uint4);
    uint4 pieces[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) pieces[i] = reinterpret_cast<const uint4*>(from)[i];
    memcpy(value, pieces, sizeof(value));
  }
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = float(value[i]);
}

template <int V, typename T>
__device__ __forceinline__ void store(T* to, const float (&from)[V], float scale = 1) {
  T value[V];
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] = T(from[i] * scale);
  if constexpr (V == 1) {
    *to = value[0];
  } else {
    constexpr int kPieces = sizeof(value) / sizeof(uint4);
    uint4 pieces[kPieces];
    memcpy(pieces, value, sizeof(value));
#pragma unroll
    for (int i = 0; i < kPieces; ++i) __stwb(reinterpret_cast<uint4*>(to) + i, pieces[i]);
  }
}

// How a warp shares out the channels of a query, head by head, and the lane's part in it: lane `part` of its group has
// the channels part * kPack ... of every kPerHead * kPack, of the slot-th of the kHeads heads that are in work
// together. kDim = C / H: 8 channels a lane, so several heads together; kDim = 0: any C / H, one head at a time, one
// channel a lane.
template <int kDim>
struct Lanes {
  static constexpr int kPack = kDim ? 8 : 1;
  static constexpr int kPerHead = kDim ? kDim / kPack : kWarp;
  static constexpr int kHeads = kWarp / kPerHead;

  int part, slot;

  __device__ __forceinline__ explicit Lanes(int lane) : part(lane % kPerHead), slot(lane / kPerHead) {}

  // Of the heads from `first` on, how many are in work.
  __device__ __forceinline__ static int heads(int first, int all) {
    return all - first < kHeads ? all - first : kHeads;
  }
};

// Sum, or largest, over groups of kLanes neighbouring lanes, known to all of them; every lane of the warp takes part.
template <int kLanes>
__device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
template <int kLanes>
__device__ __forceinline__ float lanes_max(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarp; }
// The warp's number in the whole grid: kernels of one warp per item.
__device__ __forceinline__ int64_t global_warp() { return int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp_index(); }

#if !defined(CLIT_EMULATION)
__device__ __forceinline__ float* shared_memory() {
  extern __shared__ __align__(16) float memory[];
  return memory;
}

// stream: the cudaStream_t that torch works on, as a number; the device is the current one.
template <typename... P, typename... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, dim3 block, int64_t shared, int64_t stream,
    A... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string("clit_basicsr: too many elements in one call of the CUDA kernel ") + name);
  const cudaError_t earlier = cudaGetLastError();
  if (earlier != cudaSuccess)
    throw std::runtime_error(std::string("clit_basicsr: a CUDA operation before the kernel ") + name +
        " failed: " + cudaGetErrorString(earlier));
  kernel<<<dim3(blocks), block, shared, reinterpret_cast<cudaStream_t>(stream)>>>(P(arguments)...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(
        std::string("clit_basicsr: the CUDA kernel ") + name + " could not be launched: " + cudaGetErrorString(error));
}
#endif

// A launch of one warp per item, `floats` numbers of shared memory each: as many warps per block as fit.
template <typename... P, typename... A>
void launch_warps(
    const char* name, void (*kernel)(P...), int64_t items, int64_t floats, int64_t stream, A... arguments) {
  int64_t warps = kThreads / kWarp;
  while (warps > 1 && warps * floats * int64_t(sizeof(float)) > kSharedBytes) warps /= 2;
  const int64_t bytes = warps * floats * sizeof(float);
  if (bytes > kSharedBytes)
    throw std::runtime_error(std::string("clit_basicsr: grid_size or num_heads is too large for the CUDA kernel ") +
        name + ": it needs " + std::to_string(bytes) + " bytes of shared memory, more than " +
        std::to_string(kSharedBytes));
  launch(name, kernel, (items + warps - 1) / warps, dim3(warps * kWarp), bytes, stream, arguments...);
}

// Calls f with a value of the tensors' one type.
template <typename F, typename... Tensors>
void by_type(const F& f, const Tensor& t, const Tensors&... others) {
  if (((others.scalar_type() != t.scalar_type()) || ...))
    throw std::runtime_error("clit_basicsr: the tensors of a CUDA kernel differ in type");
  switch (t.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return f(float());
    case torch::headeronly::ScalarType::Half:
      return f(Half());
    case torch::headeronly::ScalarType::BFloat16:
      return f(BFloat16());
    default:
      throw std::runtime_error("clit_basicsr: the CUDA kernels take float32, float16 and bfloat16");
  }
}

// Whether all of these can be read and written 8 channels at a time, none of which cross a head's border.
template <typename... Tensors>
bool aligned_by_eight(int64_t dim, const Tensors&... tensors) {
  return dim % 8 == 0 && ((reinterpret_cast<uintptr_t>(tensors.data_ptr()) % 16 == 0) && ...);
}

// Maps (B, h, w, C) seen from queries at their pixels y, x (B, Q).
struct Queries {
  int64_t count, total;
  int channels, heads, dim;
  Window window;
  const int64_t *y, *x;

  Queries(const Tensor& map, const Tensor& y_, const Tensor& x_, int64_t heads_, int64_t positions)
      : count(y_.size(1)),
        total(y_.size(0) * count),
        channels(map.size(3)),
        heads(heads_),
        dim(channels / heads),
        window{map.size(1), map.size(2), 1},
        y(read<int64_t>(y_)),
        x(read<int64_t>(x_)) {
    while (window.positions() < positions) ++window.grid;
  }

  // Where the image of query n begins in a map.
  __device__ __forceinline__ int64_t image(int64_t n) const {
    return n / count * window.height * window.width * channels;
  }
};

}  // namespace clit
