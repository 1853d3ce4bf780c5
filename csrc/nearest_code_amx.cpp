// The coarse tier in AMX. About the pragma: see nearest_code_avx2.cpp.
#include "nearest_code_kernels.hpp"

#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <limits>

#include "x86_intrinsics.hpp"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "nearest_code_bf16.hpp"
#include "nearest_code_tile.hpp"

namespace wmfast {
namespace {

// Assembly, as gcc's intrinsics want literal register numbers and don't say that they use memory.
struct AmxTile {
  static void configure() {
    alignas(kCacheLine) std::uint8_t config[64] = {1};  // palette 1
    for (std::size_t tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;  // bytes a row
      config[48 + tile] = 16;      // rows
    }
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  static void release() { asm volatile("tilerelease" ::: "memory"); }

  template <int kTile>
  static void load(const void* from, std::size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(kTile) : "memory");
  }
  template <int kTile>
  static void store(void* to, std::size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(kTile) : "memory");
  }
  template <int kSum, int kA, int kB>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(kSum), "n"(kA), "n"(kB));
  }
};

}  // namespace

const NearestKernels& amx_kernels() {
  static constexpr NearestKernels kKernels{
      .row_group = kTileRows,
      .coarse_limit = 0.9f,
      .widen = widen_avx512,
      .prepare_fine = prepare_fine<Avx512>,
      .score_fine = score_fine<Avx512, 4, 4>,
      .prepare_coarse = prepare_coarse_avx512,
      .score_coarse = score_tiles<AmxTile, Avx512>,
      .near_lanes = near_lanes_avx512,
      .distance = distance<Avx512>,
  };
  return kKernels;
}

}  // namespace wmfast
#endif
