// Random numbers of the replay buffer: xoshiro256++ (Blackman & Vigna 2021), state 4 x 64 bits.
//
// The state is plain words in the caller's memory, so that a memory-mapped or saved buffer carries
// it along: the same state gives the same draws on every machine. Not thread-safe.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace wmfast {

using RngState = std::array<std::uint64_t, 4>;

// Fills the state from one seed with splitmix64; never all zero.
inline RngState seed_rng(std::uint64_t seed) {
  RngState state{};
  for (std::uint64_t& word : state) {
    seed += 0x9E3779B97F4A7C15u;
    std::uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    word = z ^ (z >> 31);
  }
  return state;
}

// 64 random bits; advances `s`.
inline std::uint64_t next_bits(RngState& s) {
  const std::uint64_t result = std::rotl(s[0] + s[3], 23) + s[0];
  const std::uint64_t t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = std::rotl(s[3], 45);
  return result;
}

// A double in [0, 1) with 53 random bits.
inline double next_unit(RngState& s) { return static_cast<double>(next_bits(s) >> 11) * 0x1.0p-53; }

// An integer in [0, bound) without bias (Lemire 2019); `bound` in 1..2^32 - 1.
inline std::uint32_t next_below(RngState& s, std::uint32_t bound) {
  std::uint64_t product = (next_bits(s) >> 32) * bound;
  if (static_cast<std::uint32_t>(product) < bound) {
    const std::uint32_t threshold = (0u - bound) % bound;
    while (static_cast<std::uint32_t>(product) < threshold) {
      product = (next_bits(s) >> 32) * bound;
    }
  }
  return static_cast<std::uint32_t>(product >> 32);
}

}  // namespace wmfast
