// FrameCodec: every frame comes back, on every path with the same stored bytes, and nothing beside.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "streams.hpp"
#include "wmfast/frame_codec.hpp"
#include "wmfast/rng.hpp"

namespace {

using wmfast::FrameCodec;
using wmfast::Isa;
using wmfast::TokenType;

constexpr std::array kPaths{Isa::kScalar, Isa::kAvx2, Isa::kAvx512};
constexpr std::byte kGuard{0xA5};

bool all_guard(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == kGuard; });
}

std::vector<std::byte> random_frame(wmfast::RngState& rng, const FrameCodec& codec,
                                    std::size_t tokens, std::uint32_t vocab) {
  std::vector<std::byte> frame(codec.frame_bytes());
  for (std::size_t i = 0; i < tokens; ++i) {
    const auto token = static_cast<std::uint16_t>(wmfast::next_below(rng, vocab));
    std::memcpy(&frame[i * codec.token_bytes()], &token, codec.token_bytes());
  }
  return frame;
}

void frames_come_back(TokenType type, std::size_t tokens, std::uint32_t vocab) {
  wmfast::RngState rng = wmfast::seed_rng(tokens * 65537 + vocab);
  const FrameCodec plain(type, tokens, vocab, Isa::kScalar);
  const std::vector<std::byte> frame = random_frame(rng, plain, tokens, vocab);
  std::vector<std::byte> expected(plain.stored_bytes());
  plain.pack(frame.data(), expected.data());
  for (const Isa isa : kPaths) {
    if (!wmfast::is_supported(isa)) continue;
    const FrameCodec codec(type, tokens, vocab, isa);
    CHECK(codec.stored_bytes() == plain.stored_bytes());
    CHECK(codec.largest(frame.data()) == plain.largest(frame.data()));
    // One guard byte before and 64 after whatever is written.
    std::vector<std::byte> stored(codec.stored_bytes() + 65, kGuard);
    codec.pack(frame.data(), &stored[1]);
    CHECK(std::equal(expected.begin(), expected.end(), stored.begin() + 1));
    CHECK(stored[0] == kGuard && all_guard(std::span(stored).subspan(1 + codec.stored_bytes())));
    // Read from a block of exactly the stored size: ASan sees a byte too many.
    std::vector<std::byte> one(codec.frame_bytes() + 65, kGuard), twin = one, other = one;
    codec.unpack(expected.data(), &one[2]);
    codec.unpack(expected.data(), &twin[2], &other[2]);
    CHECK(one == twin && one == other);
    CHECK(std::equal(frame.begin(), frame.end(), one.begin() + 2));
    CHECK(all_guard(std::span(one).first(2)));
    CHECK(all_guard(std::span(one).subspan(2 + codec.frame_bytes())));
  }
}

void rows_are_as_small_as_the_vocabulary_allows() {
  const auto stored = [](std::uint64_t vocab) {
    return FrameCodec(TokenType::kUint16, 336, vocab, Isa::kScalar).stored_bytes();
  };
  CHECK(stored(1) == 336 && stored(256) == 336);
  CHECK(stored(257) == 378 && stored(512) == 378);
  CHECK(stored(513) == 420 && stored(4096) == 336 + 4 * 42);
  CHECK(stored(4097) == 672 && stored(65536) == 672);
  CHECK(FrameCodec(TokenType::kUint8, 336, 512, Isa::kScalar).stored_bytes() == 336);
}

// One stream and seed on each path: the same draws, the same contents.
void buffers_are_alike_on_every_path(std::int64_t vocab) {
  std::vector<OwnedBatch> expected;
  for (const Isa isa : kPaths) {
    if (!wmfast::is_supported(isa)) continue;
    wmfast::TokenReplay replay(wmfast::ReplayOptions{.capacity = 300,
                                                     .num_envs = 3,
                                                     .frame_shape = {5, 9},
                                                     .vocab_size = vocab,
                                                     .n_step = 2,
                                                     .isa = isa});
    CHECK(replay.isa() == isa);
    wmfast::RngState rng = wmfast::seed_rng(2);
    std::vector<OwnedBatch> drawn;
    for (int t = 0; t < 250; ++t) {
      replay.add(random_step(rng, 3, 45, static_cast<std::uint32_t>(vocab), 0.03).view(false));
      if (replay.stats().drawable == 0) continue;
      OwnedBatch& batch = drawn.emplace_back(replay, 19);
      replay.sample(batch.view(), 0.6);
      std::vector<double> priority(19);
      for (double& value : priority) value = wmfast::next_unit(rng);
      replay.update_priorities(batch.index, priority);
    }
    if (isa == Isa::kScalar) expected = drawn;
    CHECK(drawn == expected);
  }
}

}  // namespace

int main() {
  for (std::size_t tokens = 1; tokens <= 100; ++tokens) {
    for (const std::uint32_t vocab : {2u, 256u, 257u, 512u, 700u, 2048u, 4096u, 4097u, 65536u}) {
      frames_come_back(TokenType::kUint16, tokens, vocab);
    }
    frames_come_back(TokenType::kUint8, tokens, 256);
  }
  frames_come_back(TokenType::kUint16, 336, 512);
  rows_are_as_small_as_the_vocabulary_allows();
  for (const std::int64_t vocab : {200, 512, 4096, 65536}) buffers_are_alike_on_every_path(vocab);
  return 0;
}
