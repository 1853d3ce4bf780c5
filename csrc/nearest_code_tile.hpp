// The coarse tier on tiles: one source for the AMX instructions and for their emulation in a test.
//
// Tile: eight registers of 16 rows x 64 bytes.
//   configure(), release()            before the first and after the last instruction
//   load<t>(from, stride), store<t>(to, stride)      rows `stride` bytes apart; 0 repeats one row
//   multiply<sum, a, b>()             sum[m][n] += a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1]:
//                                     bfloat16 pairs, float32 sums, denormals are zero
//
//            6: codes 0..15   7: codes 16..31
//   4: rows 0..15     0              1           32 x 32 scores at once; they start at |c|^2, a
//   5: rows 16..31    2              3           tile load with stride 0
#pragma once

#include "nearest_code_vector.hpp"

namespace wmfast {
namespace {

inline constexpr std::size_t kTileRows = 32;

template <typename Tile, typename V>
void score_tiles(const std::uint16_t* x, std::size_t rows, const PackedCodebook& book,
                 RowState* state) {
  constexpr std::size_t kLine = kTileCodes * 2 * sizeof(std::uint16_t);  // a pair of all codes
  constexpr std::size_t kScoreLine = kTileCodes * sizeof(float);
  alignas(kCacheLine) float score[kTileRows][kTileCodes];
  const std::size_t stride = book.row_floats();
  for (std::size_t r = 0; r < rows; ++r) reset(state[r]);
  Tile::configure();
  for (std::size_t tile = 0; tile < book.tiles; ++tile) {
    const float* square = book.square.data() + tile * kTileCodes;
    const std::uint16_t* codes = book.coarse.data() + tile * book.pairs() * kTileCodes * 2;
    for (std::size_t r = 0; r < rows; r += kTileRows) {
      const std::uint16_t* upper = x + r * stride;
      const std::uint16_t* lower = upper + kTileRows / 2 * stride;
      for (std::size_t half = 0; half < kTileCodes; half += 2 * kLanes) {
        Tile::template load<0>(square + half, 0);
        Tile::template load<1>(square + half + kLanes, 0);
        Tile::template load<2>(square + half, 0);
        Tile::template load<3>(square + half + kLanes, 0);
        for (std::size_t d = 0; d < stride; d += 32) {
          const std::uint16_t* pairs = codes + (d / 2 * kTileCodes + half) * 2;
          Tile::template load<4>(upper + d, stride * sizeof(*x));
          Tile::template load<6>(pairs, kLine);
          Tile::template load<7>(pairs + 2 * kLanes, kLine);
          Tile::template multiply<0, 4, 6>();
          Tile::template multiply<1, 4, 7>();
          Tile::template load<5>(lower + d, stride * sizeof(*x));
          Tile::template multiply<2, 5, 6>();
          Tile::template multiply<3, 5, 7>();
        }
        Tile::template store<0>(&score[0][half], kScoreLine);
        Tile::template store<1>(&score[0][half + kLanes], kScoreLine);
        Tile::template store<2>(&score[kTileRows / 2][half], kScoreLine);
        Tile::template store<3>(&score[kTileRows / 2][half + kLanes], kScoreLine);
      }
      const auto group = static_cast<std::int32_t>(tile * (kTileCodes / kLanes));
      for (std::size_t i = 0; i < kTileRows; ++i) {
        fold_scores<V, kTileCodes / kLanes>(score[i], group, state[r + i]);
      }
    }
  }
  Tile::release();
}

}  // namespace
}  // namespace wmfast
