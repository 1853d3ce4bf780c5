// What the three AVX-512 files share. Include it after their target pragma; private to each.
#pragma once

#include "nearest_code_vector.hpp"

namespace wmfast {
namespace {

struct Avx512 {
  static constexpr std::size_t kWidth = 16;
  static constexpr std::size_t kDoubles = 8;
  using Floats = __m512;
  using Ints = __m512i;
  using Doubles = __m512d;

  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats broadcast(float a) { return _mm512_set1_ps(a); }
  static Ints load_ints(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_ints(std::int32_t* p, Ints v) { _mm512_storeu_si512(p, v); }
  static Ints broadcast_int(std::int32_t a) { return _mm512_set1_epi32(a); }

  static __mmask16 less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Ints select(__mmask16 mask, Ints a, Ints b) { return _mm512_mask_mov_epi32(b, mask, a); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }

  static Doubles zero_doubles() { return _mm512_setzero_pd(); }
  static Doubles load_doubles(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static void store_doubles(double* p, Doubles v) { _mm512_storeu_pd(p, v); }
  static Doubles subtract(Doubles a, Doubles b) { return _mm512_sub_pd(a, b); }
  static Doubles multiply(Doubles a, Doubles b) { return _mm512_mul_pd(a, b); }
  static Doubles add(Doubles a, Doubles b) { return _mm512_add_pd(a, b); }
};

inline NearLanes near_lanes_avx512(const RowState& state, double margin) {
  const __m512 best = _mm512_load_ps(state.best);
  const __m512 limit = _mm512_set1_ps(limit_above(_mm512_reduce_min_ps(best), margin));
  return {_mm512_cmp_ps_mask(best, limit, _CMP_LE_OQ),
          _mm512_cmp_ps_mask(_mm512_load_ps(state.second), limit, _CMP_LE_OQ)};
}

inline void widen_avx512(const void* row, Element element, std::size_t dim, float* out) {
  std::size_t d = 0;
  if (element == Element::kFloat16) {
    const auto* half = static_cast<const std::uint16_t*>(row);
    for (; d + 16 <= dim; d += 16) {
      _mm512_storeu_ps(
          out + d, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + d))));
    }
  }
  widen_generic(static_cast<const std::byte*>(row) + d * bytes_of(element), element, dim - d,
                out + d);
}

}  // namespace
}  // namespace wmfast
