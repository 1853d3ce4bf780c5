// Which path this machine can run.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "nearest_code_kernels.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace wmfast {
namespace {

constexpr std::array kBestFirst{NearestPath::kAmx, NearestPath::kAvx512Bf16, NearestPath::kAvx512,
                                NearestPath::kAvx2, NearestPath::kScalar};

const NearestKernels& kernels_of(NearestPath path) {
#if defined(__x86_64__)
  switch (path) {
    case NearestPath::kAmx:
      return amx_kernels();
    case NearestPath::kAvx512Bf16:
      return avx512_bf16_kernels();
    case NearestPath::kAvx512:
      return avx512_kernels();
    case NearestPath::kAvx2:
      return avx2_kernels();
    case NearestPath::kScalar:
      break;
  }
#endif
  static_cast<void>(path);
  return scalar_kernels();
}

#if defined(__x86_64__)
// The instructions, the system's saving of the tile registers, and its leave to use them.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kOsXsave = 1u << 27, kTile = 1u << 24, kBf16 = 1u << 22;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsXsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTile) == 0 || (d & kBf16) == 0) {
    return false;
  }
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Odd sizes, every tier: what AMX finds in 70 x 150 x 75 must be what the scalar path finds.
bool agrees_with_scalar(const NearestKernels& kernels) {
  constexpr std::size_t kRows = 70, kCodes = 150, kDim = 75;
  std::uint32_t bits = 1;
  const auto fill = [&](std::vector<float>& values) {
    for (float& value : values) {
      bits = bits * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<std::int32_t>(bits) >> 8) * 0x1p-20f;
    }
  };
  std::vector<float> x(kRows * kDim), codes(kCodes * kDim);
  fill(x);
  fill(codes);
  const Vectors rows{x.data(), Element::kFloat32, kRows, kDim, kDim};
  const auto book = pack_codebook({codes.data(), Element::kFloat32, kCodes, kDim, kDim});
  std::vector<std::int64_t> expected(kRows), found(kRows);
  nearest_code(rows, *book, expected, scalar_kernels(), 1, ThreadPool::shared());
  nearest_code(rows, *book, found, kernels, 1, ThreadPool::shared());
  return expected == found;
}

bool amx_works() {
  static const bool works = [] {
    if (!has_amx()) return false;
    if (agrees_with_scalar(amx_kernels())) return true;
    std::fputs("wmfast: AMX gave a wrong answer in its self-check and is not used\n", stderr);
    return false;
  }();
  return works;
}
#endif

}  // namespace

const char* name_of(NearestPath path) {
  switch (path) {
    case NearestPath::kAmx:
      return "amx";
    case NearestPath::kAvx512Bf16:
      return "avx512_bf16";
    case NearestPath::kAvx512:
      return "avx512";
    case NearestPath::kAvx2:
      return "avx2";
    case NearestPath::kScalar:
      break;
  }
  return "scalar";
}

bool is_supported(NearestPath path) {
#if defined(__x86_64__)
  const auto avx2 = [] {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  };
  const auto avx512 = [&] {
    return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  };
  const auto avx512_bf16 = [&] { return avx512() && __builtin_cpu_supports("avx512bf16"); };
  switch (path) {
    case NearestPath::kAmx:
      return avx512_bf16() && amx_works();
    case NearestPath::kAvx512Bf16:
      return avx512_bf16();
    case NearestPath::kAvx512:
      return avx512();
    case NearestPath::kAvx2:
      return avx2();
    case NearestPath::kScalar:
      break;
  }
#endif
  return path == NearestPath::kScalar;
}

NearestPath choose_nearest_path() {
  const char* wanted = std::getenv("WMFAST_CPU");
  if (wanted == nullptr || *wanted == '\0') {
    static const NearestPath kBest = [] {
      for (const NearestPath path : kBestFirst) {
        if (is_supported(path)) return path;
      }
      return NearestPath::kScalar;
    }();
    return kBest;
  }
  const std::string name = wanted;
  for (const NearestPath path : kBestFirst) {
    if (path == NearestPath::kAvx512Bf16 || name != name_of(path)) continue;
    if (path == NearestPath::kAvx512 && is_supported(NearestPath::kAvx512Bf16)) {
      return NearestPath::kAvx512Bf16;
    }
    if (is_supported(path)) return path;
    throw std::invalid_argument("WMFAST_CPU is " + name +
                                ", but this machine has no such instructions");
  }
  throw std::invalid_argument("WMFAST_CPU is '" + name +
                              "', allowed are amx, avx512, avx2, scalar");
}

void nearest_code(const Vectors& x, const PackedCodebook& book, std::span<std::int64_t> index,
                  NearestPath path, std::size_t threads, ThreadPool& pool) {
  nearest_code(x, book, index, kernels_of(path), threads, pool);
}

}  // namespace wmfast
