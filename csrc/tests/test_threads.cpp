// One writer, samplers, an updater, a saver at once: every drawn row is whole. Run it under TSan.
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "check.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

constexpr std::size_t kEnvs = 3;
constexpr std::size_t kTokens = 16;
constexpr std::uint64_t kSteps = 20000;

// Every token of the frame tells the row it belongs to.
std::uint16_t token_of(std::uint64_t env, std::uint64_t step) {
  return static_cast<std::uint16_t>((step * kEnvs + env) % 65521);
}

void write_steps(wmfast::TokenReplay& replay) {
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    OwnedStep row;
    for (std::uint64_t env = 0; env < kEnvs; ++env) {
      row.frames.insert(row.frames.end(), kTokens, token_of(env, step));
    }
    row.actions.assign(kEnvs, static_cast<std::int64_t>(step));
    row.rewards.assign(kEnvs, 0.0f);
    row.terminated.assign(kEnvs, step % 50 == 49 ? 1 : 0);
    row.truncated.assign(kEnvs, 0);
    row.life_lost.assign(kEnvs, 0);
    replay.add(row.view(false));
  }
}

void draw(wmfast::TokenReplay& replay, const std::atomic<bool>& done) {
  OwnedBatch batch(replay, 16);
  while (!done.load()) {
    if (replay.stats().drawable == 0) continue;
    replay.sample(batch.view(), 0.4);
    for (std::size_t i = 0; i < 16; ++i) {
      const auto id = static_cast<std::uint64_t>(batch.index[i]);
      CHECK(static_cast<std::uint64_t>(batch.action[i]) == id / kEnvs);
      for (std::size_t token = 0; token < kTokens; ++token) {
        CHECK(batch.state[(i * 4 + 3) * kTokens + token] == token_of(id % kEnvs, id / kEnvs));
        CHECK(batch.next_state[(i * 4 + 3) * kTokens + token] ==
              token_of(id % kEnvs, id / kEnvs + 1));
      }
    }
    replay.update_priorities(batch.index, std::vector<double>(16, 2.0));
  }
}

}  // namespace

int main() {
  wmfast::TokenReplay replay(wmfast::ReplayOptions{
      .capacity = 600, .num_envs = kEnvs, .frame_shape = {kTokens}, .vocab_size = 65536});
  const auto path =
      std::filesystem::temp_directory_path() / ("wmfast_threads_" + std::to_string(::getpid()));
  std::atomic<bool> done = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) threads.emplace_back([&] { draw(replay, done); });
  threads.emplace_back([&] {
    while (!done.load()) {
      replay.save(path);
      const auto loaded = wmfast::TokenReplay::load(path);
      CHECK(loaded->size() <= replay.size());
    }
  });
  write_steps(replay);
  done.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(replay.stats().added == kSteps * kEnvs);
  CHECK(replay.stats().sampled > 0);
  std::filesystem::remove(path);
  return 0;
}
