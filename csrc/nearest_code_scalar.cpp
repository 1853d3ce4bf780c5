// The kernels for any machine: vectors of four floats, which every compiler turns into what there
// is (SSE2 on x86-64). Sums are contracted nowhere: see CMakeLists.txt.
#include "nearest_code_vector.hpp"

namespace wmfast {
namespace {

struct GenericVector {
  static constexpr std::size_t kWidth = 4;
  static constexpr std::size_t kDoubles = 2;
  typedef float Floats __attribute__((vector_size(16)));
  typedef std::int32_t Ints __attribute__((vector_size(16)));
  typedef double Doubles __attribute__((vector_size(16)));

  static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }
  static Floats broadcast(float a) { return Floats{a, a, a, a}; }
  static Ints load_ints(const std::int32_t* p) {
    Ints v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store_ints(std::int32_t* p, Ints v) { std::memcpy(p, &v, sizeof(v)); }
  static Ints broadcast_int(std::int32_t a) { return Ints{a, a, a, a}; }

  static Ints less(Floats a, Floats b) { return a < b; }
  static Floats min(Floats a, Floats b) { return a < b ? a : b; }
  static Floats max(Floats a, Floats b) { return a > b ? a : b; }
  static Ints select(Ints mask, Ints a, Ints b) { return (mask & a) | (~mask & b); }
  static Floats subtract(Floats a, Floats b) { return a - b; }
  static Floats multiply_add(Floats a, Floats b, Floats sum) { return a * b + sum; }

  static Doubles zero_doubles() { return Doubles{0.0, 0.0}; }
  static Doubles load_doubles(const float* p) { return Doubles{p[0], p[1]}; }
  static void store_doubles(double* p, Doubles v) { std::memcpy(p, &v, sizeof(v)); }
  static Doubles subtract(Doubles a, Doubles b) { return a - b; }
  static Doubles multiply(Doubles a, Doubles b) { return a * b; }
  static Doubles add(Doubles a, Doubles b) { return a + b; }
};

}  // namespace

const NearestKernels& scalar_kernels() {
  static constexpr NearestKernels kKernels{
      .row_group = 2,
      .coarse_limit = 0.0f,
      .widen = widen_generic,
      .prepare_fine = prepare_fine<GenericVector>,
      .score_fine = score_fine<GenericVector, 2, 1>,
      .prepare_coarse = nullptr,
      .score_coarse = nullptr,
      .near_lanes = near_lanes_generic,
      .distance = distance<GenericVector>,
  };
  return kKernels;
}

}  // namespace wmfast
