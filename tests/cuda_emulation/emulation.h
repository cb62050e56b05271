// The CUDA execution model on the CPU, for tests: every thread of every block really runs, as a fibre of its own that
// waits at barriers and exchanges lanes. Blocks run one after the other, threads in an order that the tests choose,
// shared memory is filled with NaN before each block. What would be undefined or wrong on a GPU is an error here:
// threads of a warp that do not all reach an exchange, threads of a block that do not all reach a barrier, shared
// memory used beyond what the launch asked for.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulation {

enum class State { kRuns, kWarp, kBlock, kDone };

struct Fibre {
  dim3 thread;
  int index = 0;
  State state = State::kRuns;
  unsigned words[6] = {};
  bool started = false;
  ucontext_t context;
  jmp_buf place;
};

class Machine {
 public:
  dim3 grid, block, block_index;
  Fibre* now = nullptr;

  static Machine& get() {
    static thread_local Machine machine;
    return machine;
  }

  // 0: threads and blocks in ascending order; anything else: shuffled by this seed.
  void set_order(int64_t seed) { seed_ = seed; }
  int64_t launches() const { return launches_; }

  float* shared() { return shared_.data() + kGuard; }

  void run(const char* name, dim3 grid_, dim3 block_, int64_t bytes, std::function<void()> body) {
    ++launches_;
    grid = grid_, block = block_, body_ = std::move(body);
    const int64_t threads = int64_t(block.x) * block.y * block.z, blocks = int64_t(grid.x) * grid.y * grid.z;
    if (threads > 1024) throw std::runtime_error("a block of more than 1024 threads");
    while (int64_t(fibres_.size()) < threads) {
      fibres_.push_back(std::make_unique<Fibre>());
      stacks_.push_back(std::make_unique<char[]>(kStack));
    }
    shared_.resize(bytes / sizeof(float) + 2 * kGuard);
    const std::vector<int64_t> order = permutation(blocks);
    for (int64_t b : order) {
      block_index = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
      run_block(name, threads);
    }
  }

  void wait(State barrier) {
    now->state = barrier;
    if (_setjmp(now->place) == 0) _longjmp(home_, 1);
  }

  // Every lane of the warp hands over words, then reads what any other has handed over: f(lane) are its words.
  template <typename F>
  void exchange(const unsigned* words, int count, const F& f) {
    std::copy(words, words + count, now->words);
    const int first = now->index / kWarp * kWarp;
    wait(State::kWarp);
    f([&](int lane) { return fibres_[first + lane]->words; });
    wait(State::kWarp);  // nobody writes again before everybody has read
  }
  int lane() const { return now->index % kWarp; }

 private:
  static constexpr int kWarp = 32, kGuard = 64;
  static constexpr size_t kStack = 64 << 10;

  std::vector<int64_t> permutation(int64_t n) {
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    if (seed_ != 0) std::shuffle(order.begin(), order.end(), std::mt19937_64(seed_));
    return order;
  }

  void run_block(const char* name, int64_t threads) {
    std::memset(shared_.data(), 0xff, shared_.size() * sizeof(float));  // every number a NaN
    for (int64_t i = 0; i < threads; ++i) {
      Fibre& fibre = *fibres_[i];
      fibre.thread = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
      fibre.index = i, fibre.state = State::kRuns, fibre.started = false;
    }
    const std::vector<int64_t> order = permutation(threads);
    while (true) {
      for (int64_t i : order)
        if (fibres_[i]->state == State::kRuns) resume(*fibres_[i]);
      if (count(0, threads, State::kDone) == threads) break;
      bool moved = false;
      for (int64_t first = 0; first < threads; first += kWarp)
        moved |= release(first, std::min(first + kWarp, threads), State::kWarp);
      if (!moved) moved = release(0, threads, State::kBlock);
      if (!moved)
        throw std::runtime_error(std::string(name) +
            ": some threads wait where others never arrive: " + std::to_string(count(0, threads, State::kWarp)) +
            " in a warp, " + std::to_string(count(0, threads, State::kBlock)) + " at a barrier, " +
            std::to_string(count(0, threads, State::kDone)) + " ended");
    }
    for (int i = 0; i < kGuard; ++i)
      for (const float* guard : {shared_.data() + i, shared_.data() + shared_.size() - 1 - i}) {
        uint32_t bits;
        std::memcpy(&bits, guard, sizeof(bits));
        if (bits != 0xffffffffu) throw std::runtime_error(std::string(name) + " wrote beyond its shared memory");
      }
  }

  int64_t count(int64_t first, int64_t last, State state) const {
    int64_t n = 0;
    for (int64_t i = first; i < last; ++i) n += fibres_[i]->state == state;
    return n;
  }

  bool release(int64_t first, int64_t last, State state) {
    if (count(first, last, state) != last - first) return false;
    for (int64_t i = first; i < last; ++i) fibres_[i]->state = State::kRuns;
    return true;
  }

  void resume(Fibre& fibre) {
    now = &fibre;
    if (_setjmp(home_) != 0) return;
    if (fibre.started) _longjmp(fibre.place, 1);
    fibre.started = true;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = stacks_[fibre.index].get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, &Machine::start, 0);
    setcontext(&fibre.context);
  }

  static void start() {
    Machine& machine = get();
    machine.body_();
    machine.now->state = State::kDone;
    _longjmp(machine.home_, 1);
  }

  int64_t seed_ = 0, launches_ = 0;
  std::function<void()> body_;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  std::vector<float> shared_;
  jmp_buf home_;
};

}  // namespace emulation

#define threadIdx (emulation::Machine::get().now->thread)
#define blockIdx (emulation::Machine::get().block_index)
#define blockDim (emulation::Machine::get().block)
#define gridDim (emulation::Machine::get().grid)

template <typename T>
void __stwb(T* to, T value) {
  *to = value;
}
inline void __syncthreads() { emulation::Machine::get().wait(emulation::State::kBlock); }
inline void __syncwarp() { emulation::Machine::get().wait(emulation::State::kWarp); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  static_assert(sizeof(T) == sizeof(unsigned));
  if (mask != 0xffffffffu) throw std::runtime_error("only whole warps are emulated");
  emulation::Machine& machine = emulation::Machine::get();
  unsigned word;
  std::memcpy(&word, &value, sizeof(word));
  machine.exchange(&word, 1, [&](auto words) { std::memcpy(&value, words(machine.lane() ^ step), sizeof(value)); });
  return value;
}

namespace clit {

template <typename T>
float half_number(unsigned word, int place) {
  T values[2];
  std::memcpy(values, &word, sizeof(word));
  return float(values[place]);
}

// The instruction mma.sync.m16n8k8 with operands as the PTX manual lays them out over a warp.
template <typename T>
void multiply(float (&sum)[4], const float (&start)[4], const unsigned (&a)[2], unsigned b) {
  emulation::Machine& machine = emulation::Machine::get();
  const unsigned own[3] = {a[0], a[1], b};
  machine.exchange(own, 3, [&](auto words) {
    for (int e = 0; e < 4; ++e) {
      sum[e] = start[e];
      const int row = machine.lane() / 4 + e / 2 * 8, column = machine.lane() % 4 * 2 + e % 2;
      for (int k = 0; k < 8; ++k)
        sum[e] += half_number<T>(words(row % 8 * 4 + k / 2)[row / 8], k % 2) *
            half_number<T>(words(column * 4 + k / 2)[2], k % 2);
    }
  });
}

// mma.sync.m16n8k16: that of both halves of k.
template <typename T>
void multiply(float (&sum)[4], const float (&start)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply<T>(sum, start, {a[0], a[1]}, b[0]);
  multiply<T>(sum, sum, {a[2], a[3]}, b[1]);
}

using std::min;

inline float power_of_2(float exponent) { return std::exp2(exponent); }

inline float* shared_memory() { return emulation::Machine::get().shared(); }

template <typename... P, typename... A>
void launch(
    const char* name, void (*kernel)(P...), int64_t blocks, dim3 block, int64_t shared, int64_t, A... arguments) {
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": more blocks than a grid has");
  if (shared > 48 << 10) throw std::runtime_error(std::string(name) + ": more shared memory than a block has");
  emulation::Machine::get().run(name, dim3(blocks), block, shared, [=] { kernel(P(arguments)...); });
}

}  // namespace clit
