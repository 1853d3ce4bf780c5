// What AMX and AVX-512 with bfloat16 share. Include it after their target pragma; private to each.
#pragma once

#include "nearest_code_avx512.hpp"

namespace wmfast {
namespace {

inline RowNorms prepare_coarse_avx512(const float* row, const PackedCodebook& book,
                                      std::uint16_t* out) {
  __m512 square = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
  std::memset(out + book.row_floats() - 32, 0, 32 * sizeof(*out));
  for_parts_of_16(row, book.dim, [&](const float* part, std::size_t d) {
    const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(part), _mm512_loadu_ps(book.mean.data() + d));
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
    const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
    const __m512 gap = _mm512_sub_ps(x, back);
    square = _mm512_fmadd_ps(x, x, square);
    lost = _mm512_fmadd_ps(gap, gap, lost);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), rounded);
  });
  return {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(lost)};
}

}  // namespace
}  // namespace wmfast
