// nearest_code: every path of this machine, and AMX on emulated tiles, against plain doubles.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../nearest_code_kernels.hpp"
#include "../nearest_code_tile.hpp"
#include "check.hpp"
#include "emulated_tile.hpp"
#include "nearest_code_cases.hpp"
#include "wmfast/rng.hpp"

namespace {

using namespace wmfast;

// One float: what the tile kernel needs to fold its scores.
struct PlainVector {
  static constexpr std::size_t kWidth = 1;
  using Floats = float;
  using Ints = std::int32_t;
  static float load(const float* p) { return *p; }
  static void store(float* p, float v) { *p = v; }
  static Ints load_ints(const Ints* p) { return *p; }
  static void store_ints(Ints* p, Ints v) { *p = v; }
  static Ints broadcast_int(Ints v) { return v; }
  static bool less(float a, float b) { return a < b; }
  static float min(float a, float b) { return a < b ? a : b; }
  static float max(float a, float b) { return a > b ? a : b; }
  static Ints select(bool mask, Ints a, Ints b) { return mask ? a : b; }
};

RowNorms prepare_coarse_plain(const float* row, const PackedCodebook& book, std::uint16_t* out) {
  RowNorms norms{};
  std::fill_n(out, book.row_floats(), std::uint16_t{0});
  for (std::size_t d = 0; d < book.dim; ++d) {
    const float x = row[d] - book.mean[d];
    out[d] = to_bfloat16(x);
    const float gap = x - from_bfloat16(out[d]);
    norms.square += x * x;
    norms.rounding_square += gap * gap;
  }
  return norms;
}

NearestKernels emulated_amx_kernels() {
  NearestKernels kernels = scalar_kernels();
  kernels.row_group = kTileRows;
  kernels.coarse_limit = 2.0f;  // never give the tiles up
  kernels.prepare_coarse = prepare_coarse_plain;
  kernels.score_coarse = score_tiles<EmulatedTile, PlainVector>;
  return kernels;
}

void check_all(const NearestKernels& kernels, const std::string& path) {
  ThreadPool pool;
  const std::size_t shapes[][3] = {{70, 33, 48},  {9, 300, 75}, {40, 5, 1},   {3, 1, 2},
                                   {130, 70, 31}, {5, 64, 33},  {1, 130, 16}, {33, 17, 64}};
  for (const auto& [rows, codes, dim] : shapes) {
    for (const std::string& kind : kKinds) {
      const Case made = make_case(kind, rows, codes, dim);
      const auto stride = static_cast<std::ptrdiff_t>(dim);
      const auto book = pack_codebook({made.c.data(), Element::kFloat32, codes, dim, stride});
      std::vector<std::int64_t> index(rows, -1);
      nearest_code({made.x.data(), Element::kFloat32, rows, dim, stride}, *book, index, kernels, 2,
                   pool);
      for (std::size_t i = 0; i < rows; ++i) {
        const std::int64_t expected = nearest(made.x.data() + i * dim, made.c.data(), codes, dim);
        if (index[i] != expected) {
          std::fprintf(stderr, "%s, %s, %zu x %zu x %zu, row %zu: %lld, not %lld\n", path.c_str(),
                       kind.c_str(), rows, codes, dim, i, static_cast<long long>(index[i]),
                       static_cast<long long>(expected));
        }
        CHECK(index[i] == expected);
      }
    }
  }
}

// The tiles' scores, not only what is left of them after the recheck.
void emulated_tiles_score_within_their_bound() {
  for (const auto& [rows, codes, dim] : {std::array<std::size_t, 3>{32, 70, 75}, {64, 64, 32}}) {
    const Case made = make_case("uniform", rows, codes, dim);
    const auto stride = static_cast<std::ptrdiff_t>(dim);
    const auto book = pack_codebook({made.c.data(), Element::kFloat32, codes, dim, stride});
    LineVector<std::uint16_t> x(rows * book->row_floats());
    LineVector<RowState> state(rows);
    for (std::size_t i = 0; i < rows; ++i) {
      prepare_coarse_plain(made.x.data() + i * dim, *book, x.data() + i * book->row_floats());
    }
    score_tiles<EmulatedTile, PlainVector>(x.data(), rows, *book, state.data());
    CHECK(!EmulatedTile::configured);
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        std::vector<double> scores;
        for (std::size_t k = lane; k < codes; k += kLanes) {
          double score = static_cast<double>(book->square[k]);
          for (std::size_t d = 0; d < dim; ++d) {
            const float c = made.c[k * dim + d] - book->mean[d];
            score -= 2 * static_cast<double>(from_bfloat16(x[i * book->row_floats() + d])) *
                     static_cast<double>(from_bfloat16(to_bfloat16(c)));
          }
          scores.push_back(score);
        }
        const auto least = std::min_element(scores.begin(), scores.end());
        CHECK(std::abs(*least - static_cast<double>(state[i].best[lane])) < 1e-4);
        CHECK(std::abs(scores[static_cast<std::size_t>(state[i].group[lane])] - *least) < 1e-4);
        scores.erase(least);
        const double second =
            scores.empty() ? HUGE_VAL : *std::min_element(scores.begin(), scores.end());
        const auto found = static_cast<double>(state[i].second[lane]);
        CHECK(found == second || std::abs(second - found) < 1e-4);
      }
    }
  }
}

// Tiles with one fault each.
struct ForgetfulTile : EmulatedTile {  // the last row of a tile is not stored
  template <int kTile>
  static void store(void* to, std::size_t stride) {
    std::vector<std::byte> last(kBytes);
    std::byte* const at = static_cast<std::byte*>(to) + 15 * stride;
    std::memcpy(last.data(), at, kBytes);
    EmulatedTile::store<kTile>(to, stride);
    std::memcpy(at, last.data(), kBytes);
  }
};
struct HalfTile : EmulatedTile {  // the odd elements count for nothing
  template <int kSum, int kA, int kB>
  static void multiply() {
    const Register kept = registers[kA];
    for (auto& row : registers[kA]) {
      for (std::size_t byte = 2; byte < kBytes; byte += 4) row[byte] = row[byte + 1] = std::byte{0};
    }
    EmulatedTile::multiply<kSum, kA, kB>();
    registers[kA] = kept;
  }
};
struct CoarseTile : EmulatedTile {  // sums are rounded to bfloat16
  template <int kTile>
  static void store(void* to, std::size_t stride) {
    for (auto& row : registers[kTile]) {
      for (std::size_t byte = 0; byte < kBytes; byte += 4) row[byte] = row[byte + 1] = std::byte{0};
    }
    EmulatedTile::store<kTile>(to, stride);
  }
};

void the_self_check_sees_every_fault_of_a_tile() {
  NearestKernels kernels = emulated_amx_kernels();
  CHECK(passes_self_check(kernels) && passes_self_check(scalar_kernels()));
  for (const auto score_coarse :
       {score_tiles<ForgetfulTile, PlainVector>, score_tiles<HalfTile, PlainVector>,
        score_tiles<CoarseTile, PlainVector>}) {
    kernels.score_coarse = score_coarse;
    CHECK(!passes_self_check(kernels));
  }
#if defined(__x86_64__)
  if (is_supported(NearestPath::kAvx512Bf16)) CHECK(passes_self_check(avx512_bf16_kernels()));
#endif
}

void emulated_rounding_is_that_of_the_manual() {
  CHECK(EmulatedTile::flush(1e-39f) == 0.0f && EmulatedTile::flush(-2e-38f) == -2e-38f);
  CHECK(to_bfloat16(1.0f) == 0x3F80 && to_bfloat16(1e-39f) == 0);
  CHECK(to_bfloat16(1.00390625f) == 0x3F80);  // half way: to even
  CHECK(to_bfloat16(1.01171875f) == 0x3F82);
  CHECK(to_bfloat16(1.003907f) == 0x3F81);
  CHECK(to_bfloat16(kInfinity) == 0x7F80 && std::isnan(from_bfloat16(to_bfloat16(kNan))));
  CHECK(from_float16(0x3C00) == 1.0f && from_float16(0x0001) == 0x1p-24f);
  CHECK(from_float16(0xFC00) == -kInfinity && from_float16(0x7BFF) == 65504.0f);
}

void rows_may_lie_apart_and_be_of_16_bits() {
  const Case made = make_case("uniform", 50, 20, 19);
  constexpr std::size_t kStride = 23;
  std::vector<std::uint16_t> bits(50 * kStride, 0x7FC0);  // NaN between the rows
  std::vector<float> widened(50 * 19);
  for (std::size_t i = 0; i < 50; ++i) {
    for (std::size_t d = 0; d < 19; ++d) {
      bits[i * kStride + d] = to_bfloat16(made.x[i * 19 + d]);
      widened[i * 19 + d] = from_bfloat16(bits[i * kStride + d]);
    }
  }
  const auto book = pack_codebook({made.c.data(), Element::kFloat32, 20, 19, 19});
  std::vector<std::int64_t> index(50);
  nearest_code({bits.data(), Element::kBfloat16, 50, 19, kStride}, *book, index,
               choose_nearest_path(), 1);
  for (std::size_t i = 0; i < 50; ++i) {
    CHECK(index[i] == nearest(widened.data() + i * 19, made.c.data(), 20, 19));
  }
}

void the_cache_knows_a_codebook_by_its_bits() {
  std::vector<float> codes{1, 2, 3, 4, 5, 6};
  const Vectors view{codes.data(), Element::kFloat32, 3, 2, 2};
  CodebookCache cache;
  const auto first = cache.get(view);
  CHECK(cache.get(view) == first && cache.packed() == 1);
  const std::vector<float> copy = codes;
  CHECK(cache.get({copy.data(), Element::kFloat32, 3, 2, 2}) == first);
  CHECK(cache.get({codes.data(), Element::kFloat32, 2, 3, 3}) != first);  // another shape
  codes[5] = 7;
  const auto changed = cache.get(view);
  CHECK(changed != first && cache.packed() == 3 && cache.size() == 3);
  codes[5] = 6;
  CHECK(cache.get(view) == first && cache.packed() == 3);
  codes[0] = -0.0f;
  cache.get(view);
  codes[0] = 0.0f;
  CHECK(cache.get(view)->exact[0] == 0.0f && cache.packed() == 5);

  // A codebook in training leaves few packs behind, and one that rests beside it keeps its own.
  for (int step = 0; step < 100; ++step) {
    codes[5] = static_cast<float>(10 + step);
    cache.get(view);
    CHECK(cache.get({copy.data(), Element::kFloat32, 3, 2, 2}) == first);
  }
  CHECK(cache.size() == CodebookCache::kMostPacks);

  CodebookCache small(1);  // room for the newest only
  small.get(view);
  small.get({copy.data(), Element::kFloat32, 3, 2, 2});
  CHECK(small.size() == 1 && small.packed() == 2);
}

void searches_run_at_once() {
  const Case made = make_case("near ties", 400, 70, 20);
  const auto book = pack_codebook({made.c.data(), Element::kFloat32, 70, 20, 20});
  std::vector<std::vector<std::int64_t>> index(3, std::vector<std::int64_t>(400));
  std::vector<std::thread> threads;
  for (auto& part : index) {
    threads.emplace_back([&] {
      nearest_code({made.x.data(), Element::kFloat32, 400, 20, 20}, *book, part,
                   choose_nearest_path(), 2);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(index[0] == index[1] && index[1] == index[2]);
}

void a_path_is_chosen_by_name() {
  ::setenv("WMFAST_CPU", "scalar", 1);
  CHECK(choose_nearest_path() == NearestPath::kScalar);
  ::setenv("WMFAST_CPU", "sse9", 1);
  CHECK(message_of<std::invalid_argument>(choose_nearest_path) ==
        "WMFAST_CPU is 'sse9', allowed are amx, avx512, avx2, scalar");
  if (!is_supported(NearestPath::kAmx)) {
    ::setenv("WMFAST_CPU", "amx", 1);
    CHECK(message_of<std::invalid_argument>(choose_nearest_path) ==
          "WMFAST_CPU is amx, but this machine has no such instructions");
  }
  ::setenv("WMFAST_CPU", "", 1);
  CHECK(is_supported(choose_nearest_path()));
  ::unsetenv("WMFAST_CPU");
}

}  // namespace

int main() {
  emulated_rounding_is_that_of_the_manual();
  emulated_tiles_score_within_their_bound();
  the_self_check_sees_every_fault_of_a_tile();
  check_all(emulated_amx_kernels(), "emulated amx");
  check_all(scalar_kernels(), "scalar");
#if defined(__x86_64__)
  if (is_supported(NearestPath::kAvx2)) check_all(avx2_kernels(), "avx2");
  if (is_supported(NearestPath::kAvx512)) check_all(avx512_kernels(), "avx512");
  if (is_supported(NearestPath::kAvx512Bf16)) check_all(avx512_bf16_kernels(), "avx512_bf16");
  if (is_supported(NearestPath::kAmx)) check_all(amx_kernels(), "amx");
#endif
  rows_may_lie_apart_and_be_of_16_bits();
  the_cache_knows_a_codebook_by_its_bits();
  searches_run_at_once();
  a_path_is_chosen_by_name();
  return 0;
}
