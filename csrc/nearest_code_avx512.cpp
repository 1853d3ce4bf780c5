// The kernels in AVX-512. About the pragma: see nearest_code_avx2.cpp.
#include "nearest_code_kernels.hpp"

#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <limits>

#include "x86_intrinsics.hpp"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "nearest_code_avx512.hpp"

namespace wmfast {

const NearestKernels& avx512_kernels() {
  static constexpr NearestKernels kKernels{
      .row_group = 6,
      .coarse_limit = 0.0f,
      .widen = widen_avx512,
      .prepare_fine = prepare_fine<Avx512>,
      .score_fine = score_fine<Avx512, 6, 4>,
      .prepare_coarse = nullptr,
      .score_coarse = nullptr,
      .near_lanes = near_lanes_avx512,
      .distance = distance<Avx512>,
  };
  return kKernels;
}

}  // namespace wmfast
#endif
