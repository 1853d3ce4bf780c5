// nearest_code for Python: addresses and sizes in, since the core knows nothing of torch.
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "wmfast/nearest_code.hpp"

namespace wmfast::bindings {
namespace {

namespace py = pybind11;

constexpr std::array kPaths{NearestPath::kAmx, NearestPath::kAvx512Bf16, NearestPath::kAvx512,
                            NearestPath::kAvx2, NearestPath::kScalar};

Element element_of(const std::string& dtype) {
  if (dtype == "float32") return Element::kFloat32;
  if (dtype == "bfloat16") return Element::kBfloat16;
  if (dtype == "float16") return Element::kFloat16;
  throw std::invalid_argument("dtype is " + dtype + ", allowed are float32, bfloat16, float16");
}

NearestPath path_of(const std::optional<std::string>& name) {
  if (!name) return choose_nearest_path();
  for (const NearestPath path : kPaths) {
    if (*name == name_of(path) && is_supported(path)) return path;
  }
  throw std::invalid_argument("path is " + *name + ", which this machine has not");
}

// Never destroyed: a thread may still search while the process ends.
CodebookCache& cache() {
  static auto* const cache = new CodebookCache;
  return *cache;
}

const void* address(std::uintptr_t value) {
  return reinterpret_cast<const void*>(value);  // NOLINT: tensor.data_ptr()
}

void search(std::uintptr_t x, const std::string& x_dtype, std::size_t rows,
            std::ptrdiff_t row_stride, std::uintptr_t codebook, const std::string& codebook_dtype,
            std::size_t codes, std::size_t dim, std::uintptr_t index, std::size_t threads,
            const std::optional<std::string>& path_name) {
  const NearestPath path = path_of(path_name);
  const Vectors vectors{address(x), element_of(x_dtype), rows, dim, row_stride};
  const Vectors book{address(codebook), element_of(codebook_dtype), codes, dim,
                     static_cast<std::ptrdiff_t>(dim)};
  auto* const out = static_cast<std::int64_t*>(const_cast<void*>(address(index)));
  const py::gil_scoped_release release;
  nearest_code(vectors, *cache().get(book), {out, rows}, path, threads);
}

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const NearestPath path : kPaths) {
    if (is_supported(path)) names.emplace_back(name_of(path));
  }
  return names;
}

}  // namespace

void bind_kernels(py::module_& module) {
  module.def("nearest_code", &search, py::arg("x"), py::arg("x_dtype"), py::arg("rows"),
             py::arg("row_stride"), py::arg("codebook"), py::arg("codebook_dtype"),
             py::arg("codes"), py::arg("dim"), py::arg("index"), py::arg("threads"),
             py::arg("path") = py::none(),
             "Nearest codes by address: see wmfast.kernels.nearest_code.");
  module.def("nearest_code_paths", &paths, "The paths of this machine, best first.");
  module.def(
      "nearest_code_packs", [] { return cache().packed(); },
      "How many codebooks have been packed so far.");
}

}  // namespace wmfast::bindings
