// The tile instructions that nearest_code_tile.hpp uses, in plain C++, for machines without AMX.
//
// After Intel's manual, volume 2, TDPBF16PS: two chains of fused multiply-adds for the even and the
// odd elements, their sum added to the old value; denormals are zero in and out, rounding is to
// nearest even. An instruction before configure() or out of its tile's bounds ends the program.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../nearest_code_kernels.hpp"
#include "check.hpp"

struct EmulatedTile {
  static constexpr std::size_t kRows = 16, kBytes = 64;
  using Register = std::array<std::array<std::byte, kBytes>, kRows>;

  static inline thread_local std::array<Register, 8> registers;
  static inline thread_local bool configured = false;

  static void configure() {
    CHECK(!configured);
    configured = true;
    for (Register& tile : registers) tile = {};
  }
  static void release() {
    CHECK(configured);
    configured = false;
  }

  template <int kTile>
  static void load(const void* from, std::size_t stride) {
    static_assert(kTile >= 0 && kTile < 8);
    CHECK(configured);
    for (std::size_t row = 0; row < kRows; ++row) {
      std::memcpy(registers[kTile][row].data(), static_cast<const std::byte*>(from) + row * stride,
                  kBytes);
    }
  }
  template <int kTile>
  static void store(void* to, std::size_t stride) {
    static_assert(kTile >= 0 && kTile < 8);
    CHECK(configured);
    for (std::size_t row = 0; row < kRows; ++row) {
      std::memcpy(static_cast<std::byte*>(to) + row * stride, registers[kTile][row].data(), kBytes);
    }
  }
  template <int kSum, int kA, int kB>
  static void multiply() {
    static_assert(kSum != kA && kSum != kB && kA != kB);
    CHECK(configured);
    for (std::size_t m = 0; m < kRows; ++m) {
      float even[16] = {}, odd[16] = {};
      for (std::size_t k = 0; k < 16; ++k) {
        for (std::size_t n = 0; n < 16; ++n) {
          even[n] = flush(std::fma(element(kA, m, 2 * k), element(kB, k, 2 * n), even[n]));
          odd[n] = flush(std::fma(element(kA, m, 2 * k + 1), element(kB, k, 2 * n + 1), odd[n]));
        }
      }
      for (std::size_t n = 0; n < 16; ++n) {
        float sum;
        std::byte* at = registers[kSum][m].data() + n * sizeof(sum);
        std::memcpy(&sum, at, sizeof(sum));
        sum = flush(flush(sum) + flush(even[n] + odd[n]));
        std::memcpy(at, &sum, sizeof(sum));
      }
    }
  }

  static float flush(float value) {
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value)
                                                                : value;
  }

 private:
  static float element(std::size_t tile, std::size_t row, std::size_t column) {
    std::uint16_t bits;
    std::memcpy(&bits, registers[tile][row].data() + column * sizeof(bits), sizeof(bits));
    return flush(wmfast::from_bfloat16(bits));
  }
};
