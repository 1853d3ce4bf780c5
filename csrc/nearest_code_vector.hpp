// The kernels as templates over a vector of V::kWidth floats. Include it last in the file of one
// instruction set, under its target pragma: everything here is private to that file.
//
// GenericVector (nearest_code_scalar.cpp) shows what V has to offer.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "nearest_code_kernels.hpp"

namespace wmfast {
namespace {

// One running best in registers: kLanes / V::kWidth of these make a row's state.
template <typename V>
struct LaneBest {
  typename V::Floats best, second;
  typename V::Ints group;

  static LaneBest load(const RowState& s, std::size_t at) {
    return {V::load(s.best + at), V::load(s.second + at), V::load_ints(s.group + at)};
  }
  void fold(typename V::Floats score, typename V::Ints new_group) {
    const auto less = V::less(score, best);
    second = V::min(second, V::max(best, score));
    best = V::min(best, score);
    group = V::select(less, new_group, group);
  }
  void store(RowState& s, std::size_t at) const {
    V::store(s.best + at, best);
    V::store(s.second + at, second);
    V::store_ints(s.group + at, group);
  }
};

inline void reset(RowState& state) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    state.best[lane] = state.second[lane] = std::numeric_limits<float>::infinity();
    state.group[lane] = 0;
  }
}

// Folds kGroups * 16 scores of one row, which lie side by side, into its state.
template <typename V, std::size_t kGroups>
void fold_scores(const float* score, std::int32_t first_group, RowState& state) {
  for (std::size_t at = 0; at < kLanes; at += V::kWidth) {
    auto lanes = LaneBest<V>::load(state, at);
#pragma GCC unroll 8
    for (std::size_t g = 0; g < kGroups; ++g) {
      lanes.fold(V::load(score + g * kLanes + at),
                 V::broadcast_int(first_group + static_cast<std::int32_t>(g)));
    }
    lanes.store(state, at);
  }
}

// kRows rows x kGroups groups of 16 codes in registers, over all steps: Dot::kStep elements each.
template <typename Dot, std::size_t kRows, std::size_t kGroups>
inline void score_block(const typename Dot::Unit* x, std::size_t x_stride, std::size_t steps,
                        const typename Dot::Unit* code, const float* square,
                        std::int32_t first_group, RowState* state) {
  using V = typename Dot::V;
  constexpr std::size_t kParts = kLanes / V::kWidth;
  constexpr std::size_t kVectors = kGroups * kParts;
  typename V::Floats sum[kRows][kVectors];
#pragma GCC unroll 16
  for (std::size_t v = 0; v < kVectors; ++v) {
    const auto start = V::load(square + v * V::kWidth);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) sum[r][v] = start;
  }
  for (std::size_t step = 0; step < steps; ++step) {
    typename Dot::Codes codes[kVectors];
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kVectors; ++v) {
      codes[v] = Dot::load(code + step * kTileCodes + v * V::kWidth);
    }
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const auto element = Dot::broadcast(x + r * x_stride + step);
#pragma GCC unroll 16
      for (std::size_t v = 0; v < kVectors; ++v) {
        sum[r][v] = Dot::multiply_add(element, codes[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (std::size_t part = 0; part < kParts; ++part) {
      auto lanes = LaneBest<V>::load(state[r], part * V::kWidth);
#pragma GCC unroll 8
      for (std::size_t g = 0; g < kGroups; ++g) {
        lanes.fold(sum[r][g * kParts + part],
                   V::broadcast_int(first_group + static_cast<std::int32_t>(g)));
      }
      lanes.store(state[r], part * V::kWidth);
    }
  }
}

// Tiles outside, rows inside: a tile stays in the nearest cache while all rows meet it.
template <typename Dot, std::size_t kRows, std::size_t kGroups>
void score_rows(const typename Dot::Unit* x, std::size_t x_stride, std::size_t rows,
                std::size_t steps, const typename Dot::Unit* codes, std::size_t tile_units,
                const float* square, std::size_t tiles, RowState* state) {
  for (std::size_t r = 0; r < rows; ++r) reset(state[r]);
  for (std::size_t tile = 0; tile < tiles; ++tile) {
    for (std::size_t g = 0; g < kTileCodes / kLanes; g += kGroups) {
      for (std::size_t r = 0; r < rows; r += kRows) {
        score_block<Dot, kRows, kGroups>(
            x + r * x_stride, x_stride, steps, codes + tile * tile_units + g * kLanes,
            square + tile * kTileCodes + g * kLanes,
            static_cast<std::int32_t>(tile * (kTileCodes / kLanes) + g), state + r);
      }
    }
  }
}

template <typename VectorOps>
struct FineDot {
  using V = VectorOps;
  using Unit = float;
  using Codes = typename V::Floats;
  static Codes load(const float* p) { return V::load(p); }
  static Codes broadcast(const float* p) { return V::broadcast(*p); }
  static Codes multiply_add(Codes a, Codes b, Codes sum) { return V::multiply_add(a, b, sum); }
};

template <typename V, std::size_t kRows, std::size_t kGroups>
void score_fine(const float* x, std::size_t rows, const PackedCodebook& book, RowState* state) {
  score_rows<FineDot<V>, kRows, kGroups>(x, book.row_floats(), rows, book.dim, book.fine(),
                                         book.dim * kTileCodes, book.square.data(), book.tiles,
                                         state);
}

// use(part of 16 elements, where they belong) over a row, the last part padded with zeros.
template <typename Use>
void for_parts_of_16(const float* row, std::size_t dim, Use use) {
  std::size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) use(row + d, d);
  if (d < dim) {
    float rest[kLanes] = {};
    std::memcpy(rest, row + d, (dim - d) * sizeof(float));
    use(rest, d);
  }
}

template <typename V>
float sum_of(const typename V::Floats (&parts)[kLanes / V::kWidth]) {
  float lanes[kLanes];
  for (std::size_t v = 0; v < kLanes / V::kWidth; ++v) V::store(lanes + v * V::kWidth, parts[v]);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

template <typename V>
RowNorms prepare_fine(const float* row, const PackedCodebook& book, float* out) {
  typename V::Floats square[kLanes / V::kWidth];
  for (auto& part : square) part = V::broadcast(0.0f);
  for_parts_of_16(row, book.dim, [&](const float* part, std::size_t d) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kLanes / V::kWidth; ++v) {
      const std::size_t at = v * V::kWidth;
      const auto x = V::subtract(V::load(part + at), V::load(book.mean.data() + d + at));
      square[v] = V::multiply_add(x, x, square[v]);
      V::store(out + d + at, x);
    }
  });
  return {sum_of<V>(square), 0.0f};
}

// The one definition of a distance, in 16 interleaved sums: s_j over d = j mod 16, then halves
// added to halves. Both rows are zero padded to `padded_dim`.
template <typename V>
double distance(const float* x, const float* c, std::size_t padded_dim) {
  constexpr std::size_t kParts = kLanes / V::kDoubles;
  typename V::Doubles sum[kParts];
  for (auto& part : sum) part = V::zero_doubles();
  for (std::size_t d = 0; d < padded_dim; d += kLanes) {
#pragma GCC unroll 8
    for (std::size_t p = 0; p < kParts; ++p) {
      const auto gap = V::subtract(V::load_doubles(x + d + p * V::kDoubles),
                                   V::load_doubles(c + d + p * V::kDoubles));
      sum[p] = V::add(sum[p], V::multiply(gap, gap));
    }
  }
  double lanes[kLanes];
  for (std::size_t p = 0; p < kParts; ++p) V::store_doubles(lanes + p * V::kDoubles, sum[p]);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// The limit is rounded up, so that a score within the margin is never cut off.
inline float limit_above(float best, double margin) {
  const double limit = static_cast<double>(best) + margin;
  return static_cast<float>(limit + std::fabs(limit) * 0x1p-23 + 0x1p-140);
}

inline NearLanes near_lanes_generic(const RowState& state, double margin) {
  float best = state.best[0];
  for (const float score : state.best) best = score < best ? score : best;
  const float limit = limit_above(best, margin);
  unsigned near = 0, second = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    near |= static_cast<unsigned>(state.best[lane] <= limit) << lane;
    second |= static_cast<unsigned>(state.second[lane] <= limit) << lane;
  }
  return {static_cast<std::uint16_t>(near), static_cast<std::uint16_t>(second)};
}

inline void widen_generic(const void* row, Element element, std::size_t dim, float* out) {
  if (element == Element::kFloat32) {
    std::memcpy(out, row, dim * sizeof(float));
    return;
  }
  const auto* bytes = static_cast<const std::byte*>(row);
  for (std::size_t d = 0; d < dim; ++d) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes + d * sizeof(bits), sizeof(bits));
    out[d] = element == Element::kBfloat16 ? from_bfloat16(bits) : from_float16(bits);
  }
}

}  // namespace
}  // namespace wmfast
