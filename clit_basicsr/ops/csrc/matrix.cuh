// Products of small matrices that a warp makes together, on tensor cores: mma.sync of compute capability 8.0 and later,
// half-precision factors, single-precision sums. Lane 4 * g + t of the warp holds, of A (16 x k) the rows g and g + 8,
// of B (k x 8) the column g, each at its places 2 t and 2 t + 1 of every 8 of k (two numbers a word), and of the sums
// (16 x 8) rows g, g + 8 and columns 2 t, 2 t + 1: sum[0], sum[1] of row g, sum[2], sum[3] of row g + 8.
#pragma once

#include "cuda.cuh"

namespace clit {
namespace {

// Two numbers as one word, the first in its low half.
template <typename T>
__device__ __forceinline__ unsigned pair(float first, float second) {
  const T values[2] = {T(first), T(second)};
  unsigned word;
  memcpy(&word, values, sizeof(word));
  return word;
}

#if !defined(CLIT_EMULATION)
// Correct to 2 in the last place, below the smallest normal number 0.
__device__ __forceinline__ float power_of_2(float exponent) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
}

// sum = start + A B for k = 8. a: rows g, g + 8. Volatile, here and below: the whole warp makes it, so it may not move
// into a branch.
template <typename T>
__device__ __forceinline__ void multiply(float (&sum)[4], const float (&start)[4], const unsigned (&a)[2], unsigned b) {
  if constexpr (std::is_same_v<T, Half>)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "f"(start[0]), "f"(start[1]), "f"(start[2]), "f"(start[3]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "f"(start[0]), "f"(start[1]), "f"(start[2]), "f"(start[3]));
}

// The same for k = 16. a: rows g, g + 8 for the first half of k, then for the second.
template <typename T>
__device__ __forceinline__ void multiply(
    float (&sum)[4], const float (&start)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (std::is_same_v<T, Half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
        "%12, %13};"
        : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(start[0]), "f"(start[1]), "f"(start[2]),
        "f"(start[3]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
        "%12, %13};"
        : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(start[0]), "f"(start[1]), "f"(start[2]),
        "f"(start[3]));
}
#endif

// Sum, or largest, over the rows of such sums: over the lanes g of one t.
__device__ __forceinline__ float columns_sum(float value) {
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
__device__ __forceinline__ float columns_max(float value) {
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// Four lanes 4 g ... 4 g + 3 with four words each: afterwards lane t has the t-th word of each lane.
__device__ __forceinline__ void transpose(unsigned& w0, unsigned& w1, unsigned& w2, unsigned& w3) {
  const auto swap = [](unsigned& low, unsigned& high, int step) {
    const bool upper = lane_index() & step;
    const unsigned other = __shfl_xor_sync(0xffffffffu, upper ? low : high, step);
    (upper ? low : high) = other;
  };
  swap(w0, w1, 1);
  swap(w2, w3, 1);
  swap(w0, w2, 2);
  swap(w1, w3, 2);
}

}  // namespace
}  // namespace clit
