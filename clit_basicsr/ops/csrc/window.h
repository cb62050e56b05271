// The arithmetic of the local attention that every compiled backend shares: where the window lies, and its softmax.
// Plain C++ without torch, includable from CUDA.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CLIT_FUNCTION __host__ __device__ __forceinline__
#else
#define CLIT_FUNCTION inline
#endif

namespace clit {

// A map (h, w, C) and the G x G window around a pixel of it; position g counts y slow, x fast.
struct Window {
  int64_t height, width;
  int grid;

  CLIT_FUNCTION int positions() const { return grid * grid; }

  CLIT_FUNCTION int64_t row(int64_t y, int g) const { return y + g / grid - grid / 2; }

  CLIT_FUNCTION int64_t column(int64_t x, int g) const { return x + g % grid - grid / 2; }

  // The window's pixel as an index into the flattened map, -1 outside the map: its key and value are 0 there.
  CLIT_FUNCTION int64_t pixel(int64_t y, int64_t x, int g) const { return index(row(y, g), column(x, g)); }

  // The same by row i and column j of the window.
  CLIT_FUNCTION int64_t pixel(int64_t y, int64_t x, int i, int j) const {
    return index(y + i - grid / 2, x + j - grid / 2);
  }

  CLIT_FUNCTION int64_t index(int64_t r, int64_t c) const {
    return r >= 0 && r < height && c >= 0 && c < width ? r * width + c : -1;
  }
};

// Equation (6) before the softmax; the product is already divided by sqrt(C / H). A position outside the map keeps its
// bias.
template <typename T>
CLIT_FUNCTION T logit(T product, T bias_y, T bias_x) {
  return product + (bias_y + bias_x);
}

// Gradient of a logit from its softmax value, that value's gradient, and the sum over the window of their products.
template <typename T>
CLIT_FUNCTION T softmax_gradient(T value, T gradient, T total) {
  return value * (gradient - total);
}

}  // namespace clit
