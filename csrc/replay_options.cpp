#include "replay_options.hpp"

#include <cmath>
#include <limits>
#include <string>

namespace wmfast {
namespace {

// Row counts of the trees are 32 bits wide.
constexpr double kMaxRows = 4.0e9;
constexpr std::int64_t kMaxTokens = 1 << 20;

void require_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                              ", allowed are " + std::to_string(low) + " to " +
                              std::to_string(high));
}

void require_finite(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                              ", allowed are " + std::to_string(low) + " to " +
                              std::to_string(high));
}

}  // namespace

ReplayHeader header_of(const ReplayOptions& options) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  require_range("num_envs", options.num_envs, 1, 1 << 20);
  require_range("n_step", options.n_step, 1, 1 << 16);
  require_range("history", options.history, 1, 255);
  require_range("vocab_size", options.vocab_size, 1, 65536);
  require_finite("gamma", options.gamma, 0.0, 1.0);
  require_finite("alpha", options.alpha, 0.0, 100.0);
  require_range("len(frame_shape)", static_cast<std::int64_t>(options.frame_shape.size()), 1, 4);
  std::int64_t tokens = 1;
  for (const std::int64_t axis : options.frame_shape) {
    require_range("frame_shape", axis, 1, kMaxTokens);
    tokens *= axis;
    require_range("the product of frame_shape", tokens, 1, kMaxTokens);
  }
  require_range("capacity", options.capacity, 1, kMax);
  if (options.capacity / options.num_envs < options.n_step + 1) {
    throw std::invalid_argument("capacity is " + std::to_string(options.capacity) +
                                ", too small: " + std::to_string(options.num_envs) +
                                " envs need n_step + 1 = " + std::to_string(options.n_step + 1) +
                                " steps each");
  }
  if (static_cast<double>(options.capacity) > kMaxRows) {
    throw OutOfMemory("capacity is " + std::to_string(options.capacity) +
                      ": its frames alone need " +
                      std::to_string(static_cast<double>(options.capacity) *
                                     static_cast<double>(tokens) * 2.0 / 1e9) +
                      " GB, allowed are at most 4000000000 steps");
  }
  ReplayHeader header{};
  header.magic = kLiveMagic;
  header.version = kLiveVersion;
  header.num_envs = static_cast<std::uint64_t>(options.num_envs);
  header.kept = static_cast<std::uint64_t>(options.capacity / options.num_envs);
  header.frame_rank = options.frame_shape.size();
  for (std::size_t axis = 0; axis < options.frame_shape.size(); ++axis) {
    header.frame_shape[axis] = static_cast<std::uint64_t>(options.frame_shape[axis]);
  }
  header.vocab_size = static_cast<std::uint64_t>(options.vocab_size);
  header.history = static_cast<std::uint64_t>(options.history);
  header.n_step = static_cast<std::uint64_t>(options.n_step);
  header.gamma = options.gamma;
  header.prioritized = options.prioritized ? 1 : 0;
  header.alpha = options.alpha;
  header.seed = options.seed;
  header.same_step = options.autoreset == Autoreset::kSameStep ? 1 : 0;
  header.sign_rewards = options.reward_transform == RewardTransform::kSign ? 1 : 0;
  header.token_bytes = options.dtype == TokenType::kUint8 ? 1 : 2;
  header.fixed_check = header.check_of_fixed();
  header.steps_check = check_of_steps(0);
  header.cut_at = std::numeric_limits<std::uint64_t>::max();
  header.max_priority = 1.0;
  header.rng = seed_rng(options.seed);
  return header;
}

ReplayOptions options_of(const ReplayHeader& header) {
  ReplayOptions options;
  options.capacity = static_cast<std::int64_t>(header.kept * header.num_envs);
  options.num_envs = static_cast<std::int64_t>(header.num_envs);
  options.frame_shape.clear();
  for (std::uint64_t axis = 0; axis < header.frame_rank; ++axis) {
    options.frame_shape.push_back(static_cast<std::int64_t>(header.frame_shape[axis]));
  }
  options.vocab_size = static_cast<std::int64_t>(header.vocab_size);
  options.history = static_cast<std::int64_t>(header.history);
  options.n_step = static_cast<std::int64_t>(header.n_step);
  options.gamma = header.gamma;
  options.prioritized = header.prioritized != 0;
  options.alpha = header.alpha;
  options.seed = header.seed;
  options.autoreset = header.same_step ? Autoreset::kSameStep : Autoreset::kNextStep;
  options.dtype = header.token_bytes == 1 ? TokenType::kUint8 : TokenType::kUint16;
  options.reward_transform = header.sign_rewards ? RewardTransform::kSign : RewardTransform::kNone;
  return options;
}

void fill_powers(std::span<double> powers, double gamma) {
  double power = 1.0;
  for (double& value : powers) {
    value = power;
    power *= gamma;
  }
}

}  // namespace wmfast
