// Kernels with the faults that the emulation must notice; the program ends with 0 if it notices all of them.
#include "emulation.h"

#include <cstdio>

namespace {

// Every thread reads what its neighbour wrote: with a barrier between, or without.
void neighbour(float* out, bool barrier) {
  float* shared = clit::shared_memory();
  shared[threadIdx.x] = threadIdx.x;
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
void half_a_warp_exchanges(float* out, bool) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
void one_thread_skips_the_barrier(float*, bool) {
  if (threadIdx.x != 3) __syncthreads();
}
// Not refused but told, by what the compiler adds.
void writes_to_a_crooked_address(float*, bool) { reinterpret_cast<uint4*>(clit::shared_memory() + 1)->x = 1; }
void writes_beyond_its_memory(float*, bool) { clit::shared_memory()[64] = 1; }

bool is_refused(void (*kernel)(float*, bool)) {
  float out[64];
  try {
    clit::launch("faulty", kernel, 1, dim3(64), 64 * sizeof(float), 0, out, false);
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return true;
  }
  return false;
}

bool is_right(bool barrier, int64_t seed) {
  float out[64];
  emulation::Machine::get().set_order(seed);
  clit::launch("neighbour", &neighbour, 1, dim3(64), 64 * sizeof(float), 0, out, barrier);
  for (int i = 0; i < 64; ++i)
    if (out[i] != (i + 1) % 64) return false;
  return true;
}

}  // namespace

int main() {
  bool noticed = is_right(true, 0) && is_right(true, 5) && !is_right(false, 0) && !is_right(false, 5);
  for (auto kernel : {&half_a_warp_exchanges, &one_thread_skips_the_barrier, &writes_beyond_its_memory})
    noticed = is_refused(kernel) && noticed;
  is_refused(&writes_to_a_crooked_address);
  return noticed ? 0 : 1;
}
