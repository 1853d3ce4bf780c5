// numpy arrays as spans, with errors that name the argument. Part of the bindings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

namespace wmfast::bindings {

namespace py = pybind11;
using Shape = std::vector<py::ssize_t>;

inline std::string shape_text(const py::array& array) {
  return py::str(py::tuple(array.attr("shape"))).cast<std::string>();
}

inline std::string shape_text(const Shape& shape) {
  py::tuple tuple(shape.size());
  for (std::size_t axis = 0; axis < shape.size(); ++axis) tuple[axis] = py::int_(shape[axis]);
  return py::str(tuple).cast<std::string>();
}

inline bool has_shape(const py::array& array, const Shape& shape) {
  if (array.ndim() != static_cast<py::ssize_t>(shape.size())) return false;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (array.shape(static_cast<py::ssize_t>(axis)) != shape[axis]) return false;
  }
  return true;
}

// Whether the object is an array that can be read as it is: the dtype itself (the one that numpy
// makes; another of its kind takes the longer way below), the shape, C-contiguous, aligned.
inline bool is_plain(const py::handle& object, const py::dtype& dtype,
                     std::initializer_list<py::ssize_t> shape) {
  if (!py::isinstance<py::array>(object)) return false;
  const auto* array = py::detail::array_proxy(object.ptr());
  constexpr int kFlags = int{py::array::c_style} | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  return array->descr == dtype.ptr() && (array->flags & kFlags) == kFlags &&
         static_cast<std::size_t>(array->nd) == shape.size() &&
         std::equal(shape.begin(), shape.end(), array->dimensions);
}

// The array itself, never a copy: numpy, exactly this dtype, one of the shapes, C-contiguous.
inline py::array exact_array(const py::handle& object, const py::dtype& dtype,
                             const std::string& name, const std::vector<Shape>& shapes) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(name + " is a " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>() +
                         ", must be a numpy array");
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::detail::npy_api::get().PyArray_EquivTypes_(array.dtype().ptr(), dtype.ptr())) {
    throw py::type_error(name + " has dtype " + py::str(array.dtype()).cast<std::string>() +
                         ", must be " + py::str(dtype).cast<std::string>());
  }
  bool fits = false;
  for (const Shape& shape : shapes) fits = fits || has_shape(array, shape);
  if (!fits) {
    std::string allowed = shape_text(shapes.front());
    if (shapes.size() > 1) allowed += " or " + shape_text(shapes.back());
    throw py::value_error(name + " has shape " + shape_text(array) + ", must be " + allowed);
  }
  if (!(array.flags() & py::array::c_style)) {
    throw py::value_error(name + " is not C-contiguous; pass numpy.ascontiguousarray(" + name +
                          ")");
  }
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
    throw py::value_error(name + " is not aligned in memory; pass a copy");
  }
  return array;
}

// A short vector of length `size` converted to T; `kinds` are the numpy dtype kinds taken.
template <typename T>
py::array_t<T> short_vector(const py::handle& object, const char* argument, py::ssize_t size,
                            const char* kinds, const char* allowed) {
  if (is_plain(object, py::dtype::of<T>(), {size})) {
    return py::reinterpret_borrow<py::array_t<T>>(object);
  }
  const std::string name = argument;
  const auto array = py::array::ensure(object);
  if (!array) {
    PyErr_Clear();
    throw py::type_error(name + " can't be read as an array");
  }
  if (std::strchr(kinds, array.dtype().kind()) == nullptr) {
    throw py::type_error(name + " has dtype " + py::str(array.dtype()).cast<std::string>() +
                         ", must be " + allowed);
  }
  if (!has_shape(array, {size})) {
    throw py::value_error(name + " has shape " + shape_text(array) + ", must be " +
                          shape_text(Shape{size}));
  }
  constexpr int kFlags = py::array::c_style | py::array::forcecast;
  const auto vector =
      py::array_t<T, kFlags | py::detail::npy_api::NPY_ARRAY_ALIGNED_>::ensure(array);
  if (!vector) {  // numpy's warning of an overflow, turned into an error by the caller's filters
    throw py::value_error(name + " has a value that does not fit " +
                          py::str(py::dtype::of<T>()).cast<std::string>());
  }
  if (array.dtype().kind() == 'u' && array.itemsize() == sizeof(T)) {
    const T* const values = vector.data();
    for (py::ssize_t i = 0; i < size; ++i) {
      if (!(values[i] < T{0})) continue;  // wrapped round
      throw py::value_error(name + "[" + std::to_string(i) + "] is " +
                            py::str(array[py::int_(i)]).cast<std::string>() +
                            ", more than 64 signed bits hold");
    }
  }
  return vector;
}

template <typename T>
std::span<const T> view(const py::array& array) {
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

template <typename T>
std::span<T> mutable_view(py::array& array) {
  return {static_cast<T*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

}  // namespace wmfast::bindings
