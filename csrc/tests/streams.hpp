// Random streams of a vector env for the tests, and batches with memory of their own.
#pragma once

#include <cstdint>
#include <vector>

#include "wmfast/rng.hpp"
#include "wmfast/token_replay.hpp"

// One step of every env with its memory.
struct OwnedStep {
  std::vector<std::uint16_t> frames, final_frames;
  std::vector<std::int64_t> actions;
  std::vector<float> rewards;
  std::vector<std::uint8_t> terminated, truncated, life_lost;

  wmfast::StepInput view(bool same_step) const {
    wmfast::StepInput step{.frames = frames,
                           .actions = actions,
                           .rewards = rewards,
                           .terminated = terminated,
                           .truncated = truncated,
                           .life_lost = life_lost,
                           .final_frames = {}};
    if (same_step) step.final_frames = final_frames;
    return step;
  }
};

inline OwnedStep random_step(wmfast::RngState& rng, std::size_t envs, std::size_t tokens,
                             std::uint32_t vocab, double end_rate) {
  OwnedStep step;
  for (std::size_t i = 0; i < envs * tokens; ++i) {
    step.frames.push_back(static_cast<std::uint16_t>(wmfast::next_below(rng, vocab)));
    step.final_frames.push_back(static_cast<std::uint16_t>(wmfast::next_below(rng, vocab)));
  }
  const auto coin = [&rng](double rate) {
    return static_cast<std::uint8_t>(wmfast::next_unit(rng) < rate ? 1 : 0);
  };
  for (std::size_t env = 0; env < envs; ++env) {
    step.actions.push_back(wmfast::next_below(rng, 18));
    step.rewards.push_back(static_cast<float>(wmfast::next_unit(rng) - 0.5));
    step.terminated.push_back(coin(end_rate));
    step.truncated.push_back(coin(end_rate));
    step.life_lost.push_back(coin(0.1));
  }
  return step;
}

// A batch of transitions with its memory.
struct OwnedBatch {
  std::vector<std::uint16_t> state, next_state;
  std::vector<std::int64_t> action, index;
  std::vector<float> reward, discount, weight;

  OwnedBatch(const wmfast::TokenReplay& replay, std::size_t size) {
    const auto history = static_cast<std::size_t>(replay.options().history);
    state.resize(size * history * replay.frame_tokens());
    next_state.resize(state.size());
    action.resize(size);
    index.resize(size);
    reward.resize(size);
    discount.resize(size);
    weight.resize(size);
  }

  wmfast::TransitionOutput view() {
    return {.state = state,
            .next_state = next_state,
            .window = {},
            .action = action,
            .reward = reward,
            .discount = discount,
            .weight = weight,
            .index = index};
  }

  bool operator==(const OwnedBatch&) const = default;
};
