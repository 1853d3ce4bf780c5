#include "replay_arrays.hpp"

#include <functional>
#include <memory>

#include "block_pool.hpp"

namespace wmfast::bindings {

py::dtype token_dtype(const TokenReplay& replay) {
  return replay.options().dtype == TokenType::kUint8 ? py::dtype::of<std::uint8_t>()
                                                     : py::dtype::of<std::uint16_t>();
}

py::array new_array(const py::dtype& dtype, const Shape& shape) {
  std::size_t bytes = static_cast<std::size_t>(dtype.itemsize());
  for (const py::ssize_t axis : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(axis), &bytes)) {
      throw OutOfMemory("an array of shape " + shape_text(shape) + " is larger than any memory");
    }
  }
  if (bytes < BlockPool::kSmallestBlock) return {dtype, shape};
  std::unique_ptr<Mapping> block = BlockPool::instance().take(bytes);
  std::byte* const data = block->data();
  const py::capsule owner(block.get(), [](void* held) {
    BlockPool::instance().give_back(std::unique_ptr<Mapping>(static_cast<Mapping*>(held)));
  });
  static_cast<void>(block.release());  // the capsule's now
  return {dtype, shape, data, owner};
}

py::array output(const py::object& out, const py::dtype& dtype, const char* name,
                 const Shape& shape) {
  if (out.is_none()) return new_array(dtype, shape);
  const int has = PySequence_Contains(out.ptr(), py::str(name).ptr());
  if (has < 0) throw py::error_already_set();
  if (has == 0) throw py::value_error(std::string("out has no array \"") + name + "\"");
  py::array array = exact_array(out[name], dtype, std::string("out[\"") + name + "\"]", {shape});
  if (!array.writeable()) throw py::value_error(std::string("out[\"") + name + "\"] is read-only");
  return array;
}

ConstTokenSpan tokens_of(const py::array& array) {
  return {static_cast<const std::byte*>(array.data()), static_cast<std::size_t>(array.size()),
          static_cast<std::size_t>(array.itemsize())};
}

TokenSpan tokens_of(py::array& array) {
  return {static_cast<std::byte*>(array.mutable_data()), static_cast<std::size_t>(array.size()),
          static_cast<std::size_t>(array.itemsize())};
}

void require_disjoint(const py::object& out,
                      const std::vector<std::pair<const char*, const py::array*>>& arrays) {
  if (out.is_none()) return;
  for (auto one = arrays.begin(); one != arrays.end(); ++one) {
    for (auto other = arrays.begin(); other != one; ++other) {
      const auto begin = [](const auto& pair) {
        return static_cast<const std::byte*>(pair.second->data());
      };
      const std::less<const std::byte*> before;
      if (before(begin(*one), begin(*other) + other->second->nbytes()) &&
          before(begin(*other), begin(*one) + one->second->nbytes())) {
        throw py::value_error(std::string("out[\"") + other->first + "\"] and out[\"" + one->first +
                              "\"] share memory");
      }
    }
  }
}

}  // namespace wmfast::bindings
