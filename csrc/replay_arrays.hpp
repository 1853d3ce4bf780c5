// Arrays that a draw is written to: new ones, or the caller's.
#pragma once

#include <initializer_list>
#include <utility>

#include "array_arguments.hpp"
#include "wmfast/token_replay.hpp"

namespace wmfast::bindings {

inline constexpr char kState[] = "state", kNextState[] = "next_state", kWindow[] = "window",
                      kTokens[] = "tokens", kAction[] = "action", kReward[] = "reward",
                      kDiscount[] = "discount", kWeight[] = "weight", kIndex[] = "index",
                      kTerminated[] = "terminated", kMask[] = "mask";

py::dtype token_dtype(const TokenReplay& replay);

// A new array; a large one in recycled memory.
py::array new_array(const py::dtype& dtype, const Shape& shape);

// The output array `name`: new, or the caller's.
py::array output(const py::object& out, const py::dtype& dtype, const char* name,
                 const Shape& shape);

template <typename T>
py::array output(const py::object& out, const char* name, const Shape& shape) {
  return output(out, py::dtype::of<T>(), name, shape);
}

ConstTokenSpan tokens_of(const py::array& array);
TokenSpan tokens_of(py::array& array);

// The caller's arrays may not share memory: what was written first would be overwritten.
void require_disjoint(const py::object& out,
                      const std::vector<std::pair<const char*, const py::array*>>& arrays);

}  // namespace wmfast::bindings
