// The coarse tier in AVX-512 with bfloat16 (vdpbf16ps: twice the multiply-adds of float32).
// About the pragma: see nearest_code_avx2.cpp.
#include "nearest_code_kernels.hpp"

#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <limits>

#include "x86_intrinsics.hpp"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "nearest_code_bf16.hpp"

namespace wmfast {
namespace {

struct CoarseDot {
  using V = Avx512;
  typedef std::uint32_t Unit __attribute__((may_alias));  // a pair of bfloat16
  using Codes = __m512i;
  static Codes load(const Unit* p) { return _mm512_loadu_si512(p); }
  static Codes broadcast(const Unit* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static __m512 multiply_add(Codes a, Codes b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)b, (__m512bh)a);
  }
};

void score_coarse(const std::uint16_t* x, std::size_t rows, const PackedCodebook& book,
                  RowState* state) {
  score_rows<CoarseDot, 6, 4>(reinterpret_cast<const CoarseDot::Unit*>(x), book.pairs(), rows,
                              (book.dim + 1) / 2,
                              reinterpret_cast<const CoarseDot::Unit*>(book.coarse.data()),
                              book.pairs() * kTileCodes, book.square.data(), book.tiles, state);
}

}  // namespace

const NearestKernels& avx512_bf16_kernels() {
  static constexpr NearestKernels kKernels{
      .row_group = 6,
      .coarse_limit = 0.4f,
      .widen = widen_avx512,
      .prepare_fine = prepare_fine<Avx512>,
      .score_fine = score_fine<Avx512, 6, 4>,
      .prepare_coarse = prepare_coarse_avx512,
      .score_coarse = score_coarse,
      .near_lanes = near_lanes_avx512,
      .distance = distance<Avx512>,
  };
  return kKernels;
}

}  // namespace wmfast
#endif
