// A mapped store after a kill at any instruction of any call.
//
// The processor's single-step flag raises SIGTRAP after every instruction. The handler notes which
// words of the store's file have changed since the instruction before: the file as a kill at that
// instruction would leave it. Each such file is then opened, compared with the stream, and used.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "check.hpp"
#include "oracle.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kEnvs = 2;
constexpr std::size_t kTokens = 3;
constexpr std::size_t kMaxWords = 1 << 16;  // of the file
constexpr std::size_t kMaxChanges = 1 << 16;

struct Change {
  std::uint64_t instruction;
  std::uint64_t word;
  std::uint64_t value;
};

// What the handler works on; it must not allocate.
const volatile std::uint64_t* g_file = nullptr;
std::size_t g_words = 0;
std::uint64_t g_last[kMaxWords];
Change g_changes[kMaxChanges];
volatile std::size_t g_change_count = 0;
volatile std::uint64_t g_instructions = 0;

void note_changes(int) {
  g_instructions = g_instructions + 1;
  for (std::size_t word = 0; word < g_words; ++word) {
    const std::uint64_t value = g_file[word];
    if (value == g_last[word]) continue;
    g_last[word] = value;
    if (g_change_count == kMaxChanges) ::_exit(3);
    g_changes[g_change_count] = {g_instructions, word, value};
    g_change_count = g_change_count + 1;
  }
}

constexpr unsigned long long kSingleStep = 0x100;

// Every state in which `call` leaves the file at `path`, the one before it first.
template <typename Call>
std::vector<std::vector<std::uint64_t>> states_during(const fs::path& path, Call call) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  CHECK(descriptor >= 0);
  const std::size_t bytes = fs::file_size(path);
  g_words = bytes / sizeof(std::uint64_t);
  CHECK(g_words <= kMaxWords);
  void* const base = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  CHECK(base != MAP_FAILED);
  g_file = static_cast<const std::uint64_t*>(base);
  std::memcpy(g_last, base, bytes);
  std::vector<std::vector<std::uint64_t>> states{{g_last, g_last + g_words}};
  g_change_count = 0;
  __writeeflags(__readeflags() | kSingleStep);
  call();
  __writeeflags(__readeflags() & ~kSingleStep);
  ::munmap(base, bytes);
  ::close(descriptor);
  for (std::size_t i = 0; i < g_change_count; ++i) {
    if (i == 0 || g_changes[i].instruction != g_changes[i - 1].instruction) {
      states.push_back(states.back());
    }
    states.back()[g_changes[i].word] = g_changes[i].value;
  }
  return states;
}

wmfast::ReplayOptions options_with(bool same_step, const fs::path& path) {
  return {.capacity = 12,
          .num_envs = kEnvs,
          .frame_shape = {kTokens},
          .history = 3,
          .n_step = 2,
          .gamma = 0.9,
          .seed = 5,
          .autoreset = same_step ? wmfast::Autoreset::kSameStep : wmfast::Autoreset::kNextStep,
          .path = path};
}

// The steps as every process would see them again.
OwnedStep step_of(std::uint64_t t) {
  wmfast::RngState rng = wmfast::seed_rng(100 + t);
  return random_step(rng, kEnvs, kTokens, 512, 0.15);
}

// The oracle before and after the call that was cut short; `done`: steps added before it.
struct Moment {
  Oracle before, after;
  std::uint64_t done;
  bool either = false;  // the call adds nothing: its rows are all those of before, or all of after
};

// Whether exactly the oracle's rows can be drawn, with its frames.
bool holds_rows_of(const wmfast::TokenReplay& replay, const Oracle& oracle) {
  const auto rows = oracle.drawable();
  if (replay.stats().drawable != rows.size()) return false;
  for (const auto& [id, want] : rows) {
    OwnedBatch batch(replay, 1);
    replay.get(std::vector<std::int64_t>{id}, batch.view());
    if (batch.state != want.state || batch.next_state != want.next_state) return false;
  }
  return true;
}

bool commits_are_whole(const fs::path& path) {
  wmfast::ReplayHeader header;
  std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(&header), sizeof(header));
  return header.steps_check == wmfast::check_of_steps(header.steps);
}

void check_state(const std::vector<std::uint64_t>& state, const Moment& moment, bool same_step,
                 const fs::path& path, bool go_on) {
  fs::remove(path);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(state.data()),
             static_cast<std::streamsize>(state.size() * sizeof(state[0])));
  wmfast::TokenReplay replay(options_with(same_step, path));
  CHECK(commits_are_whole(path));  // another kill in the next commit must find one step behind
  const std::uint64_t steps = replay.stats().added / kEnvs;
  CHECK(steps == moment.done || steps == moment.done + 1);
  std::vector<Oracle> possible;  // a rewritten frame may not show until its row can be drawn
  if (moment.either) {
    for (const Oracle& oracle : {moment.before, moment.after}) {
      if (holds_rows_of(replay, oracle)) possible.push_back(oracle);
    }
    CHECK(steps == moment.done && !possible.empty());
  } else {
    possible.push_back(steps == moment.done ? moment.before : moment.after);
    auto rows = moment.after.drawable();
    if (steps == moment.done) {
      // A cut under way may already have let rows before it be drawn, as the step after it would.
      const auto sure = moment.before.drawable();
      CHECK(replay.stats().drawable >= sure.size());
      rows.insert(sure.begin(), sure.end());
    } else {
      CHECK(replay.stats().drawable == rows.size());
    }
    if (replay.stats().drawable > 0) check_draws(replay, rows);
  }
  if (!go_on) return;
  wmfast::ReplayHeader header;
  std::memcpy(&header, state.data(), sizeof(header));
  if (header.cut_at == steps) {
    for (Oracle& oracle : possible) oracle.cut();  // the call was the cut, and got that far
  }
  for (std::uint64_t t = steps; t < steps + 8; ++t) {
    const OwnedStep step = step_of(t);
    replay.add(step.view(same_step));
    for (Oracle& oracle : possible) oracle.add(step);
    std::erase_if(possible, [&](const Oracle& oracle) { return !holds_rows_of(replay, oracle); });
    CHECK(!possible.empty());
    const auto now = possible.front().drawable();
    if (!now.empty()) check_draws(replay, now);
  }
}

// Rows rewritten, one of them twice, then the oldest forgotten. A kill leaves each row old or new.
template <typename Check>
void check_moved_tokens(wmfast::TokenReplay& replay, Oracle& oracle, Moment& moment,
                        const fs::path& path, bool same_step, const Check& check) {
  const std::uint64_t steps = moment.done;
  const std::uint64_t oldest = (replay.stats().added - replay.stats().stored) / kEnvs;
  if (!same_step) {
    for (const std::uint64_t back : {1u, 3u, 1u}) {
      if (steps - oldest < back) continue;
      const std::uint64_t step = steps - back, env = (steps + back) % kEnvs;
      const Frame frame(kTokens, static_cast<std::uint16_t>(300 + steps + back));
      const std::vector<std::int64_t> index{static_cast<std::int64_t>(step * kEnvs + env)};
      moment.before = oracle;
      oracle.rewrite(env, step, frame);
      moment.after = oracle;
      moment.either = true;
      check(states_during(path, [&] { CHECK(replay.rewrite(index, frame) == 1); }), moment);
    }
  }
  const std::uint64_t first = oldest + 1 + steps % 2;
  if (first < steps) {
    moment.before = oracle;
    oracle.forget(first);
    moment.after = oracle;
    moment.either = true;
    check(states_during(path,
                        [&] {
                          const auto before = static_cast<std::int64_t>(first * kEnvs);
                          CHECK(replay.forget(before) > 0);
                        }),
          moment);
  }
  moment = {oracle, oracle, steps};
}

std::size_t a_kill_loses_at_most_the_step_under_way(const fs::path& folder, bool same_step) {
  const fs::path path = folder / "store", copy = folder / "copy";
  fs::remove(path);
  auto replay = std::make_unique<wmfast::TokenReplay>(options_with(same_step, path));
  Oracle oracle(options_with(same_step, {}));
  std::size_t checked = 0;
  const auto check = [&](const auto& states, const Moment& moment) {
    for (const auto& state : states) {
      check_state(state, moment, same_step, copy, ++checked % 5 == 0);
    }
  };
  for (std::uint64_t t = 0; t < 24; ++t) {
    const OwnedStep step = step_of(t);
    Moment moment{oracle, oracle, t};
    if (t % 5 == 3) {
      check(states_during(path, [&] { replay->cut(); }), moment);
      moment.before.cut();
      oracle.cut();
    }
    oracle.add(step);
    moment.after = oracle;
    check(states_during(path, [&] { replay->add(step.view(same_step)); }), moment);

    moment = {oracle, oracle, t + 1};
    if (t % 6 == 5) {
      OwnedBatch batch(*replay, 4);
      check(states_during(path, [&] { replay->sample(batch.view(), 0.4); }), moment);
      const std::vector<double> priority{2.0, 0.5, 4.0, 3.0};
      check(states_during(path, [&] { replay->update_priorities(batch.index, priority); }), moment);
    }
    if (t % 4 == 2) check_moved_tokens(*replay, oracle, moment, path, same_step, check);
    if (t == 15) {
      replay.reset();
      check(states_during(path,
                          [&] {
                            replay = std::make_unique<wmfast::TokenReplay>(
                                options_with(same_step, path));
                          }),
            moment);
    }
  }
  return checked;
}

}  // namespace

int main() {
  struct sigaction action{};
  action.sa_handler = &note_changes;
  CHECK(::sigaction(SIGTRAP, &action, nullptr) == 0);
  const fs::path folder = fs::temp_directory_path() / ("wmfast_kill_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  std::size_t checked = 0;
  for (const bool same_step : {false, true}) {
    checked += a_kill_loses_at_most_the_step_under_way(folder, same_step);
  }
  fs::remove_all(folder);
  std::printf("%zu states of the file after %llu instructions\n", checked,
              static_cast<unsigned long long>(g_instructions));
  CHECK(g_instructions > 50000 && checked > 1000);
  return 0;
}
