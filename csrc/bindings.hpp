// One function per part of the core; bindings.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace wmfast::bindings {

void bind_kernels(pybind11::module_& module);
void bind_replay(pybind11::module_& module);

}  // namespace wmfast::bindings
