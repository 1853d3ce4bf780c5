// Which path this machine can run.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
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

struct Sample {
  static constexpr std::size_t kRows = 70, kCodes = 150, kDim = 75;  // no multiple of anything
  std::vector<float> x, codes;

  Sample() : x(kRows * kDim), codes(kCodes * kDim) {
    std::uint32_t bits = 1;
    for (std::vector<float>* values : {&x, &codes}) {
      for (float& value : *values) {
        bits = bits * 1664525u + 1013904223u;
        value = static_cast<float>(static_cast<std::int32_t>(bits) >> 8) * 0x1p-20f;
      }
    }
  }
  Vectors rows() const { return {x.data(), Element::kFloat32, kRows, kDim, kDim}; }
  std::shared_ptr<const PackedCodebook> book() const {
    return pack_codebook({codes.data(), Element::kFloat32, kCodes, kDim, kDim});
  }
};

bool same_indices(const NearestKernels& kernels, const Sample& sample, const PackedCodebook& book) {
  std::vector<std::int64_t> expected(Sample::kRows), found(Sample::kRows);
  nearest_code(sample.rows(), book, expected, scalar_kernels(), 1, ThreadPool::shared());
  nearest_code(sample.rows(), book, found, kernels, 1, ThreadPool::shared());
  return expected == found;
}

// Best and second best of one lane, in doubles, of operands that are rounded already.
struct Expected {
  double best = std::numeric_limits<double>::infinity(), second = best;
  double error = 0;  // the bound that the search relies on

  Expected(const std::uint16_t* x, const PackedCodebook& book, std::size_t lane) {
    for (std::size_t k = lane; k < book.tiles * kTileCodes; k += kLanes) {
      const double score = score_of(x, book, k);
      second = std::min(second, std::max(best, score));
      best = std::min(best, score);
    }
  }
  double score_of(const std::uint16_t* x, const PackedCodebook& book, std::size_t k) {
    const std::uint16_t* code =
        book.coarse.data() + (k / kTileCodes * book.pairs() * kTileCodes + k % kTileCodes) * 2;
    double score = static_cast<double>(book.square[k]), size = 0;
    for (std::size_t d = 0; d < book.row_floats(); ++d) {
      const double term = static_cast<double>(from_bfloat16(x[d])) *
                          static_cast<double>(from_bfloat16(code[d / 2 * kTileCodes * 2 + d % 2]));
      score += term;
      size += std::fabs(term);
    }
    if (std::isfinite(score)) {
      const auto sums = static_cast<double>(book.row_floats() + 4) * 0x1p-23;
      error = std::max(error, sums * (size + static_cast<double>(book.square[k])));
    }
    return score;
  }
  bool near(float found, double wanted) const {
    return static_cast<double>(found) == wanted ||
           std::fabs(static_cast<double>(found) - wanted) <= error;
  }
};

bool scores_within_bound(const NearestKernels& kernels, const Sample& sample,
                         const PackedCodebook& book) {
  const std::size_t rows = round_up(Sample::kRows, kernels.row_group), stride = book.row_floats();
  LineVector<std::uint16_t> x(rows * stride);
  LineVector<RowState> state(rows);
  for (std::size_t i = 0; i < Sample::kRows; ++i) {
    kernels.prepare_coarse(sample.x.data() + i * Sample::kDim, book, x.data() + i * stride);
  }
  kernels.score_coarse(x.data(), rows, book, state.data());
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      Expected expected(x.data() + i * stride, book, lane);
      const std::int32_t group = state[i].group[lane];
      const auto groups = static_cast<std::int32_t>(book.tiles * kTileCodes / kLanes);
      if (group < 0 || group >= groups) return false;
      const auto code = static_cast<std::size_t>(group) * kLanes + lane;
      const double chosen = expected.score_of(x.data() + i * stride, book, code);
      if (!expected.near(state[i].best[lane], expected.best) ||
          !expected.near(state[i].best[lane], chosen) ||
          !expected.near(state[i].second[lane], expected.second)) {
        return false;
      }
    }
  }
  return true;
}

#if defined(__x86_64__)
// The instructions, tiles of the size that nearest_code_amx.cpp configures, the system's saving of
// the tile registers, and its leave to use them: asked for once, it holds for all threads, also
// those that run already, and for the children of a fork. Where a thread's signal stack is too
// small for the registers, or the system knows nothing of the kind, the request fails.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kOsXsave = 1u << 27, kTile = 1u << 24, kBf16 = 1u << 22;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsXsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTile) == 0 || (d & kBf16) == 0) {
    return false;
  }
  constexpr unsigned kTileInfo = 0x1D, kPalette = 1;  // of 8 names, 16 rows of 64 bytes
  if (__get_cpuid_count(kTileInfo, kPalette, &a, &b, &c, &d) == 0) return false;
  if ((b >> 16) < 8 || (b & 0xFFFFu) < 64 || (c & 0xFFFFu) < 16) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool amx_works() {
  static const bool works = [] {
    if (!has_amx()) return false;
    if (passes_self_check(amx_kernels())) return true;
    std::fputs("wmfast: AMX gave a wrong answer in its self-check and is not used\n", stderr);
    return false;
  }();
  return works;
}
#endif

}  // namespace

bool passes_self_check(const NearestKernels& kernels) {
  const Sample sample;
  const auto book = sample.book();
  return (kernels.score_coarse == nullptr || scores_within_bound(kernels, sample, *book)) &&
         same_indices(kernels, sample, *book);
}

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
