// What a draw returns to Python. Part of the bindings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace wmfast::bindings {

namespace py = pybind11;

using Fields = std::vector<std::pair<const char*, py::object>>;  // names that last

// Named arrays, as attributes and by key.
class Batch {
 public:
  explicit Batch(Fields fields) : fields_(std::move(fields)) {}

  py::object get(const std::string& name) const {
    for (const auto& [field, value] : fields_) {
      if (field == name) return value;
    }
    throw py::key_error(name);
  }
  py::object attribute(const std::string& name) const {
    for (const auto& [field, value] : fields_) {
      if (field == name) return value;
    }
    throw py::attribute_error("the batch has no array '" + name + "'");
  }
  bool has(const std::string& name) const {
    return std::any_of(fields_.begin(), fields_.end(),
                       [&](const auto& field) { return field.first == name; });
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> names;
    for (const auto& [field, value] : fields_) names.push_back(field);
    return names;
  }
  // A named property, which Python finds faster than through __getattr__.
  template <const char* kName>
  py::object property() const {
    return attribute(kName);
  }
  std::string text() const {
    std::string text = "Batch(";
    for (const auto& [field, value] : fields_) {
      text += std::string(text.size() > 6 ? ", " : "") + field + "=" +
              py::str(value.attr("dtype")).cast<std::string>() +
              py::str(value.attr("shape")).cast<std::string>();
    }
    return text + ")";
  }

 private:
  Fields fields_;
};

}  // namespace wmfast::bindings
