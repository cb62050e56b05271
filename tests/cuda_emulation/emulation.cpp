// The kernels themselves, and what the tests may ask of the emulation.
#include "cuda_kernels.cu"

namespace {

void order(int64_t seed) { emulation::Machine::get().set_order(seed); }

int64_t launches() { return emulation::Machine::get().launches(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(clit_emulated, m) {
  m.def("order(int seed) -> ()");
  m.def("launches() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(clit_emulated, CompositeExplicitAutograd, m) {
  m.impl("order", TORCH_BOX(&order));
  m.impl("launches", TORCH_BOX(&launches));
}
