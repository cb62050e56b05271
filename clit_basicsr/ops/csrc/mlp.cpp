// A multi-layer perceptron: a block of rows passes through all layers while it stays in the second-level cache. A row's
// result depends neither on the other rows nor on the number of threads.
#include "tensors.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace clit {
namespace {

// Rows of a block: two buffers of 256 floats a row leave half of a cache of 512 KB to the weights that pass through it.
constexpr int64_t kBlock = 96;
// Rows of a panel of weights that stay in the first-level cache.
constexpr int64_t kDepth = 256;

enum Activation : int64_t { kNone = 0, kRelu = 1, kGelu = 2 };

// erf(x / sqrt(2)): x P(x^2) / Q(x^2), fitted to 3e-8 on |x| <= 5.7, beyond which it is 1 in single precision; with the
// rounding of single precision 4e-7.
inline vec<float> erf_scaled(vec<float> x) {
  const vec<float> high = fill(5.7f);
  x = x > high ? high : x;
  x = x < -high ? -high : x;
  const vec<float> t = x * x;
  vec<float> p = fill(4.31596810e-8f);
  p = p * t + 1.27482693e-5f;
  p = p * t + 3.58790184e-4f;
  p = p * t + 9.48167400e-3f;
  p = p * t + 6.98826601e-2f;
  p = p * t + 7.97884412e-1f;
  vec<float> q = fill(1.16494490e-6f);
  q = q * t + 7.67679096e-5f;
  q = q * t + 1.94456108e-3f;
  q = q * t + 2.92607796e-2f;
  q = q * t + 2.54250395e-1f;
  q = q * t + 1.0f;
  return x * p / q;
}
inline vec<double> erf_scaled(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::erf(x[i] * M_SQRT1_2);
  return x;
}

template <typename T>
inline vec<T> activate(vec<T> x, int64_t activation) {
  if (activation == kRelu) return x < vec<T>{} ? vec<T>{} : x;  // NaN stays NaN
  if (activation == kGelu) return T(0.5) * x * (T(1) + erf_scaled(x));
  return x;
}

// cos(pi a) and sin(pi a), to 2e-7 for |a| < 2^22.
inline void cos_sin_pi(vec<float> a, vec<float>& cos, vec<float>& sin) {
  const vec<float> magic = fill(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vec<float> half = fill(0.5f), shifted = a + magic;
  vec<float> r = a - (shifted - magic);
  r = r > half ? half : r;
  r = r < -half ? -half : r;
  const vec<float> t = r * r;
  vec<float> s = fill(-7.3704309e-3f);  // Taylor series
  s = s * t + 8.2145887e-2f;
  s = s * t - 5.9926453e-1f;
  s = s * t + 2.5501640f;
  s = s * t - 5.1677128f;
  s = (s * t + 3.1415927f) * r;
  vec<float> c = fill(-2.5806891e-2f);
  c = c * t + 2.3533063e-1f;
  c = c * t - 1.3352628f;
  c = c * t + 4.0587121f;
  c = c * t - 4.9348022f;
  c = c * t + 1.0f;
  // A cast between vectors keeps the bits: the last one of the rounded number becomes the sign.
  typedef Vec<float>::index index;
  const index odd = (index)shifted << 31;
  cos = (vec<float>)((index)c ^ odd);
  sin = (vec<float>)((index)s ^ odd);
}
inline void cos_sin_pi(vec<double> a, vec<double>& cos, vec<double>& sin) {
  for (int i = 0; i < kLanes<double>; ++i) cos[i] = std::cos(M_PI * a[i]), sin[i] = std::sin(M_PI * a[i]);
}

template <typename T>
struct Mlp {
  const T *packed, *base;  // packed: for each layer its bias and its panels, see clit_basicsr.ops.decoder.pack
  const int64_t *index, *widths;
  int64_t layers, base_width, activation;
  bool residual;
  T* out;

  int64_t inputs() const { return widths[0]; }
  int64_t outputs() const { return widths[layers]; }
  int64_t appended(int64_t layer) const { return residual && layer > 0 ? inputs() : 0; }

  int64_t stride() const {
    int64_t widest = 0;
    for (int64_t i = 0; i <= layers; ++i) widest = std::max(widest, round_up<T>(widths[i]) + appended(i));
    return widest + 64 / sizeof(T);  // rows a power of two apart would share the sets of the cache
  }

  // The rows begin ... end - 1; input(i, to): the first layer's input for one of them, which may be written to `to`.
  template <typename Input>
  void run(int64_t begin, int64_t end, const Input& input) const {
    const int64_t m = end - begin, stride = this->stride();
    Buffer<T> first(m * stride), second(m * stride);
    T *now = first.get(), *next = second.get();
    std::vector<const T*> a(m), shifted(m);
    for (int64_t i = 0; i < m; ++i) a[i] = input(begin + i, now + i * stride);
    const std::vector<const T*> x(residual ? a : std::vector<const T*>());
    const T* weight = packed;
    for (int64_t layer = 0; layer < layers; ++layer) {
      const int64_t depth = widths[layer] + appended(layer), width = widths[layer + 1], padded = round_up<T>(width);
      const bool last = layer + 1 == layers;
      const T* bias = weight;
      weight += padded;
      for (int64_t o = 0; o < padded; o += kPanel<T>, weight += depth * kPanel<T>) {
        for (int64_t k = 0; k < depth || k == 0; k += kDepth) {
          for (int64_t i = 0; i < m; ++i) shifted[i] = a[i] + k;
          const int n = std::min(kDepth, depth - k);
          if (k == 0)
            multiply_rows<T, false>(m, n, shifted.data(), 1, weight, next + o, stride);
          else
            multiply_rows<T, true>(m, n, shifted.data(), 1, weight + k * kPanel<T>, next + o, stride);
        }
        for (int64_t i = 0; i < m; ++i) {
          const T* add = layer == 0 && base ? base + index[begin + i] * base_width : nullptr;
          const T* skip = residual && layer > 0 && !last ? a[i] : nullptr;
          finish(bias, add, skip, o, last ? int64_t(kNone) : activation, next + i * stride);
        }
      }
      if (last) break;
      std::swap(now, next);
      for (int64_t i = 0; i < m; ++i) {
        a[i] = now + i * stride;
        if (residual) std::copy_n(x[i], inputs(), now + i * stride + width);
      }
    }
    for (int64_t i = 0; i < m; ++i) std::copy_n(next + i * stride, outputs(), out + (begin + i) * outputs());
  }

  // Of one panel of one row of products: bias, what is added to the first layer, activation, skip connection.
  void finish(const T* bias, const T* add, const T* skip, int64_t o, int64_t activation, T* row) const {
    T rest[kPanel<T>] = {};
    if (add && o + kPanel<T> > base_width) {
      std::copy_n(add + o, base_width - o, rest);
      add = rest - o;
    }
    for (int64_t j = o; j < o + kPanel<T>; j += kLanes<T>) {
      vec<T> value = load(row + j) + load(bias + j);
      if (add) value += load(add + j);
      value = activate<T>(value, activation);
      if (skip) value += load(skip + j);
      store(row + j, value);
    }
  }
};

template <typename T, typename Input>
void run_blocks(const Mlp<T>& net, int64_t rows, const Input& input) {
  parallel((rows + kBlock - 1) / kBlock,
      [&](int64_t block) { net.run(block * kBlock, std::min(rows, (block + 1) * kBlock), input); });
}

template <typename T>
void activate_row(const T* from, int64_t n, int64_t activation, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(to + i, activate<T>(load(from + i), activation));
  T rest[kLanes<T>] = {};
  std::copy_n(from + i, n - i, rest);
  store(to + i, activate<T>(load(rest), activation));
}

void mlp(Tensor x, Tensor packed, Tensor widths, Tensor base, Tensor index, int64_t activation, bool activate_first,
    bool residual, Tensor out) {
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    const bool with_base = base.numel() > 0;
    const Mlp<T> net{read<T>(packed), with_base ? read<T>(base) : nullptr, read<int64_t>(index), read<int64_t>(widths),
        widths.size(0) - 1, with_base ? base.size(1) : 0, activation, residual, write<T>(out)};
    run_blocks(net, x.size(0), [&](int64_t i, T* to) -> const T* {
      const T* row = read<T>(x) + i * net.inputs();
      if (!activate_first) return row;
      activate_row(row, net.inputs(), activation, to);
      return to;
    });
  };
  is_double(x) ? call(double()) : call(float());
}

// amplitude * [cos, sin](pi (y dy + x dx + phase)), see clit_basicsr.archs.lte_arch; from: 2 n amplitudes, n numbers y,
// n numbers x.
template <typename T>
void texture(const T* from, int64_t n, const T* dx, const T* phase, T* to) {
  const auto step = [&](int64_t i, const T* y, const T* x, const T* p, vec<T>& cos, vec<T>& sin) {
    cos_sin_pi(load(y + i) * dx[0] + load(x + i) * dx[1] + load(p + i), cos, sin);
  };
  vec<T> cos, sin;
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    step(i, from + 2 * n, from + 3 * n, phase, cos, sin);
    store(to + i, load(from + i) * cos);
    store(to + n + i, load(from + n + i) * sin);
  }
  T rest[3][kLanes<T>] = {};
  std::copy_n(from + 2 * n + i, n - i, rest[0]);
  std::copy_n(from + 3 * n + i, n - i, rest[1]);
  std::copy_n(phase + i, n - i, rest[2]);
  step(0, rest[0], rest[1], rest[2], cos, sin);
  for (int64_t j = 0; i + j < n; ++j) to[i + j] = from[i + j] * cos[j], to[n + i + j] = from[n + i + j] * sin[j];
}

void texture_mlp(
    Tensor maps, Tensor index, Tensor dx, Tensor phase, Tensor packed, Tensor widths, int64_t activation, Tensor out) {
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    const Mlp<T> net{read<T>(packed), nullptr, nullptr, read<int64_t>(widths), widths.size(0) - 1, 0, activation, false,
        write<T>(out)};
    const int64_t n = phase.size(1), rows = index.size(0), queries = rows / std::max<int64_t>(1, phase.size(0));
    run_blocks(net, rows, [&](int64_t i, T* to) -> const T* {
      const T* from = read<T>(maps) + read<int64_t>(index)[i] * 4 * n;
      texture(from, n, read<T>(dx) + 2 * i, read<T>(phase) + i / queries * n, to);
      return to;
    });
  };
  is_double(maps) ? call(double()) : call(float());
}

// One layer for mlp: its bias, filled up with zeros to whole panels, and its weight (O, K) as [O / panel][K][kPanel].
template <typename T>
void pack_layer_of(const T* weight, const T* bias, int64_t width, int64_t depth, T* to) {
  const int64_t padded = round_up<T>(width);
  for (int64_t o = 0; o < padded; ++o) to[o] = o < width ? bias[o] : T(0);
  to += padded;
  for (int64_t o = 0; o < padded; o += kPanel<T>, to += depth * kPanel<T>)
    for (int64_t i = 0; i < kPanel<T>; ++i)
      for (int64_t k = 0; k < depth; ++k) to[k * kPanel<T> + i] = o + i < width ? weight[(o + i) * depth + k] : T(0);
}

void pack_layer(Tensor weight, Tensor bias, int64_t at, Tensor packed) {
  const int64_t width = weight.size(0), depth = weight.size(1);
  if (is_double(weight))
    pack_layer_of(read<double>(weight), read<double>(bias), width, depth, write<double>(packed) + at);
  else
    pack_layer_of(read<float>(weight), read<float>(bias), width, depth, write<float>(packed) + at);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(clit_cpu, m) {
  m.def(
      "mlp(Tensor x, Tensor packed, Tensor widths, Tensor base, Tensor index, int activation, bool activate_first, "
      "bool residual, Tensor(a!) out) -> ()");
  m.def(
      "texture_mlp(Tensor maps, Tensor index, Tensor dx, Tensor phase, Tensor packed, Tensor widths, int activation, "
      "Tensor(a!) out) -> ()");
  m.def("pack_layer(Tensor weight, Tensor bias, int at, Tensor(a!) packed) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clit_cpu, CPU, m) {
  m.impl("mlp", TORCH_BOX(&mlp));
  m.impl("texture_mlp", TORCH_BOX(&texture_mlp));
  m.impl("pack_layer", TORCH_BOX(&pack_layer));
}

}  // namespace clit
