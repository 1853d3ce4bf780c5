// What one instruction set gives the search of nearest_code.cpp, and the packed codebook it reads.
// Private to nearest_code*.cpp and their tests.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <span>
#include <vector>

#include "wmfast/nearest_code.hpp"

namespace wmfast {

inline constexpr std::size_t kLanes = 16;      // codes of a group; lane = code mod 16
inline constexpr std::size_t kTileCodes = 64;  // codes of a tile: four groups
inline constexpr std::size_t kCacheLine = 64;

constexpr std::size_t round_up(std::size_t n, std::size_t step) {
  return (n + step - 1) / step * step;
}

// Memory on a cache line, as the vector and tile loads want it.
template <typename T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{kCacheLine}));
  }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t{kCacheLine}); }
  bool operator==(const LineAllocator&) const { return true; }
};
template <typename T>
using LineVector = std::vector<T, LineAllocator<T>>;

struct PackedCodebook {
  std::size_t codes = 0, dim = 0, tiles = 0;
  Element element = Element::kFloat32;
  LineVector<std::byte> source;      // the bits it was made of, where `exact` is not just these
  LineVector<float> exact;           // (codes, row_floats()), zero padded
  LineVector<float> mean;            // (row_floats())
  LineVector<float> square;          // (tiles, 64): |c - mean|^2; +inf: padding, not finite
  LineVector<std::uint16_t> coarse;  // (tiles, pairs(), 64, 2)
  double largest = 0;                // max |c - mean|
  double rounding = 0;               // at least |c - mean - bfloat16(c - mean)|
  bool any_finite = false;           // some code is
  bool bounded = false;              // no score of a row of moderate length overflows

  std::size_t row_floats() const { return round_up(dim, 32); }
  std::size_t pairs() const { return row_floats() / 2; }
  std::size_t nbytes() const;
  // (tiles, dim, 64), made when it is first wanted: the coarse tier may settle all rows.
  const float* fine() const;

  // Calls that do without the coarse tier, since it settled too few rows.
  mutable std::atomic<int> coarse_pause = 0;

 private:
  mutable std::once_flag fine_once_;
  mutable LineVector<float> fine_;
};

// The running best of one row, by lane: the smallest score, its group, the second smallest score.
struct alignas(kCacheLine) RowState {
  float best[kLanes];
  float second[kLanes];
  std::int32_t group[kLanes];
};

// Sums of squares of one row: of x - mean, and of what its rounding to bfloat16 took away.
struct RowNorms {
  float square;
  float rounding_square;
};

// Lanes whose best, and whose second best, score is within the margin of the row's best.
struct NearLanes {
  std::uint16_t best;
  std::uint16_t second;
};

// Rows that the kernels score lie side by side, `row_floats()` elements each. `rows` is a multiple
// of `row_group`; the tiles are [0, book.tiles). No score overflows.
struct NearestKernels {
  std::size_t row_group;
  // Of rows that pass the coarse tier unsettled, the part at which the fine tier alone is faster.
  float coarse_limit;

  void (*widen)(const void* row, Element element, std::size_t dim, float* out);
  RowNorms (*prepare_fine)(const float* row, const PackedCodebook& book, float* out);
  void (*score_fine)(const float* x, std::size_t rows, const PackedCodebook& book, RowState* state);
  // Null without a coarse tier.
  RowNorms (*prepare_coarse)(const float* row, const PackedCodebook& book, std::uint16_t* out);
  void (*score_coarse)(const std::uint16_t* x, std::size_t rows, const PackedCodebook& book,
                       RowState* state);
  NearLanes (*near_lanes)(const RowState& state, double margin);
  double (*distance)(const float* x, const float* c, std::size_t padded_dim);
};

const NearestKernels& scalar_kernels();

// Whether, on a sample of odd sizes, the coarse scores of every row and lane are within the bound
// that the search relies on, and the indices are those of the scalar kernels. Indices alone would
// not do: rows that the coarse tier leaves open are settled by another. A few milliseconds.
bool passes_self_check(const NearestKernels& kernels);

#if defined(__x86_64__)
const NearestKernels& avx2_kernels();
const NearestKernels& avx512_kernels();
const NearestKernels& avx512_bf16_kernels();
const NearestKernels& amx_kernels();
#endif

// Round to nearest even; results below the smallest normal number become zero, as in hardware.
inline std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
  std::uint32_t high = rounded >> 16;
  high = (bits & 0x7FFFFFFFu) > 0x7F800000u ? bits >> 16 | 0x40u : high;  // NaN stays NaN
  high = (bits & 0x7F800000u) == 0 ? bits >> 16 & 0x8000u : high;
  return static_cast<std::uint16_t>(high);
}

inline float from_bfloat16(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

float from_float16(std::uint16_t value);

}  // namespace wmfast
