#include "wmfast/frame_codec.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "frame_codec_x86.hpp"

namespace wmfast {
namespace {

constexpr std::size_t plane_bytes(std::size_t count) { return (count + 7) / 8; }

void pack_scalar(const std::uint16_t* tokens, std::size_t count, unsigned planes,
                 std::byte* stored) {
  for (std::size_t i = 0; i < count; ++i) stored[i] = static_cast<std::byte>(tokens[i] & 0xFFu);
  std::byte* plane = stored + count;
  for (unsigned p = 0; p < planes; ++p, plane += plane_bytes(count)) {
    for (std::size_t begin = 0; begin < count; begin += 8) {
      const std::size_t end = std::min(begin + 8, count);
      unsigned bits = 0;
      for (std::size_t i = begin; i < end; ++i) {
        bits |= ((tokens[i] >> (8u + p)) & 1u) << (i - begin);
      }
      plane[begin / 8] = static_cast<std::byte>(bits);
    }
  }
}

void unpack_scalar(const std::byte* stored, std::size_t count, unsigned planes, std::uint16_t* out,
                   std::uint16_t* twin) {
  for (std::size_t i = 0; i < count; ++i) out[i] = std::to_integer<std::uint16_t>(stored[i]);
  const std::byte* plane = stored + count;
  for (unsigned p = 0; p < planes; ++p, plane += plane_bytes(count)) {
    for (std::size_t begin = 0; begin < count; begin += 8) {
      const unsigned bits = std::to_integer<unsigned>(plane[begin / 8]);
      const std::size_t end = std::min(begin + 8, count);
      for (std::size_t i = begin; i < end; ++i) {
        const unsigned bit = (bits >> (i - begin)) & 1u;
        out[i] = static_cast<std::uint16_t>(out[i] | (bit << (8u + p)));
      }
    }
  }
  if (twin != nullptr) std::memcpy(twin, out, count * sizeof(*out));
}

std::uint16_t largest_scalar(const std::uint16_t* tokens, std::size_t count) {
  std::uint16_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, tokens[i]);
  return largest;
}

constexpr PlaneKernels kScalarKernels{&pack_scalar, &unpack_scalar, &largest_scalar};

const std::uint16_t* words(const std::byte* frame) {
  return reinterpret_cast<const std::uint16_t*>(frame);
}
std::uint16_t* words(std::byte* frame) { return reinterpret_cast<std::uint16_t*>(frame); }

}  // namespace

const PlaneKernels& plane_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return kAvx512PlaneKernels;
  if (isa == Isa::kAvx2) return kAvx2PlaneKernels;
#endif
  static_cast<void>(isa);
  return kScalarKernels;
}

FrameCodec::FrameCodec(TokenType type, std::size_t tokens, std::uint64_t vocab_size, Isa isa)
    : type_(type),
      tokens_(tokens),
      stored_bytes_(tokens * (type == TokenType::kUint8 ? 1 : 2)),
      kernels_(&plane_kernels(isa)) {
  const auto bits = static_cast<unsigned>(std::bit_width(vocab_size - 1));
  const unsigned planes = bits > 8 ? bits - 8 : 0;
  packed_ = type == TokenType::kUint16 && planes <= kMaxPlanes;
  if (!packed_) return;
  planes_ = planes;
  stored_bytes_ = tokens + planes * plane_bytes(tokens);
}

void FrameCodec::pack(const std::byte* frame, std::byte* stored) const {
  if (packed_) {
    kernels_->pack(words(frame), tokens_, planes_, stored);
  } else {
    std::memcpy(stored, frame, stored_bytes_);
  }
}

void FrameCodec::unpack(const std::byte* stored, std::byte* frame) const {
  if (packed_) {
    kernels_->unpack(stored, tokens_, planes_, words(frame), nullptr);
  } else {
    std::memcpy(frame, stored, stored_bytes_);
  }
}

void FrameCodec::unpack(const std::byte* stored, std::byte* frame, std::byte* twin) const {
  if (packed_) {
    kernels_->unpack(stored, tokens_, planes_, words(frame), words(twin));
  } else {
    std::memcpy(frame, stored, stored_bytes_);
    std::memcpy(twin, stored, stored_bytes_);
  }
}

std::uint16_t FrameCodec::largest(const std::byte* frame) const {
  if (type_ == TokenType::kUint16) return kernels_->largest(words(frame), tokens_);
  std::byte largest{0};
  for (std::size_t i = 0; i < tokens_; ++i) largest = std::max(largest, frame[i]);
  return std::to_integer<std::uint16_t>(largest);
}

}  // namespace wmfast
