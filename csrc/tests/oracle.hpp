// TokenReplay, slow and obvious: every episode whole in plain lists, every rule written once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

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

  // Every step before `step` is gone.
  void forget(std::size_t step) { forgotten_ = std::max(forgotten_, step); }

  // The frame of row (env, step), which is stored, final frames included.
  void rewrite(std::size_t env, std::size_t step, const Frame& frame) {
    auto& list = episodes_[env];
    auto found = list.rbegin();
    while (found->first > step) ++found;
    found->frames[step - found->first] = frame;
  }

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

  // Returns of other lengths and discounts from here on.
  void set_returns(std::int64_t n_step, double gamma) {
    options_.n_step = n_step;
    options_.gamma = gamma;
  }

  // Every row that can be drawn, by id; without the frames where only the ids are of interest.
  std::map<std::int64_t, Drawn> drawable(bool frames = true) const {
    std::map<std::int64_t, Drawn> rows;
    const auto kept = static_cast<std::size_t>(options_.capacity / options_.num_envs);
    const std::size_t oldest = std::max(steps_ > kept ? steps_ - kept : 0, forgotten_);
    for (std::size_t env = 0; env < episodes_.size(); ++env) {
      for (const Episode& episode : episodes_[env]) {
        if (episode.first + episode.frames.size() <= oldest) continue;  // all of it is gone
        for (std::size_t start = 0; start < episode.steps.size(); ++start) {
          const auto reach = static_cast<std::size_t>(options_.history - 1);
          if (episode.first + (start > reach ? start - reach : 0) < oldest) continue;
          Drawn drawn;
          if (!follow(episode, start, frames, drawn)) continue;
          const std::size_t id = (episode.first + start) * episodes_.size() + env;
          rows.emplace(static_cast<std::int64_t>(id), std::move(drawn));
        }
      }
    }
    return rows;
  }

 private:
  bool follow(const Episode& episode, std::size_t start, bool frames, Drawn& drawn) const {
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
    if (!frames) return true;
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
  std::size_t forgotten_ = 0;
  bool cut_ = false;
};

// Every drawn row is one of `rows`, word for word.
inline void check_rows(const OwnedBatch& batch, const std::map<std::int64_t, Drawn>& rows) {
  const std::size_t stack = batch.state.size() / batch.index.size();
  for (std::size_t i = 0; i < batch.index.size(); ++i) {
    const auto found = rows.find(batch.index[i]);
    CHECK(found != rows.end());
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
  }
}

// Draws twice as many rows as there are and checks each; the different ids among them.
inline std::set<std::int64_t> check_draws(wmfast::TokenReplay& replay,
                                          const std::map<std::int64_t, Drawn>& rows) {
  OwnedBatch batch(replay, rows.size() * 2);
  replay.sample(batch.view(), 0.4);
  check_rows(batch, rows);
  return {batch.index.begin(), batch.index.end()};
}
