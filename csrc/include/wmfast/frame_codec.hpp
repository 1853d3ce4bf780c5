// Frames of tokens as they are stored: in as few bits as the vocabulary needs.
//
// A vocabulary of 2^8 is stored in a byte a token; one of up to 2^(8 + P), P <= kMaxPlanes, in a
// byte of low bits and P planes of one bit. Larger ones keep 16 bits.
//
//   K = 336, 512 tokens:    [ low byte of token 0 .. 335 | bit 8 of token 0 .. 335 ]     378 bytes
//                             336 bytes                    42 bytes, 8 tokens a byte,
//                                                          the lowest bit first, then zeros
//
// At 512 tokens a row is 0.56 of its 16-bit form. Drawing from a store larger than the caches waits
// for memory, so the fewer bytes win though they are unpacked: 256 histories of 5 frames took 64 us
// in place of 91 (see ARCHITECTURE.md).
//
// Not checked: tokens outside the vocabulary, spans of another size. Thread rule: const calls at
// once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "wmfast/isa.hpp"

namespace wmfast {

enum class TokenType { kUint16, kUint8 };

// Loops over one frame of K 16-bit tokens; one set for each Isa.
struct PlaneKernels {
  void (*pack)(const std::uint16_t* tokens, std::size_t count, unsigned planes, std::byte* stored);
  // To `out`, and to `twin` unless it is null: a row is read once for two outputs.
  void (*unpack)(const std::byte* stored, std::size_t count, unsigned planes, std::uint16_t* out,
                 std::uint16_t* twin);
  std::uint16_t (*largest)(const std::uint16_t* tokens, std::size_t count);
};

const PlaneKernels& plane_kernels(Isa isa);  // of a supported `isa`

class FrameCodec {
 public:
  static constexpr unsigned kMaxPlanes = 4;

  // `tokens`: K. `vocab_size`: 1 .. 65536.
  FrameCodec(TokenType type, std::size_t tokens, std::uint64_t vocab_size, Isa isa);

  TokenType type() const { return type_; }
  std::size_t token_bytes() const { return type_ == TokenType::kUint8 ? 1 : 2; }
  std::size_t frame_bytes() const { return tokens_ * token_bytes(); }  // a frame given or returned
  std::size_t stored_bytes() const { return stored_bytes_; }           // the same frame stored

  void pack(const std::byte* frame, std::byte* stored) const;
  void unpack(const std::byte* stored, std::byte* frame) const;
  void unpack(const std::byte* stored, std::byte* frame, std::byte* twin) const;

  // The largest token of a frame.
  std::uint16_t largest(const std::byte* frame) const;

 private:
  TokenType type_;
  std::size_t tokens_;
  unsigned planes_ = 0;
  bool packed_ = false;  // else the stored bytes are the frame's
  std::size_t stored_bytes_;
  const PlaneKernels* kernels_;
};

}  // namespace wmfast
