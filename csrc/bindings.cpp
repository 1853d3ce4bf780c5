#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of wmfast.";
  wmfast::bindings::bind_kernels(module);
  wmfast::bindings::bind_replay(module);
}
