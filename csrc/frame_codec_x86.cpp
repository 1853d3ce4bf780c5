// FrameCodec in AVX2 and AVX-512. Target attributes, not flags of the file: a flag would let the
// linker take this file's copy of some inline function for the whole program.
#include "frame_codec_x86.hpp"

#if defined(__x86_64__)
#include <algorithm>
#include <cstring>

#include "x86_intrinsics.hpp"

#define WMFAST_AVX2 __attribute__((target("avx2,bmi2,popcnt")))
#define WMFAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2,popcnt")))

namespace wmfast {
namespace {

std::size_t plane_bytes(std::size_t count) { return (count + 7) / 8; }

template <typename Word>
Word load_word(const std::byte* from) {
  Word word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

template <typename Word>
void store_word(std::byte* to, Word word) {
  std::memcpy(to, &word, sizeof(word));
}

// ---- AVX2: 16 tokens at a time, the rest one by one ----

WMFAST_AVX2 void pack_avx2(const std::uint16_t* tokens, std::size_t count, unsigned planes,
                           std::byte* stored) {
  const __m256i low = _mm256_set1_epi16(0xFF);
  const std::size_t bytes = plane_bytes(count);
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i token = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tokens + i));
    const __m256i masked = _mm256_and_si256(token, low);
    const __m128i packed =
        _mm_packus_epi16(_mm256_castsi256_si128(masked), _mm256_extracti128_si256(masked, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(stored + i), packed);
    for (unsigned p = 0; p < planes; ++p) {
      // The plane's bit becomes the sign of its 16-bit lane, and of a byte after the packing.
      const __m256i sign = _mm256_sll_epi16(token, _mm_cvtsi32_si128(static_cast<int>(7 - p)));
      const __m128i signs =
          _mm_packs_epi16(_mm256_castsi256_si128(sign), _mm256_extracti128_si256(sign, 1));
      store_word(stored + count + p * bytes + i / 8,
                 static_cast<std::uint16_t>(_mm_movemask_epi8(signs)));
    }
  }
  if (i == count) return;
  for (unsigned p = 0; p < planes; ++p) {
    unsigned bits = 0;
    for (std::size_t j = i; j < count; ++j) bits |= ((tokens[j] >> (8u + p)) & 1u) << (j - i);
    for (std::size_t at = i / 8; at < bytes; ++at, bits >>= 8) {
      stored[count + p * bytes + at] = static_cast<std::byte>(bits & 0xFFu);
    }
  }
  for (; i < count; ++i) stored[i] = static_cast<std::byte>(tokens[i] & 0xFFu);
}

WMFAST_AVX2 void unpack_avx2(const std::byte* stored, std::size_t count, unsigned planes,
                             std::uint16_t* out, std::uint16_t* twin) {
  const __m256i lane_bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048,
                                             4096, 8192, 16384, static_cast<short>(32768));
  const std::size_t bytes = plane_bytes(count);
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __m256i token =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(stored + i)));
    for (unsigned p = 0; p < planes; ++p) {
      const auto word = load_word<std::int16_t>(stored + count + p * bytes + i / 8);
      const __m256i chosen = _mm256_and_si256(_mm256_set1_epi16(word), lane_bit);
      const __m256i set = _mm256_cmpeq_epi16(chosen, lane_bit);
      token = _mm256_or_si256(
          token, _mm256_and_si256(set, _mm256_set1_epi16(static_cast<short>(256 << p))));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), token);
    if (twin != nullptr) _mm256_storeu_si256(reinterpret_cast<__m256i*>(twin + i), token);
  }
  for (; i < count; ++i) {
    unsigned token = std::to_integer<unsigned>(stored[i]);
    for (unsigned p = 0; p < planes; ++p) {
      const unsigned eight = std::to_integer<unsigned>(stored[count + p * bytes + i / 8]);
      token |= ((eight >> (i % 8)) & 1u) << (8u + p);
    }
    out[i] = static_cast<std::uint16_t>(token);
    if (twin != nullptr) twin[i] = out[i];
  }
}

WMFAST_AVX2 std::uint16_t largest_avx2(const std::uint16_t* tokens, std::size_t count) {
  __m256i most = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    most = _mm256_max_epu16(most, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tokens + i)));
  }
  alignas(32) std::uint16_t lanes[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  std::uint16_t largest = 0;
  for (const std::uint16_t lane : lanes) largest = std::max(largest, lane);
  for (; i < count; ++i) largest = std::max(largest, tokens[i]);
  return largest;
}

// ---- AVX-512: 32 tokens at a time, the rest under a mask ----

WMFAST_AVX512 void pack_avx512(const std::uint16_t* tokens, std::size_t count, unsigned planes,
                               std::byte* stored) {
  const std::size_t bytes = plane_bytes(count);
  for (std::size_t i = 0; i < count; i += 32) {
    const std::size_t left = std::min<std::size_t>(32, count - i);
    const __mmask32 lanes = 0xFFFFFFFFu >> (32 - left);
    const __m512i token = _mm512_maskz_loadu_epi16(lanes, tokens + i);
    _mm256_mask_storeu_epi8(stored + i, lanes, _mm512_maskz_cvtepi16_epi8(lanes, token));
    for (unsigned p = 0; p < planes; ++p) {
      const std::uint32_t word =
          _mm512_test_epi16_mask(token, _mm512_set1_epi16(static_cast<short>(256 << p)));
      std::memcpy(stored + count + p * bytes + i / 8, &word, plane_bytes(left));
    }
  }
}

// Adds the planes' bits to 32 low bytes; `words` has the 32 bits of each plane.
template <unsigned kPlanes>
WMFAST_AVX512 inline __m512i with_planes(__m256i low, const std::uint32_t* words) {
  __m512i token = _mm512_cvtepu8_epi16(low);
  for (unsigned p = 0; p < kPlanes; ++p) {
    const __m512i bit = _mm512_set1_epi16(static_cast<short>(256 << p));
    token = _mm512_mask_add_epi16(token, words[p], token, bit);
  }
  return token;
}

template <unsigned kPlanes, bool kTwin>
WMFAST_AVX512 void unpack_planes_avx512(const std::byte* stored, std::size_t count,
                                        std::uint16_t* out, std::uint16_t* twin) {
  const std::size_t bytes = plane_bytes(count);
  const std::byte* const plane = stored + count;
  const std::size_t whole = count / 32 * 32;
  std::uint32_t words[kPlanes + 1];
  std::size_t i = 0;
  for (; i < whole; i += 32) {
    for (unsigned p = 0; p < kPlanes; ++p) {
      words[p] = load_word<std::uint32_t>(plane + p * bytes + i / 8);
    }
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored + i));
    const __m512i token = with_planes<kPlanes>(low, words);
    _mm512_storeu_si512(out + i, token);
    if (kTwin) _mm512_storeu_si512(twin + i, token);
  }
  if (i == count) return;
  const auto lanes = static_cast<__mmask32>(0xFFFFFFFFu >> (32 - (count - i)));
  const auto word_lanes = static_cast<__mmask16>(0xFu >> (4 - plane_bytes(count - i)));
  for (unsigned p = 0; p < kPlanes; ++p) {
    words[p] = static_cast<std::uint32_t>(
        _mm_cvtsi128_si32(_mm_maskz_loadu_epi8(word_lanes, plane + p * bytes + i / 8)));
  }
  const __m512i token = with_planes<kPlanes>(_mm256_maskz_loadu_epi8(lanes, stored + i), words);
  _mm512_mask_storeu_epi16(out + i, lanes, token);
  if (kTwin) _mm512_mask_storeu_epi16(twin + i, lanes, token);
}

template <unsigned kPlanes>
WMFAST_AVX512 void unpack_to_avx512(const std::byte* stored, std::size_t count, std::uint16_t* out,
                                    std::uint16_t* twin) {
  if (twin == nullptr) {
    unpack_planes_avx512<kPlanes, false>(stored, count, out, twin);
  } else {
    unpack_planes_avx512<kPlanes, true>(stored, count, out, twin);
  }
}

void unpack_avx512(const std::byte* stored, std::size_t count, unsigned planes, std::uint16_t* out,
                   std::uint16_t* twin) {
  static_assert(FrameCodec::kMaxPlanes == 4);
  switch (planes) {
    case 0:
      return unpack_to_avx512<0>(stored, count, out, twin);
    case 1:
      return unpack_to_avx512<1>(stored, count, out, twin);
    case 2:
      return unpack_to_avx512<2>(stored, count, out, twin);
    case 3:
      return unpack_to_avx512<3>(stored, count, out, twin);
    default:
      return unpack_to_avx512<4>(stored, count, out, twin);
  }
}

WMFAST_AVX512 std::uint16_t largest_avx512(const std::uint16_t* tokens, std::size_t count) {
  __m512i most = _mm512_setzero_si512();
  for (std::size_t i = 0; i < count; i += 32) {
    const __mmask32 lanes = 0xFFFFFFFFu >> (32 - std::min<std::size_t>(32, count - i));
    most = _mm512_max_epu16(most, _mm512_maskz_loadu_epi16(lanes, tokens + i));
  }
  alignas(64) std::uint16_t values[32];
  _mm512_store_si512(values, most);
  return *std::max_element(values, values + 32);
}

}  // namespace

constinit const PlaneKernels kAvx2PlaneKernels{&pack_avx2, &unpack_avx2, &largest_avx2};
constinit const PlaneKernels kAvx512PlaneKernels{&pack_avx512, &unpack_avx512, &largest_avx512};

}  // namespace wmfast
#endif
