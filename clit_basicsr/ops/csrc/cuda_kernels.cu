// All CUDA kernels in one translation unit: torch's headers take longer to compile than every kernel together.
#include "attention.cuh"
#include "dense.cuh"
#include "gather.cuh"
#include "interpolate.cuh"
#include "values.cuh"
