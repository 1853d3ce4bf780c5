// The search: blocks of rows through the tiers of nearest_code.hpp.
//
// Bounds. u = 2^-24, gamma_n(u) = n u / (1 - n u) bounds a sum of n rounded products in any order
// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). With n = |x'|, x' = fl(x -
// mean), C = max |c'|, delta and rho what bfloat16 took from x' and at most from a code:
//
//   score from float32 products   gamma_{D+4}(C^2 + 2 n C)
//   and from bfloat16 operands    2 (delta C + (n + delta) rho), sums with twice the roundoff, as
//                                 hardware may round them as it likes, and flushes denormals
//   centring                      2.1 u (n + C)^2
//   doubles of the recheck        1.5 gamma_{D+18}(2^-53) (n + C)^2
//
// Twice their sum is the margin: a code whose score lies further above the best is not the answer.
#include "wmfast/nearest_code.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "nearest_code_kernels.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace wmfast {
namespace {

constexpr std::size_t kBlockRows = 96;                     // of a codebook that fits a cache
constexpr std::size_t kLargeBlockRows = 288;               // of one that is read anew per block
constexpr std::size_t kCacheBytes = std::size_t{1} << 20;  // of a core
constexpr std::size_t kThreadWork = std::size_t{1} << 20;  // multiply-adds worth a thread
constexpr std::size_t kTrialRows = 64;                     // before the coarse tier is judged
constexpr int kPausedCalls = 16;
constexpr double kSlack = 1.05;  // the rounding of the norms
constexpr double kLargestNorm = 0x1p58;

// Denormals count and rounding is to nearest, whatever the calling thread has set.
class PlainFloatingPoint {
 public:
  PlainFloatingPoint(const PlainFloatingPoint&) = delete;
  PlainFloatingPoint& operator=(const PlainFloatingPoint&) = delete;
#if defined(__x86_64__)
  PlainFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80u); }
  ~PlainFloatingPoint() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  PlainFloatingPoint() = default;
#endif
};

double gamma(std::size_t n, double unit_roundoff) {
  const double sum = static_cast<double>(n) * unit_roundoff;
  return sum / (1 - sum);
}

// The margin as a polynomial in n and delta: worked out once a call.
struct Margin {
  double constant, n, n_square, delta;

  Margin(const PackedCodebook& book, bool coarse) {
    const double c = book.largest, rho = coarse ? book.rounding : 0;
    const double sums =
        coarse ? gamma(book.row_floats() + 4, 0x1p-23) : gamma(book.dim + 4, 0x1p-24);
    const double distances = 4.2 * 0x1p-24 + 3 * gamma(book.dim + 18, 0x1p-53);
    const double flushed = static_cast<double>(book.row_floats() + 8) * 0x1p-124;
    constant = kSlack * (2 * sums * (c + rho) * (c + rho) + distances * c * c + flushed);
    n = kSlack * (4 * sums * (c + rho) + 4 * rho + 2 * distances * c);
    n_square = kSlack * distances;
    delta = kSlack * (4 * sums * (c + rho) + 4 * (c + rho));
  }
  double operator()(double norm, double lost) const {
    return constant + norm * (n + norm * n_square) + lost * delta;
  }
};

struct Call {
  const Vectors& x;
  const PackedCodebook& book;
  std::span<std::int64_t> index;
  const NearestKernels& kernels;
  Margin fine, coarse;
  double vanished;  // squares below 2^-126 are missing in a float32 norm: at most this much of it
  std::atomic<bool> use_coarse;
  std::atomic<std::size_t> tried = 0, unsettled = 0;
};

// Memory of one thread, kept for its next call.
struct Scratch {
  LineVector<std::uint16_t> coarse;
  LineVector<float> fine, widened;
  LineVector<RowState> state;
  std::vector<double> margin;     // per row; negative: decided already
  std::vector<std::size_t> open;  // rows that the coarse tier left
};

class Block {
 public:
  Block(Call& call, Scratch& scratch) : call_(call), s_(scratch) {
    s_.widened.assign(call.book.row_floats(), 0.0f);
  }

  void search(std::size_t begin, std::size_t end) {
    s_.open.clear();
    if (!call_.book.any_finite) {
      const auto rows = call_.index.subspan(begin, end - begin);
      std::fill(rows.begin(), rows.end(), 0);
      return;
    }
    if (call_.use_coarse.load(std::memory_order_relaxed)) {
      coarse_tier(begin, end);
    } else {
      for (std::size_t row = begin; row < end; ++row) s_.open.push_back(row);
    }
    if (!s_.open.empty()) fine_tier();
  }

 private:
  // The row as float32; valid until the next call.
  const float* widened(std::size_t row) {
    if (call_.x.element == Element::kFloat32) {
      return reinterpret_cast<const float*>(call_.x.row(row));
    }
    call_.kernels.widen(call_.x.row(row), call_.x.element, call_.book.dim, s_.widened.data());
    return s_.widened.data();
  }

  // The margin of a row, or -1 where the row is not to be scored and has been decided.
  double admit(std::size_t row, const float* values, RowNorms norms, const Margin& margin) {
    const double norm = std::sqrt(static_cast<double>(norms.square)) + call_.vanished;
    if (norm < kLargestNorm && call_.book.bounded) {
      const double lost = std::sqrt(static_cast<double>(norms.rounding_square)) + call_.vanished;
      return margin(norm, lost);
    }
    bool finite = true;
    for (std::size_t d = 0; d < call_.book.dim; ++d) finite = finite && std::isfinite(values[d]);
    call_.index[row] = 0;
    if (finite) scan(row);
    return -1;
  }

  void coarse_tier(std::size_t begin, std::size_t end) {
    const NearestKernels& kernels = call_.kernels;
    const std::size_t stride = call_.book.row_floats();
    const std::size_t rows = round_up(end - begin, kernels.row_group);
    s_.coarse.resize(std::max(s_.coarse.size(), rows * stride));
    s_.state.resize(std::max(s_.state.size(), rows));
    s_.margin.resize(end - begin);
    for (std::size_t i = 0; i < end - begin; ++i) {
      const float* values = widened(begin + i);
      const RowNorms norms =
          kernels.prepare_coarse(values, call_.book, s_.coarse.data() + i * stride);
      s_.margin[i] = admit(begin + i, values, norms, call_.coarse);
    }
    std::fill(s_.coarse.begin() + static_cast<std::ptrdiff_t>((end - begin) * stride),
              s_.coarse.begin() + static_cast<std::ptrdiff_t>(rows * stride), std::uint16_t{0});
    kernels.score_coarse(s_.coarse.data(), rows, call_.book, s_.state.data());
    for (std::size_t i = 0; i < end - begin; ++i) {
      if (s_.margin[i] < 0) continue;
      const NearLanes near = kernels.near_lanes(s_.state[i], s_.margin[i]);
      if (near.second != 0) {
        s_.open.push_back(begin + i);
      } else {
        settle(begin + i, s_.state[i], near);
      }
    }
    judge_coarse(end - begin);
  }

  // Where too many rows stay open, the fine tier alone is faster: also in the next few calls.
  void judge_coarse(std::size_t rows) {
    const std::size_t tried = call_.tried.fetch_add(rows) + rows;
    const std::size_t open = call_.unsettled.fetch_add(s_.open.size()) + s_.open.size();
    if (tried >= kTrialRows &&
        static_cast<float>(open) > call_.kernels.coarse_limit * static_cast<float>(tried)) {
      call_.use_coarse.store(false, std::memory_order_relaxed);
      call_.book.coarse_pause.store(kPausedCalls, std::memory_order_relaxed);
    }
  }

  void fine_tier() {
    const NearestKernels& kernels = call_.kernels;
    const std::size_t stride = call_.book.row_floats();
    const std::size_t rows = round_up(s_.open.size(), kernels.row_group);
    s_.fine.resize(std::max(s_.fine.size(), rows * stride));
    s_.state.resize(std::max(s_.state.size(), rows));
    s_.margin.resize(s_.open.size());
    for (std::size_t i = 0; i < s_.open.size(); ++i) {
      const float* values = widened(s_.open[i]);
      const RowNorms norms = kernels.prepare_fine(values, call_.book, s_.fine.data() + i * stride);
      s_.margin[i] = admit(s_.open[i], values, norms, call_.fine);
    }
    if (!call_.book.bounded) return;
    std::fill(s_.fine.begin() + static_cast<std::ptrdiff_t>(s_.open.size() * stride),
              s_.fine.begin() + static_cast<std::ptrdiff_t>(rows * stride), 0.0f);
    kernels.score_fine(s_.fine.data(), rows, call_.book, s_.state.data());
    for (std::size_t i = 0; i < s_.open.size(); ++i) {
      if (s_.margin[i] < 0) continue;
      settle(s_.open[i], s_.state[i], kernels.near_lanes(s_.state[i], s_.margin[i]));
    }
  }

  void settle(std::size_t row, const RowState& state, NearLanes near) {
    if (near.second == 0 && std::has_single_bit(near.best)) {
      const auto lane = static_cast<std::size_t>(std::countr_zero(near.best));
      call_.index[row] = code_of(state, lane);
      return;
    }
    begin_recheck(row);
    for (std::uint32_t lanes = near.best; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<std::size_t>(std::countr_zero(lanes));
      if ((near.second >> lane & 1) == 0) {
        recheck(code_of(state, lane));
      } else {  // the lane holds several: which ones is not known
        for (std::size_t k = lane; k < call_.book.codes; k += kLanes) {
          recheck(static_cast<std::int64_t>(k));
        }
      }
    }
    call_.index[row] = nearest_;
  }

  void scan(std::size_t row) {
    begin_recheck(row);
    for (std::size_t k = 0; k < call_.book.codes; ++k) recheck(static_cast<std::int64_t>(k));
    call_.index[row] = nearest_;
  }

  static std::int64_t code_of(const RowState& state, std::size_t lane) {
    return std::int64_t{state.group[lane]} * static_cast<std::int64_t>(kLanes) +
           static_cast<std::int64_t>(lane);
  }

  void begin_recheck(std::size_t row) {
    call_.kernels.widen(call_.x.row(row), call_.x.element, call_.book.dim, s_.widened.data());
    least_ = std::numeric_limits<double>::infinity();
    nearest_ = 0;
  }

  void recheck(std::int64_t code) {
    const float* exact =
        call_.book.exact.data() + static_cast<std::size_t>(code) * call_.book.row_floats();
    const double distance = call_.kernels.distance(s_.widened.data(), exact, padded_);
    if (distance < least_ || (distance == least_ && distance < kInfinity && code < nearest_)) {
      least_ = distance;
      nearest_ = code;
    }
  }

  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Call& call_;
  Scratch& s_;
  std::size_t padded_ = round_up(call_.book.dim, kLanes);
  double least_ = kInfinity;
  std::int64_t nearest_ = 0;
};

// Rows of a block: whole groups, the same number of blocks for every thread.
std::size_t block_rows(const Vectors& x, const PackedCodebook& book, std::size_t row_group,
                       std::size_t threads) {
  const bool large = book.codes * book.row_floats() * sizeof(std::uint16_t) > kCacheBytes;
  const std::size_t fits = kCacheBytes / 4 / sizeof(float) / book.row_floats();
  const std::size_t most =
      std::max(std::min(large ? kLargeBlockRows : kBlockRows, fits), row_group);
  const std::size_t rounds = (x.rows - 1) / (most * threads) + 1;
  const std::size_t rows = (x.rows - 1) / (rounds * threads) + 1;
  return round_up(rows, row_group);
}

}  // namespace

void nearest_code(const Vectors& x, const PackedCodebook& book, std::span<std::int64_t> index,
                  const NearestKernels& kernels, std::size_t threads, ThreadPool& pool) {
  if (x.rows == 0) return;
  const bool paused = book.coarse_pause.load(std::memory_order_relaxed) > 0 &&
                      book.coarse_pause.fetch_sub(1, std::memory_order_relaxed) > 0;
  Call call{.x = x,
            .book = book,
            .index = index,
            .kernels = kernels,
            .fine = Margin(book, false),
            .coarse = Margin(book, true),
            .vanished = std::sqrt(static_cast<double>(book.dim)) * 0x1p-63,
            .use_coarse = kernels.score_coarse != nullptr && book.bounded && !paused};
  const std::size_t work = x.rows * book.codes * book.dim / kThreadWork + 1;
  threads = std::clamp<std::size_t>(threads, 1, work);
  pool.parallel_for(x.rows, block_rows(x, book, kernels.row_group, threads), threads,
                    [&](std::size_t begin, std::size_t end) {
                      const PlainFloatingPoint plain;
                      thread_local Scratch scratch;
                      Block(call, scratch).search(begin, end);
                    });
}

}  // namespace wmfast
