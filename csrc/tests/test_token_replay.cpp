// TokenReplay against a slow oracle that keeps every episode whole in plain lists.
#include <cmath>
#include <map>
#include <vector>

#include "check.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

using Frame = std::vector<std::uint16_t>;

struct Step {
  std::int64_t action;
  float reward;
  bool terminated, truncated, life_lost;
};

struct Episode {
  std::size_t first = 0;      // number of its first step
  std::vector<Frame> frames;  // one a step, and the final one once it is known
  std::vector<Step> steps;
  bool over = false;
};

struct Drawn {
  Frame state, next_state;
  std::int64_t action = 0;
  double reward = 0.0, discount = 0.0;
};

class Oracle {
 public:
  explicit Oracle(const wmfast::ReplayOptions& options)
      : options_(options), episodes_(static_cast<std::size_t>(options.num_envs)) {}

  void cut() { cut_ = true; }

  void add(const OwnedStep& step) {
    const bool same = options_.autoreset == wmfast::Autoreset::kSameStep;
    const std::size_t tokens = step.frames.size() / episodes_.size();
    for (std::size_t env = 0; env < episodes_.size(); ++env) {
      const auto frame_of = [&](const std::vector<std::uint16_t>& frames) {
        const auto begin = frames.begin() + static_cast<std::ptrdiff_t>(env * tokens);
        return Frame(begin, begin + static_cast<std::ptrdiff_t>(tokens));
      };
      auto& list = episodes_[env];
      if (cut_ && !list.empty() && !list.back().over) {
        Episode& last = list.back();
        last.over = true;
        last.steps.pop_back();  // the newest row is only a final frame from now on
        if (!last.steps.empty()) last.steps.back().truncated = true;
      } else if (!list.empty() && !list.back().over &&
                 (list.back().steps.back().terminated || list.back().steps.back().truncated)) {
        list.back().frames.push_back(frame_of(step.frames));
        list.back().over = true;
        continue;
      }
      if (list.empty() || list.back().over) {
        list.emplace_back();
        list.back().first = steps_;
      }
      Episode& now = list.back();
      now.frames.push_back(frame_of(step.frames));
      now.steps.push_back({step.actions[env], step.rewards[env], step.terminated[env] != 0,
                           step.truncated[env] != 0, step.life_lost[env] != 0});
      if (same && (now.steps.back().terminated || now.steps.back().truncated)) {
        now.frames.push_back(frame_of(step.final_frames));
        now.over = true;
      }
    }
    ++steps_;
    cut_ = false;
  }

  // Every row that can be drawn, by id.
  std::map<std::int64_t, Drawn> drawable() const {
    std::map<std::int64_t, Drawn> rows;
    const auto kept = static_cast<std::size_t>(options_.capacity / options_.num_envs);
    const std::size_t oldest = steps_ > kept ? steps_ - kept : 0;
    for (std::size_t env = 0; env < episodes_.size(); ++env) {
      for (const Episode& episode : episodes_[env]) {
        for (std::size_t start = 0; start < episode.steps.size(); ++start) {
          const auto reach = static_cast<std::size_t>(options_.history - 1);
          if (episode.first + (start > reach ? start - reach : 0) < oldest) continue;
          Drawn drawn;
          if (!follow(episode, start, drawn)) continue;
          rows[static_cast<std::int64_t>((episode.first + start) * episodes_.size() + env)] = drawn;
        }
      }
    }
    return rows;
  }

 private:
  bool follow(const Episode& episode, std::size_t start, Drawn& drawn) const {
    std::size_t at = start;
    for (std::int64_t k = 0; k < options_.n_step; ++k, ++at) {
      if (at >= episode.steps.size() || at + 1 >= episode.frames.size()) return false;
      const Step& step = episode.steps[at];
      drawn.reward += std::pow(options_.gamma, k) * static_cast<double>(step.reward);
      drawn.discount = step.terminated || step.life_lost ? 0.0 : std::pow(options_.gamma, k + 1);
      if (step.terminated || step.truncated || step.life_lost) {
        ++at;
        break;
      }
    }
    drawn.action = episode.steps[start].action;
    drawn.state = stack(episode, start);
    drawn.next_state = stack(episode, at);
    return true;
  }

  Frame stack(const Episode& episode, std::size_t at) const {
    Frame frames;
    for (std::int64_t back = options_.history - 1; back >= 0; --back) {
      const auto lag = static_cast<std::size_t>(back);
      const Frame& frame = episode.frames[at > lag ? at - lag : 0];
      frames.insert(frames.end(), frame.begin(), frame.end());
    }
    return frames;
  }

  wmfast::ReplayOptions options_;
  std::vector<std::vector<Episode>> episodes_;
  std::size_t steps_ = 0;
  bool cut_ = false;
};

void compare(wmfast::TokenReplay& replay, const Oracle& oracle) {
  const auto rows = oracle.drawable();
  CHECK(replay.stats().drawable == rows.size());
  if (rows.empty()) {
    OwnedBatch batch(replay, 2);
    CHECK(contains(message_of<std::invalid_argument>([&] { replay.sample(batch.view(), 0.4); }),
                   "no row can be drawn"));
    return;
  }
  OwnedBatch batch(replay, rows.size() * 2);
  replay.sample(batch.view(), 0.4);
  const std::size_t stack = batch.state.size() / batch.index.size();
  std::map<std::int64_t, int> seen;
  for (std::size_t i = 0; i < batch.index.size(); ++i) {
    const auto found = rows.find(batch.index[i]);
    CHECK(found != rows.end());
    ++seen[batch.index[i]];
    const Drawn& want = found->second;
    const auto part = [&](const std::vector<std::uint16_t>& all) {
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(i * stack);
      return Frame(begin, begin + static_cast<std::ptrdiff_t>(stack));
    };
    CHECK(part(batch.state) == want.state);
    CHECK(part(batch.next_state) == want.next_state);
    CHECK(batch.action[i] == want.action);
    CHECK(std::abs(static_cast<double>(batch.reward[i]) - want.reward) < 1e-5);
    CHECK(std::abs(static_cast<double>(batch.discount[i]) - want.discount) < 1e-6);
    CHECK(batch.weight[i] == 1.0f);
  }
  // Stratified over equal priorities with two draws a row: every row comes up.
  if (replay.options().prioritized) CHECK(seen.size() == rows.size());
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
