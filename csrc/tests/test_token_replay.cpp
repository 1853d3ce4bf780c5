// TokenReplay against the slow oracle.
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "check.hpp"
#include "oracle.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

void compare(wmfast::TokenReplay& replay, const Oracle& oracle) {
  const auto rows = oracle.drawable();
  CHECK(replay.stats().drawable == rows.size());
  if (rows.empty()) {
    OwnedBatch batch(replay, 2);
    CHECK(contains(message_of<std::invalid_argument>([&] { replay.sample(batch.view(), 0.4); }),
                   "no row can be drawn"));
    return;
  }
  const auto seen = check_draws(replay, rows);
  // Stratified over equal priorities with two draws a row: every row comes up.
  if (replay.options().prioritized) CHECK(seen.size() == rows.size());
}

// Draws of fewer steps and another discount give what a buffer made for them would give.
void compare_shorter_returns(wmfast::TokenReplay& replay, const Oracle& oracle) {
  if (replay.stats().drawable == 0) return;
  OwnedBatch batch(replay, 16);
  for (std::int64_t n_step = 1; n_step <= replay.options().n_step; ++n_step) {
    for (const std::optional<double> gamma : {std::optional<double>{}, std::optional(0.7)}) {
      Oracle shorter = oracle;
      shorter.set_returns(n_step, gamma.value_or(replay.options().gamma));
      replay.sample(batch.view(), 0.4, {.n_step = n_step, .gamma = gamma});
      check_rows(batch, shorter.drawable());
    }
  }
  const std::int64_t n_step = replay.options().n_step;
  for (const std::int64_t bad : {std::int64_t{0}, n_step + 1}) {
    const auto draw = [&] { replay.sample(batch.view(), 0.4, {.n_step = bad, .gamma = {}}); };
    CHECK(contains(message_of<std::invalid_argument>(draw),
                   "n_step is " + std::to_string(bad) + ", allowed are 1 to this buffer's"));
  }
  for (const double bad : {-0.1, 1.1, std::nan("")}) {
    const auto draw = [&] { replay.sample(batch.view(), 0.4, {.n_step = {}, .gamma = bad}); };
    CHECK(contains(message_of<std::invalid_argument>(draw), "gamma is"));
  }
}

void random_streams_match_the_oracle(std::uint64_t seed) {
  wmfast::RngState rng = wmfast::seed_rng(seed);
  wmfast::ReplayOptions options;
  options.num_envs = 1 + wmfast::next_below(rng, 3);
  options.n_step = 1 + wmfast::next_below(rng, 4);
  options.history = 1 + wmfast::next_below(rng, 5);
  options.capacity = options.num_envs * (options.n_step + 1 + wmfast::next_below(rng, 20));
  options.frame_shape = {2, 2};
  options.vocab_size = 65536;
  options.gamma = 0.9;
  options.prioritized = wmfast::next_unit(rng) < 0.5;
  const bool same_step = wmfast::next_unit(rng) < 0.5;
  options.autoreset = same_step ? wmfast::Autoreset::kSameStep : wmfast::Autoreset::kNextStep;
  const double end_rate = wmfast::next_unit(rng) * 0.4;
  wmfast::TokenReplay replay(options);
  Oracle oracle(options);
  for (int t = 0; t < 60; ++t) {
    const OwnedStep step =
        random_step(rng, static_cast<std::size_t>(options.num_envs), 4, 65536, end_rate);
    replay.add(step.view(same_step));
    oracle.add(step);
    if (wmfast::next_unit(rng) < 0.05) {
      replay.cut();
      oracle.cut();
    }
    compare(replay, oracle);
    if (t % 10 == 9) compare_shorter_returns(replay, oracle);
  }
}

void ids_are_never_reused() {
  wmfast::TokenReplay replay(
      wmfast::ReplayOptions{.capacity = 20, .num_envs = 2, .frame_shape = {3}, .alpha = 1.0});
  wmfast::RngState rng = wmfast::seed_rng(3);
  for (int t = 0; t < 10; ++t) replay.add(random_step(rng, 2, 3, 512, 0.0).view(false));
  const std::vector<std::int64_t> ids{0, 5, 5, 9};
  CHECK(replay.update_priorities(ids, std::vector<double>{9.0, 1.0, 2.5, 0.0}) == 4);
  CHECK(replay.stats().priority_sum == 18.0 - 3.0 + 9.0 + 2.5);  // 18 rows of priority 1 before
  CHECK(replay.stats().max_priority == 9.0);
  for (int t = 0; t < 3; ++t) replay.add(random_step(rng, 2, 3, 512, 0.0).view(false));
  // Steps 0, 1, 2 are gone: ids 0 and 5 name nothing now, 9 is step 4 and has lost its history.
  CHECK(replay.update_priorities(ids, std::vector<double>(4, 1e6)) == 0);
  CHECK(replay.stats().max_priority == 9.0);
  CHECK(replay.stats().skipped == 4);
  const auto update = [&](std::int64_t id, double value) {
    return [&replay, id, value] {
      const std::vector<std::int64_t> pair{20, id};
      (void)replay.update_priorities(pair, std::vector<double>{123.0, value});
    };
  };
  CHECK(contains(message_of<std::out_of_range>(update(26, 1.0)), "index[1] is 26"));
  CHECK(contains(message_of<std::out_of_range>(update(-1, 1.0)), "index[1] is -1"));
  for (const double bad : {std::nan(""), HUGE_VAL, -1.0, 1.7e308}) {
    CHECK(contains(message_of<std::invalid_argument>(update(23, bad)), "priority[1]"));
  }
  CHECK(replay.stats().max_priority == 9.0);  // nothing of a refused call was applied
}

void refused_steps_change_nothing() {
  wmfast::TokenReplay replay(wmfast::ReplayOptions{.capacity = 20,
                                                   .num_envs = 2,
                                                   .frame_shape = {3},
                                                   .autoreset = wmfast::Autoreset::kSameStep});
  wmfast::RngState rng = wmfast::seed_rng(4);
  const OwnedStep good = random_step(rng, 2, 3, 512, 0.0);
  const auto refused = [&](const OwnedStep& step, bool finals, const char* part) {
    const auto add = [&] { replay.add(step.view(finals)); };
    CHECK(contains(message_of<std::invalid_argument>(add), part));
    CHECK(replay.size() == 0);
  };
  OwnedStep bad = good;
  bad.frames[4] = 512;
  refused(bad, false, "frames[env 1] has token 512 at position 1, allowed are 0 to 511");
  bad = good;
  bad.rewards[1] = HUGE_VALF;
  refused(bad, false, "rewards[env 1]");
  bad = good;
  bad.actions[0] = std::int64_t{1} << 40;
  refused(bad, false, "actions[env 0]");
  bad = good;
  bad.truncated[1] = 1;
  refused(bad, false, "final_frames[env 1] is missing");
  bad.final_frames[5] = 600;
  refused(bad, true, "final_frames[env 1] has token 600");
  bad = good;
  bad.final_frames[5] = 600;  // not read: no episode ended
  replay.add(bad.view(true));
  CHECK(replay.size() == 2);
}

void bad_options_are_named() {
  const auto message = [](wmfast::ReplayOptions options) {
    return message_of<std::exception>([&] { const wmfast::TokenReplay replay(options); });
  };
  using Options = wmfast::ReplayOptions;
  CHECK(contains(message(Options{.capacity = 100, .num_envs = 0}), "num_envs is 0"));
  CHECK(contains(message(Options{.capacity = 7, .num_envs = 8}), "capacity is 7"));
  CHECK(contains(message(Options{.capacity = 80, .num_envs = 8, .vocab_size = 70000}), "70000"));
  CHECK(contains(message(Options{.capacity = 80, .num_envs = 8, .history = 0}), "history is 0"));
  CHECK(contains(message(Options{.capacity = 80, .num_envs = 8, .gamma = 1.5}), "gamma is 1.5"));
  CHECK(contains(message(Options{.capacity = std::int64_t{1} << 62, .num_envs = 8}), "capacity"));
  CHECK(contains(message(Options{.capacity = 3000000000, .num_envs = 8}), "GiB of memory"));
}

}  // namespace

int main() {
  for (std::uint64_t seed = 0; seed < 300; ++seed) random_streams_match_the_oracle(seed);
  ids_are_never_reused();
  refused_steps_change_nothing();
  bad_options_are_named();
  return 0;
}
