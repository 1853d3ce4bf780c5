// The docstrings of wmfast/_core.pyi, compiled in: help() shows what the type stubs say.
#pragma once

#include <string_view>

namespace wmfast::bindings {

// Of "TokenReplay" or "TokenReplay.add". Throws std::out_of_range if the stubs have none.
const char* docstring(std::string_view name);

}  // namespace wmfast::bindings
