// How the kernels see torch's tensors: through the stable ABI alone, so that one library serves every torch from 2.10
// on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <new>

namespace clit {

using torch::stable::Tensor;

template <typename T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}
template <typename T>
T* write(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline bool is_double(const Tensor& t) { return t.scalar_type() == torch::headeronly::ScalarType::Double; }

// Memory on a cache line's border that is not initialised.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// Calls f(i) for i = 0 ... n - 1, each on one thread: what i computes never depends on their number.
template <typename F>
void parallel(int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace clit
