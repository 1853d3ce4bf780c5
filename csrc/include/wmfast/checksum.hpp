// A 64-bit checksum for rows and snapshots: detects damage, is no defence against an adversary.
//
// Four lanes take the 8-byte words of a 32-byte block in turn; each step is a bijection of the lane
// for a given word and of the word for a given lane, so a change within one word always shows.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace wmfast {

class Checksum {
 public:
  // Adds a piece. Pieces are delimited: the same bytes in other pieces give another value.
  void add(std::span<const std::byte> bytes) {
    const std::size_t size = bytes.size();
    const std::byte* at = bytes.data();
    std::size_t left = size;
    for (; left >= sizeof(lanes_); left -= sizeof(lanes_), at += sizeof(lanes_)) mix_block(at);
    if (left > 0) {
      std::array<std::byte, sizeof(lanes_)> tail{};
      std::memcpy(tail.data(), at, left);
      mix_block(tail.data());
    }
    add_word(size);
  }

  void add_word(std::uint64_t word) { lanes_[0] = step(std::rotl(lanes_[0], 27), word); }

  std::uint64_t value() const {
    std::uint64_t hash = 0;
    for (const std::uint64_t lane : lanes_) hash = step(std::rotl(hash, 23), lane);
    return hash ^ (hash >> 32);
  }

 private:
  static std::uint64_t step(std::uint64_t lane, std::uint64_t word) {
    lane = (lane ^ word) * 0xD6E8FEB86659FD93u;
    return lane ^ (lane >> 29);
  }

  void mix_block(const std::byte* block) {
    std::array<std::uint64_t, 4> words;
    std::memcpy(words.data(), block, sizeof(words));
    for (std::size_t i = 0; i < words.size(); ++i) lanes_[i] = step(lanes_[i], words[i]);
  }

  std::array<std::uint64_t, 4> lanes_{0x243F6A8885A308D3u, 0x13198A2E03707344u, 0xA4093822299F31D0u,
                                      0x082EFA98EC4E6C89u};
};

template <typename T>
std::span<const std::byte> bytes_of(const T* data, std::size_t count) {
  return std::as_bytes(std::span<const T>(data, count));
}

}  // namespace wmfast
