// All CUDA kernels in one translation unit: torch's headers take longer to compile than every kernel together.
#include "attention.cuh"
#include "dense_attention.cuh"
#include "dense_linear.cuh"
#include "gather.cuh"
#include "interpolate.cuh"
#include "values.cuh"
