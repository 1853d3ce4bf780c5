// Packing a codebook, and recognising it again.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "nearest_code_kernels.hpp"

namespace wmfast {
namespace {

// Above it, sums of products could overflow float32: such codebooks are scanned in doubles.
constexpr double kLargestNorm = 0x1p58;

bool all_finite(const float* row, std::size_t dim) {
  bool finite = true;
  for (std::size_t d = 0; d < dim; ++d) finite &= std::isfinite(row[d]);
  return finite;
}

// Zero where all codes are bfloat16 numbers as they stand: their products then need no rounding.
// Returns whether they are.
bool find_mean(PackedCodebook& book, const std::vector<bool>& finite) {
  const std::size_t stride = book.row_floats();
  bool exact = true;
  std::vector<double> sum(stride, 0.0);
  double count = 0;
  for (std::size_t k = 0; k < book.codes; ++k) {
    if (!finite[k]) continue;
    const float* row = book.exact.data() + k * stride;
    std::uint32_t bits = 0;
    for (std::size_t d = 0; d < stride; ++d) {
      sum[d] += static_cast<double>(row[d]);
      bits |= std::bit_cast<std::uint32_t>(row[d]);
    }
    exact = exact && (bits & 0xFFFFu) == 0;
    count += 1;
  }
  book.mean.assign(stride, 0.0f);
  for (std::size_t d = 0; d < stride && !exact; ++d) {
    book.mean[d] = static_cast<float>(sum[d] / count);
  }
  return exact;
}

// |c - mean|^2 in doubles, in eight sums, so that they are vectors. Rounding to bfloat16 takes at
// most 2^-9 of a number, or all of a denormal.
void measure(PackedCodebook& book, const std::vector<bool>& finite, bool exact) {
  const std::size_t stride = book.row_floats();
  for (std::size_t k = 0; k < book.codes; ++k) {
    if (!finite[k]) continue;
    const float* row = book.exact.data() + k * stride;
    double square[8] = {};
    for (std::size_t d = 0; d < stride; d += 8) {
      for (std::size_t j = 0; j < 8; ++j) {
        const auto centred = static_cast<double>(row[d + j] - book.mean[d + j]);
        square[j] += centred * centred;
      }
    }
    double total = 0;
    for (const double part : square) total += part;
    book.square[k] = static_cast<float>(total);
    book.largest = std::max(book.largest, std::sqrt(total) * (1 + 0x1p-40));
  }
  book.bounded = book.largest < kLargestNorm;  // an infinite difference makes it infinite
  const double denormals = std::sqrt(static_cast<double>(book.dim)) * 0x1p-126;
  book.rounding = (exact ? 0 : book.largest * 0x1p-9) + denormals;
}

// -2 (c - mean), or 0 where the code is padding or not finite: |c|^2 = inf keeps it out.
struct Centred {
  const PackedCodebook& book;
  std::size_t first;  // code of the tile

  const float* row(std::size_t j) const {
    const std::size_t k = first + j;
    const bool usable = k < book.codes && std::isfinite(book.square[k]);
    return usable ? book.exact.data() + k * book.row_floats() : nullptr;
  }
};

void fill_coarse(PackedCodebook& book) {
  book.coarse.assign(book.tiles * book.pairs() * kTileCodes * 2, 0);
  std::vector<std::uint16_t> rounded(book.row_floats());
  for (std::size_t tile = 0; tile < book.tiles; ++tile) {
    const Centred codes{book, tile * kTileCodes};
    std::uint16_t* out = book.coarse.data() + tile * book.pairs() * kTileCodes * 2;
    for (std::size_t j = 0; j < kTileCodes; ++j) {
      const float* row = codes.row(j);
      if (row == nullptr) continue;
      for (std::size_t d = 0; d < rounded.size(); ++d) {
        rounded[d] = to_bfloat16(-2.0f * (row[d] - book.mean[d]));
      }
      for (std::size_t pair = 0; pair < (book.dim + 1) / 2; ++pair) {
        std::memcpy(out + (pair * kTileCodes + j) * 2, &rounded[2 * pair], 2 * sizeof(*out));
      }
    }
  }
}

}  // namespace

std::size_t bytes_of(Element element) {
  return element == Element::kFloat32 ? sizeof(float) : sizeof(std::uint16_t);
}

float from_float16(std::uint16_t value) {
  const std::uint32_t sign = (value & 0x8000u) << 16;
  const std::uint32_t exponent = value >> 10 & 0x1Fu, mantissa = value & 0x3FFu;
  if (exponent == 0) {
    const float small = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -small : small;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

std::size_t PackedCodebook::nbytes() const {
  return source.size() + coarse.size() * sizeof(coarse[0]) +
         (2 * exact.size() + mean.size() + square.size()) * sizeof(float);
}

const float* PackedCodebook::fine() const {
  std::call_once(fine_once_, [this] {
    LineVector<float> packed(tiles * dim * kTileCodes, 0.0f);
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      const Centred tile_codes{*this, tile * kTileCodes};
      float* out = packed.data() + tile * dim * kTileCodes;
      for (std::size_t j = 0; j < kTileCodes; ++j) {
        const float* row = tile_codes.row(j);
        if (row == nullptr) continue;
        for (std::size_t d = 0; d < dim; ++d) out[d * kTileCodes + j] = -2.0f * (row[d] - mean[d]);
      }
    }
    fine_ = std::move(packed);
  });
  return fine_.data();
}

std::shared_ptr<const PackedCodebook> pack_codebook(const Vectors& codes) {
  const auto book = std::make_shared<PackedCodebook>();
  book->codes = codes.rows;
  book->dim = codes.dim;
  book->element = codes.element;
  book->tiles = round_up(codes.rows, kTileCodes) / kTileCodes;
  const std::size_t stride = book->row_floats();
  const std::size_t row_bytes = codes.dim * bytes_of(codes.element);
  book->exact.assign(codes.rows * stride, 0.0f);
  if (codes.element != Element::kFloat32) book->source.resize(codes.rows * row_bytes);
  std::vector<bool> finite(codes.rows);
  for (std::size_t k = 0; k < codes.rows; ++k) {
    float* row = book->exact.data() + k * stride;
    scalar_kernels().widen(codes.row(k), codes.element, codes.dim, row);
    finite[k] = all_finite(row, codes.dim);
    book->any_finite = book->any_finite || finite[k];
    if (!book->source.empty()) {
      std::memcpy(book->source.data() + k * row_bytes, codes.row(k), row_bytes);
    }
  }
  book->square.assign(book->tiles * kTileCodes, std::numeric_limits<float>::infinity());
  measure(*book, finite, find_mean(*book, finite));
  if (book->bounded) fill_coarse(*book);
  return book;
}

bool is_pack_of(const PackedCodebook& book, const Vectors& codes) {
  if (book.codes != codes.rows || book.dim != codes.dim || book.element != codes.element) {
    return false;
  }
  const std::size_t row_bytes = codes.dim * bytes_of(codes.element);
  const bool wide = codes.element == Element::kFloat32;
  const std::byte* kept =
      wide ? reinterpret_cast<const std::byte*>(book.exact.data()) : book.source.data();
  const std::size_t kept_stride = wide ? book.row_floats() * sizeof(float) : row_bytes;
  for (std::size_t k = 0; k < codes.rows; ++k) {
    if (std::memcmp(kept + k * kept_stride, codes.row(k), row_bytes) != 0) return false;
  }
  return true;
}

std::shared_ptr<const PackedCodebook> CodebookCache::get(const Vectors& codes) {
  std::vector<std::shared_ptr<const PackedCodebook>> known;
  {
    const std::lock_guard lock(mutex_);
    known.assign(books_.begin(), books_.end());
  }
  auto found = std::find_if(known.begin(), known.end(),
                            [&](const auto& book) { return is_pack_of(*book, codes); });
  if (found == known.begin() && found != known.end()) return *found;
  const bool fresh = found == known.end();
  std::shared_ptr<const PackedCodebook> book = fresh ? pack_codebook(codes) : *found;

  const std::lock_guard lock(mutex_);
  packed_ += fresh ? 1 : 0;
  books_.remove(book);
  books_.push_front(book);
  if (books_.size() > kMostPacks) books_.pop_back();
  std::size_t bytes = 0;
  for (auto at = books_.begin(); at != books_.end();) {
    bytes += (*at)->nbytes();
    at = at != books_.begin() && bytes > max_bytes_ ? books_.erase(at) : std::next(at);
  }
  return book;
}

std::size_t CodebookCache::size() const {
  const std::lock_guard lock(mutex_);
  return books_.size();
}

std::size_t CodebookCache::packed() const {
  const std::lock_guard lock(mutex_);
  return packed_;
}

}  // namespace wmfast
