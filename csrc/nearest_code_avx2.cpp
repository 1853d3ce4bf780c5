// The kernels in AVX2 with FMA and F16C. The pragma covers only what follows it, and all of that is
// private to this file: no other code can end up with these instructions.
#include "nearest_code_kernels.hpp"

#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <limits>

#include "x86_intrinsics.hpp"

#pragma GCC target("avx2,fma,f16c")
#include "nearest_code_vector.hpp"

namespace wmfast {
namespace {

struct Avx2 {
  static constexpr std::size_t kWidth = 8;
  static constexpr std::size_t kDoubles = 4;
  using Floats = __m256;
  using Ints = __m256i;
  using Doubles = __m256d;

  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static Floats broadcast(float a) { return _mm256_set1_ps(a); }
  static Ints load_ints(const std::int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_ints(std::int32_t* p, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static Ints broadcast_int(std::int32_t a) { return _mm256_set1_epi32(a); }

  static Ints less(Floats a, Floats b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Ints select(Ints mask, Ints a, Ints b) { return _mm256_blendv_epi8(b, a, mask); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm256_fmadd_ps(a, b, sum); }

  static Doubles zero_doubles() { return _mm256_setzero_pd(); }
  static Doubles load_doubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  static void store_doubles(double* p, Doubles v) { _mm256_storeu_pd(p, v); }
  static Doubles subtract(Doubles a, Doubles b) { return _mm256_sub_pd(a, b); }
  static Doubles multiply(Doubles a, Doubles b) { return _mm256_mul_pd(a, b); }
  static Doubles add(Doubles a, Doubles b) { return _mm256_add_pd(a, b); }
};

void widen(const void* row, Element element, std::size_t dim, float* out) {
  std::size_t d = 0;
  if (element == Element::kFloat16) {
    const auto* half = static_cast<const std::uint16_t*>(row);
    for (; d + 8 <= dim; d += 8) {
      _mm256_storeu_ps(
          out + d, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + d))));
    }
  }
  widen_generic(static_cast<const std::byte*>(row) + d * bytes_of(element), element, dim - d,
                out + d);
}

}  // namespace

const NearestKernels& avx2_kernels() {
  static constexpr NearestKernels kKernels{
      .row_group = 6,
      .coarse_limit = 0.0f,
      .widen = widen,
      .prepare_fine = prepare_fine<Avx2>,
      .score_fine = score_fine<Avx2, 6, 1>,
      .prepare_coarse = nullptr,
      .score_coarse = nullptr,
      .near_lanes = near_lanes_generic,
      .distance = distance<Avx2>,
  };
  return kKernels;
}

}  // namespace wmfast
#endif
