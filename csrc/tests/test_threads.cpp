// One writer and everything else at once: every row that comes out is whole and belongs to its id.
// Run it under TSan and ASan.
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>
#include <vector>

#include "check.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kEnvs = 3;
constexpr std::size_t kTokens = 16;
constexpr std::size_t kHistory = 4;
constexpr std::size_t kBatch = 16;
constexpr std::uint64_t kKept = 200;
constexpr std::uint64_t kEpisode = 50;

// Every token of a frame tells the row it belongs to, a final frame's the row it follows.
constexpr std::uint16_t token_of(std::uint64_t env, std::uint64_t step) {
  return static_cast<std::uint16_t>((step * kEnvs + env) % 32749);
}
constexpr std::uint16_t final_token_of(std::uint64_t env, std::uint64_t step) {
  return static_cast<std::uint16_t>(32768 + token_of(env, step));
}
constexpr float reward_of(std::uint64_t env, std::uint64_t step) {
  return static_cast<float>((step * kEnvs + env) % 1021);
}

struct Setting {
  bool same_step, prioritized, mapped;
};

// Ends of episodes: at the last step of each `kEpisode`, truncated in env 1. With next_step resets
// the final frame is the row after, the first of the next `kEpisode`.
bool ends(std::uint64_t step) { return step % kEpisode == kEpisode - 1; }

void write_steps(wmfast::TokenReplay& replay, bool same_step, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (std::uint64_t step = 0; step < 4 * kKept || std::chrono::steady_clock::now() < end; ++step) {
    OwnedStep row;
    for (std::uint64_t env = 0; env < kEnvs; ++env) {
      row.frames.insert(row.frames.end(), kTokens, token_of(env, step));
      row.final_frames.insert(row.final_frames.end(), kTokens, final_token_of(env, step));
      row.actions.push_back(static_cast<std::int64_t>(step));
      row.rewards.push_back(reward_of(env, step));
      row.terminated.push_back(ends(step) && env != 1 ? 1 : 0);
      row.truncated.push_back(ends(step) && env == 1 ? 1 : 0);
    }
    replay.add(row.view(same_step));
  }
}

// The frames of a history that ends at `last`, the token of which is `newest`.
void check_history(std::span<const std::uint16_t> stack, std::uint64_t env, std::uint64_t last,
                   std::uint64_t first, std::uint16_t newest) {
  for (std::size_t lag = 0; lag < kHistory; ++lag) {
    const std::uint64_t step = last >= first + lag ? last - lag : first;
    const std::uint16_t want = lag == 0 ? newest : token_of(env, step);
    const auto frame = stack.subspan((kHistory - 1 - lag) * kTokens, kTokens);
    for (const std::uint16_t token : frame) CHECK(token == want);
  }
}

void check_batch(const OwnedBatch& batch, const Setting& setting) {
  for (std::size_t i = 0; i < batch.index.size(); ++i) {
    const auto id = static_cast<std::uint64_t>(batch.index[i]);
    const std::uint64_t env = id % kEnvs, step = id / kEnvs;
    // With next_step resets episodes begin one row later, but for the very first.
    const std::uint64_t shift = setting.same_step || step < kEpisode ? 0 : 1;
    const std::uint64_t first = (step - shift) / kEpisode * kEpisode + shift;
    CHECK(setting.same_step || step == 0 || !ends(step - 1));  // a final frame is no start
    CHECK(batch.action[i] == static_cast<std::int64_t>(step));
    CHECK(batch.reward[i] == reward_of(env, step));
    CHECK((batch.discount[i] == 0.0f) == (ends(step) && env != 1));
    CHECK(batch.weight[i] > 0.0f && batch.weight[i] <= 1.0f);
    const std::size_t size = kHistory * kTokens;
    check_history(std::span(batch.state).subspan(i * size, size), env, step, first,
                  token_of(env, step));
    const bool given = setting.same_step && ends(step);
    check_history(std::span(batch.next_state).subspan(i * size, size), env, step + 1, first,
                  given ? final_token_of(env, step) : token_of(env, step + 1));
  }
}

void draw(wmfast::TokenReplay& replay, const Setting& setting, std::uint64_t seed) {
  OwnedBatch batch(replay, kBatch);
  replay.sample(batch.view(), 0.4);
  check_batch(batch, setting);
  if (!setting.prioritized) return;
  wmfast::RngState rng = wmfast::seed_rng(seed);
  std::vector<double> priority(kBatch);
  for (double& value : priority) value = 0.1 + wmfast::next_unit(rng);
  const std::int64_t applied = replay.update_priorities(batch.index, priority);
  CHECK(applied >= 0 && applied <= static_cast<std::int64_t>(kBatch));
}

void draw_sequences(wmfast::TokenReplay& replay) {
  constexpr std::size_t kLength = 6;
  std::vector<std::uint16_t> tokens(kBatch * (kHistory + kLength) * kTokens);
  std::vector<std::int64_t> action(kBatch * kLength);
  std::vector<float> reward(action.size());
  std::vector<std::uint8_t> terminated(action.size()), mask(action.size());
  replay.sample_sequences({.length = kLength,
                           .tokens = tokens,
                           .action = action,
                           .reward = reward,
                           .terminated = terminated,
                           .mask = mask,
                           .life_lost = {}},
                          wmfast::Recent{300, 0.5});
  for (std::size_t i = 0; i < kBatch; ++i) {
    const auto token = [&](std::size_t at) {
      return tokens[(i * (kHistory + kLength) + at) * kTokens];
    };
    const auto start = static_cast<std::uint64_t>(action[i * kLength]);
    const std::uint64_t env = (token(kHistory - 1) + 32749 * 3 - start * kEnvs % 32749) % 32749;
    CHECK(env < kEnvs);
    for (std::size_t at = 0; at < kLength && mask[i * kLength + at] != 0; ++at) {
      const std::uint64_t step = start + at;
      CHECK(action[i * kLength + at] == static_cast<std::int64_t>(step));
      CHECK(reward[i * kLength + at] == reward_of(env, step));
      CHECK((terminated[i * kLength + at] != 0) == (ends(step) && env != 1));
      const std::uint16_t next = token(kHistory + at);
      CHECK(next == token_of(env, step + 1) || (ends(step) && next == final_token_of(env, step)));
    }
    for (std::size_t at = 0; at < kHistory + kLength; ++at) {
      for (std::size_t k = 1; k < kTokens; ++k) {
        CHECK(tokens[(i * (kHistory + kLength) + at) * kTokens + k] == token(at));
      }
    }
  }
}

void save_and_load(wmfast::TokenReplay& replay, const Setting& setting, const fs::path& path) {
  const wmfast::ReplayStats before = replay.stats();
  replay.save(path);
  const auto loaded = wmfast::TokenReplay::load(path);
  CHECK(loaded->stats().added >= before.added && loaded->stats().added <= replay.stats().added);
  OwnedBatch batch(*loaded, kBatch);
  loaded->sample(batch.view(), 0.4);
  check_batch(batch, setting);
}

void look(wmfast::TokenReplay& replay) {
  const wmfast::ReplayStats stats = replay.stats();
  CHECK(stats.added % kEnvs == 0);
  CHECK(stats.stored == std::min(stats.added, kKept * kEnvs));
  CHECK(stats.drawable <= stats.stored);
  CHECK(replay.size() % static_cast<std::int64_t>(kEnvs) == 0);
  CHECK(replay.nbytes() > 0);
}

void everything_at_once(const Setting& setting, const fs::path& folder, double seconds) {
  wmfast::TokenReplay replay(
      {.capacity = kKept * kEnvs,
       .num_envs = kEnvs,
       .frame_shape = {kTokens},
       .vocab_size = 65536,
       .history = kHistory,
       .prioritized = setting.prioritized,
       .autoreset = setting.same_step ? wmfast::Autoreset::kSameStep : wmfast::Autoreset::kNextStep,
       .path = setting.mapped ? folder / "store" : fs::path()});
  std::atomic<bool> done = false;
  std::array<std::atomic<std::uint64_t>, 6> rounds{};
  std::vector<std::thread> threads;
  const auto loop = [&](std::size_t job, auto work) {
    threads.emplace_back([&, job, work] {
      while (!done.load()) {
        if (replay.stats().drawable < kKept) continue;  // all but the newest steps can be drawn
        work();
        ++rounds[job];
      }
    });
  };
  for (std::size_t job = 0; job < 2; ++job) {
    loop(job, [&, job] { draw(replay, setting, 10 * rounds[job] + job); });
  }
  loop(2, [&] { draw_sequences(replay); });
  loop(3, [&] { save_and_load(replay, setting, folder / "snapshot"); });
  loop(4, [&] { look(replay); });
  loop(5, [&] {
    if (setting.prioritized) {  // ids that are long gone, and some that are not
      const std::vector<std::int64_t> index{0, 1, 2, 100, 101};
      replay.update_priorities(index, std::vector<double>(index.size(), 0.5));
    }
  });
  write_steps(replay, setting.same_step, seconds);
  for (const auto& count : rounds) {  // on a busy machine some thread may not have run yet
    while (count.load() < 3) std::this_thread::yield();
  }
  done.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(replay.stats().added >= 4 * kKept * kEnvs);
  draw(replay, setting, 1);
}

}  // namespace

int main() {
  const fs::path folder =
      fs::temp_directory_path() / ("wmfast_threads_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  everything_at_once({.same_step = false, .prioritized = true, .mapped = false}, folder, 1.5);
  everything_at_once({.same_step = true, .prioritized = true, .mapped = true}, folder, 1.5);
  everything_at_once({.same_step = true, .prioritized = false, .mapped = false}, folder, 1.0);
  fs::remove_all(folder);
  return 0;
}
