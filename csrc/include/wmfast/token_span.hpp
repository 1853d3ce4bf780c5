// Runs of tokens in the caller's memory, one or two bytes a token. A view: owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <type_traits>

namespace wmfast {

template <typename T>
concept Token = std::same_as<std::remove_cv_t<T>, std::uint8_t> ||
                std::same_as<std::remove_cv_t<T>, std::uint16_t>;

// `Byte` is std::byte, or const std::byte for tokens that are only read.
template <typename Byte>
class BasicTokenSpan {
 public:
  BasicTokenSpan() = default;

  // Any contiguous range of uint8 or uint16 tokens: a span, a vector.
  template <std::ranges::contiguous_range Range>
    requires Token<std::ranges::range_value_t<Range>>
  BasicTokenSpan(Range&& tokens)  // NOLINT(google-explicit-constructor): as std::span
      : data_(reinterpret_cast<Byte*>(std::ranges::data(tokens))),
        size_(std::ranges::size(tokens)),
        token_bytes_(sizeof(std::ranges::range_value_t<Range>)) {}

  BasicTokenSpan(Byte* data, std::size_t tokens, std::size_t token_bytes)
      : data_(data), size_(tokens), token_bytes_(token_bytes) {}

  Byte* data() const { return data_; }
  std::size_t size() const { return size_; }  // tokens
  bool empty() const { return size_ == 0; }
  std::size_t token_bytes() const { return token_bytes_; }
  // The byte where token `index` begins.
  Byte* at(std::size_t index) const { return data_ + index * token_bytes_; }

 private:
  Byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t token_bytes_ = sizeof(std::uint16_t);
};

using TokenSpan = BasicTokenSpan<std::byte>;
using ConstTokenSpan = BasicTokenSpan<const std::byte>;

}  // namespace wmfast
