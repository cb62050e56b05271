// Vectors of the machine at hand through GCC's vector extensions, and the one matrix product that all kernels are made
// of.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace clit {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kPanelVectors = 4, kRows = 6;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kPanelVectors = 2, kRows = 6;
#else
constexpr int kVectorBytes = 16, kPanelVectors = 2, kRows = 6;
#endif

template <typename T>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t index __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t index __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using vec = typename Vec<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// Columns of one panel: B operands are stored as [panel][K][kPanel].
template <typename T>
constexpr int kPanel = kPanelVectors * kLanes<T>;

template <typename T>
constexpr int64_t round_up(int64_t n) {
  return (n + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

template <typename T>
inline vec<T> load(const T* p) {
  return *reinterpret_cast<const vec<T>*>(p);
}
template <typename T>
inline void store(T* p, vec<T> v) {
  *reinterpret_cast<vec<T>*>(p) = v;
}
template <typename T>
inline vec<T> fill(T value) {
  return value - vec<T>{};  // x - 0 is x, which the compiler knows; x + 0 would be an addition
}

// Vectors for the rows of a window, which are short: of at most 8 numbers in single precision.
constexpr int kNarrowBytes = kVectorBytes < 32 ? kVectorBytes : 32;
template <typename T>
struct Narrow {
  typedef T type __attribute__((vector_size(kNarrowBytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using narrow = typename Narrow<T>::type;
template <typename T>
constexpr int kNarrowLanes = kNarrowBytes / sizeof(T);

template <typename T>
inline narrow<T> load_narrow(const T* p) {
  return *reinterpret_cast<const narrow<T>*>(p);
}
template <typename T>
inline void store_narrow(T* p, narrow<T> v) {
  *reinterpret_cast<narrow<T>*>(p) = v;
}

template <typename T>
inline T sum(vec<T> v) {
  // In halves, always in the same order.
  typedef typename Vec<T>::index index;
  for (int n = kLanes<T> / 2; n > 0; n /= 2) {
    index other{};
    for (int i = 0; i < kLanes<T>; ++i) other[i] = (i + n) % kLanes<T>;
    v += __builtin_shuffle(v, other);
  }
  return v[0];
}

template <typename T>
inline T dot(const T* a, const T* b, int n) {
  vec<T> acc{};
  int i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) acc += load(a + i) * load(b + i);
  T out = sum<T>(acc);
  for (; i < n; ++i) out += a[i] * b[i];
  return out;
}

// y += a * x
template <typename T>
inline void axpy(T a, const T* x, T* y, int n) {
  int i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(y + i, load(y + i) + a * load(x + i));
  for (; i < n; ++i) y[i] += a * x[i];
}

// exp of values <= 0, to about one unit in the last place.
inline vec<float> exp_negative(vec<float> x) {
  const vec<float> low = fill(-87.0f);
  x = x < low ? low : x;
  const vec<float> magic = fill(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vec<float> shifted = x * 1.44269504f + magic;
  const vec<float> n = shifted - magic;
  const vec<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  vec<float> p = fill(1.9875691e-4f);
  p = p * r + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  // A cast between vectors keeps the bits.
  typedef Vec<float>::index index;
  const index exponent = ((index)shifted - (index)magic) << 23;
  return (vec<float>)((index)p + exponent);
}
inline vec<double> exp_negative(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// a[0 ... n - 1]; up to kLanes numbers behind them are overwritten.
template <typename T>
inline void softmax_in_place(T* a, int n) {
  constexpr int L = kLanes<T>;
  store(a + n, fill(T(-INFINITY)));
  vec<T> largest = load(a);
  for (int i = L; i < n; i += L) {
    const vec<T> value = load(a + i);
    largest = value > largest ? value : largest;
  }
  T top = largest[0];
  for (int i = 1; i < L; ++i) top = top < largest[i] ? largest[i] : top;
  vec<T> total{};
  for (int i = 0; i < n; i += L) {
    const vec<T> value = exp_negative(load(a + i) - top);
    total += value;
    store(a + i, value);
  }
  const T factor = T(1) / sum<T>(total);
  for (int i = 0; i < n; i += L) store(a + i, load(a + i) * factor);
}

// C[i][0 ... V vectors) (+)= sum over k of A[i][k] * B[k][...], for M rows: everything stays in registers.
// a: A's rows, their elements `step` apart; B's rows are `width` apart, C's `stride`.
template <typename T, int M, int V, bool kAccumulate>
inline __attribute__((always_inline)) void multiply(
    int K, const T* const* a, int64_t step, const T* b, int64_t width, T* c, int64_t stride) {
  constexpr int L = kLanes<T>;
  vec<T> acc[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) acc[i][j] = kAccumulate ? load(c + i * stride + j * L) : vec<T>{};
  for (int k = 0; k < K; ++k) {
    vec<T> row[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) row[j] = load(b + k * width + j * L);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const vec<T> value = fill(a[i][k * step]);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) acc[i][j] += value * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) store(c + i * stride + j * L, acc[i][j]);
}

// The same for any number of rows, one panel wide. The rows are shared out evenly: few at a time would leave the adders
// waiting. Not inlined: amid other code the compiler runs out of registers.
template <typename T, bool kAccumulate>
__attribute__((noinline)) void multiply_rows(
    int M, int K, const T* const* a, int64_t step, const T* panel, T* c, int64_t stride) {
  constexpr int V = kPanelVectors;
  for (int parts = (M + kRows - 1) / kRows; parts > 0; --parts) {
    const int m = (M + parts - 1) / parts;
    switch (m) {
      case 6:
        multiply<T, 6, V, kAccumulate>(K, a, step, panel, kPanel<T>, c, stride);
        break;
      case 5:
        multiply<T, 5, V, kAccumulate>(K, a, step, panel, kPanel<T>, c, stride);
        break;
      case 4:
        multiply<T, 4, V, kAccumulate>(K, a, step, panel, kPanel<T>, c, stride);
        break;
      case 3:
        multiply<T, 3, V, kAccumulate>(K, a, step, panel, kPanel<T>, c, stride);
        break;
      case 2:
        multiply<T, 2, V, kAccumulate>(K, a, step, panel, kPanel<T>, c, stride);
        break;
      case 1:
        multiply<T, 1, V, kAccumulate>(K, a, step, panel, kPanel<T>, c, stride);
        break;
    }
    M -= m, a += m, c += m * stride;
  }
}

}  // namespace clit
