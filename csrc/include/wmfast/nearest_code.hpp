// Nearest code of each vector on a CPU: index_n = argmin_k |x_n - c_k|^2, ties to the lowest index.
//
// The answer is defined by doubles: distance(x, c) = sum_d (x_d - c_d)^2, summed in one fixed order
// without fused multiply-adds, so every path gives the same index on every machine. A distance that
// is NaN or infinite is never chosen while another is finite; a row with no finite one gets 0.
//
// How: tiers, each with a proven bound E on the error of its scores s_k = |c_k|^2 - 2 x.c_k.
//
//   tier      where             operands             decides a row when
//   coarse    AMX, AVX-512      bfloat16 in,         one code is within 2 E of the best; or at most
//             with bfloat16     float32 sums         16 are, each in a lane of its own: doubles
//   fine      all               float32              always: doubles for the codes within 2 E
//   scan      all               float64              scores could overflow: doubles for all codes
//
// Rows and codes are compared relative to the codebook's mean, which makes |x| |c|, hence E, small.
// The (N, K) scores are never in memory: a running best of each row and lane (code mod 16) is.
//
//   packed codebook, a tile of 64 codes (K padded with codes of score +inf)
//     fine    [tile][d      ][64]     float32   -2 (c - mean)
//     coarse  [tile][d pair ][64][2]  bfloat16  the same, in the pairs that AMX and vdpbf16ps take
//
// Thread rule: everything may be called from any thread at once; a PackedCodebook never changes
// once made, apart from hints about speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "wmfast/thread_pool.hpp"

namespace wmfast {

enum class Element : std::uint8_t { kFloat32, kBfloat16, kFloat16 };

std::size_t bytes_of(Element element);

// `rows` vectors of `dim` elements in the caller's memory: elements of a vector side by side,
// vectors `row_stride` elements apart.
struct Vectors {
  const void* data;
  Element element;
  std::size_t rows;
  std::size_t dim;
  std::ptrdiff_t row_stride;

  const std::byte* row(std::size_t i) const {
    return static_cast<const std::byte*>(data) + static_cast<std::ptrdiff_t>(i) * row_stride *
                                                     static_cast<std::ptrdiff_t>(bytes_of(element));
  }
};

// What a codebook is searched by. `avx512_bf16` is AVX-512 with its bfloat16 dot product.
enum class NearestPath : std::uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

const char* name_of(NearestPath path);

// Whether this machine and its system can run the path. For AMX that includes the permission to use
// its registers (arch_prctl) and, once, a small search whose scores must be within their bound and
// whose indices must be those of the scalar path: where that fails, one line on stderr says so and
// the path counts as not there.
bool is_supported(NearestPath path);

// The best path of this machine, or what WMFAST_CPU=amx|avx512|avx2|scalar names (avx512 takes
// bfloat16 where there is). The environment is read at every call. Throws std::invalid_argument for
// another name, or for a path this machine lacks.
NearestPath choose_nearest_path();

struct PackedCodebook;
struct NearestKernels;

// Packs K >= 1 codes of D >= 1 elements; keeps no reference to them. O(K D).
std::shared_ptr<const PackedCodebook> pack_codebook(const Vectors& codes);

// Whether the pack was made of exactly these bits. O(K D), at the speed of memory.
bool is_pack_of(const PackedCodebook& book, const Vectors& codes);

// The last few codebooks, recognised by their bits: a codebook changed in place, whichever way, is
// packed again. Keeps the newest pack, and older ones while all of them take at most `max_bytes`,
// up to `kMostPacks`: every call compares its codebook with them, and one in training leaves a
// stale pack behind at every step.
class CodebookCache {
 public:
  static constexpr std::size_t kMostPacks = 8;

  explicit CodebookCache(std::size_t max_bytes = std::size_t{64} << 20) : max_bytes_(max_bytes) {}

  std::shared_ptr<const PackedCodebook> get(const Vectors& codes);

  std::size_t size() const;    // packs held
  std::size_t packed() const;  // packs made so far

 private:
  mutable std::mutex mutex_;
  std::list<std::shared_ptr<const PackedCodebook>> books_;  // newest first
  std::size_t max_bytes_;
  std::size_t packed_ = 0;
};

// index[i] = the code nearest to row i of x; x.dim is the codebook's, index.size() is x.rows.
// At most `threads` threads of the pool. O(N K D) time, some 100 KB of memory a thread.
void nearest_code(const Vectors& x, const PackedCodebook& book, std::span<std::int64_t> index,
                  NearestPath path, std::size_t threads, ThreadPool& pool = ThreadPool::shared());

// The same with kernels of one's own, for tests.
void nearest_code(const Vectors& x, const PackedCodebook& book, std::span<std::int64_t> index,
                  const NearestKernels& kernels, std::size_t threads, ThreadPool& pool);

}  // namespace wmfast
