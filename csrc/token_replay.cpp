// TokenReplay: construction, adding steps, counts.
#include "wmfast/token_replay.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "replay_options.hpp"

namespace wmfast {
namespace {

RowStore make_store(const ReplayOptions& options, Isa isa) {
  const ReplayHeader header = header_of(options);
  return options.path.empty() ? RowStore(header, isa) : RowStore(options.path, header, isa);
}

ReplayOptions whole_capacity(ReplayOptions options) {
  if (options.num_envs > 0) options.capacity -= options.capacity % options.num_envs;
  return options;
}

std::uint8_t one_more(std::uint8_t since) {
  return since == 255 ? since : static_cast<std::uint8_t>(since + 1);
}

}  // namespace

TokenReplay::TokenReplay(const ReplayOptions& options)
    : options_(whole_capacity(options)),
      envs_(static_cast<std::size_t>(options.num_envs)),
      tokens_(header_of(options).frame_tokens()),
      history_(static_cast<std::size_t>(options.history)),
      isa_(options.isa ? *options.isa : choose_isa()),
      mutex_(!options.path.empty()),
      store_(make_store(options, isa_)),
      drawable_memory_(SumTree<std::uint8_t, std::uint32_t>::padded(store_.header().rows())),
      drawable_(reinterpret_cast<std::uint8_t*>(drawable_memory_.data()), drawable_memory_.size()),
      rows_tree_(drawable_) {
  gamma_powers_.resize(static_cast<std::size_t>(options.n_step) + 1);
  fill_powers(gamma_powers_, options.gamma);
  // An add changes at most the evicted row, the rows that lose history and those near the head.
  const std::size_t most = envs_ * (history_ + static_cast<std::size_t>(options.n_step) + 2);
  changed_.reserve(most);
  changed_to_.reserve(most);
  changed_leaf_.reserve(most);
  if (options.prioritized) priority_tree_.emplace(store_.leaves());
  build_trees(true);
}

// Fills the trees from the rows. `revive`: a drawable row without a priority gets the largest one,
// because a killed process may not have got to giving it.
void TokenReplay::build_trees(bool revive) {
  const std::span<double> leaves = store_.leaves();
  newest_leaf_ = std::pow(store_.header().max_priority, options_.alpha);
  ended_ = 0;
  std::fill(drawable_.begin(), drawable_.end(), std::uint8_t{0});
  for (std::uint64_t step = oldest(); step < store_.header().steps; ++step) {
    for (std::uint64_t env = 0; env < envs_; ++env) {
      drawable_[leaf_at(env, step)] = drawable(env, step) ? 1 : 0;
      ended_ += store_.bits(row_at(env, step)) & row_bits::kEnded ? 1u : 0u;
    }
  }
  rows_tree_.rebuild();
  if (!priority_tree_) return;
  for (std::size_t leaf = 0; leaf < leaves.size(); ++leaf) {
    const bool sound = leaves[leaf] >= 0.0 && leaves[leaf] <= store_.header().largest_leaf();
    if (drawable_[leaf] == 0) {
      if (leaves[leaf] != 0.0) leaves[leaf] = 0.0;  // reading alone takes no memory
    } else if (!sound || (revive && leaves[leaf] == 0.0)) {
      leaves[leaf] = newest_leaf_;
    }
  }
  priority_tree_->rebuild();
}

std::uint64_t TokenReplay::oldest() const { return store_.header().oldest(); }

std::size_t TokenReplay::row_at(std::uint64_t env, std::uint64_t step) const {
  return store_.row(env, store_.slot_of(step));
}

std::size_t TokenReplay::leaf_at(std::uint64_t env, std::uint64_t step) const {
  return store_.slot_of(step) * envs_ + env;
}

bool TokenReplay::has_successor(std::uint64_t env, std::uint64_t step) const {
  return step + 1 < store_.header().steps || store_.final_of(row_at(env, step)).has_value();
}

bool TokenReplay::drawable(std::uint64_t env, std::uint64_t step) const {
  const std::uint64_t steps = store_.header().steps;
  if (step < oldest() || step >= steps) return false;
  const std::size_t start = row_at(env, step);
  if (store_.bits(start) & row_bits::kFinal) return false;
  const std::uint64_t before = std::min<std::uint64_t>(store_.since(start), history_ - 1);
  if (step - before < oldest()) return false;
  const std::uint64_t n_step = gamma_powers_.size() - 1;
  for (std::uint64_t at = step; at < step + n_step; ++at) {
    if (at >= steps) return false;
    const std::uint8_t bits = store_.bits(row_at(env, at));
    if (bits & (row_bits::kEnded | row_bits::kLifeLost)) return has_successor(env, at);
  }
  return step + n_step < steps;
}

void TokenReplay::require_step(const StepInput& step) const {
  const auto fail = [](const std::string& field, std::size_t env, const std::string& what) {
    throw std::invalid_argument(field + "[env " + std::to_string(env) + "] " + what);
  };
  const auto size = [](const char* field, std::size_t have, std::size_t want) {
    if (have == want) return;
    throw std::invalid_argument(std::string(field) + " has " + std::to_string(have) +
                                " elements, should have " + std::to_string(want));
  };
  const auto tokens = [&](const char* field, const ConstTokenSpan& frames, std::size_t env) {
    const std::byte* frame = frames.at(env * tokens_);
    if (store_.codec().largest(frame) < options_.vocab_size) return;
    require_tokens_of(std::string(field) + "[env " + std::to_string(env) + "]", frame);
  };
  require_width("frames", step.frames);
  size("frames", step.frames.size(), envs_ * tokens_);
  size("actions", step.actions.size(), envs_);
  size("rewards", step.rewards.size(), envs_);
  size("terminated", step.terminated.size(), envs_);
  size("truncated", step.truncated.size(), envs_);
  if (!step.life_lost.empty()) size("life_lost", step.life_lost.size(), envs_);
  const bool same_step = options_.autoreset == Autoreset::kSameStep;
  if (!step.final_frames.empty()) {
    if (!same_step) {
      throw std::invalid_argument(
          "final_frames is given, but autoreset is next_step: the final frame comes as the next "
          "row");
    }
    require_width("final_frames", step.final_frames);
    size("final_frames", step.final_frames.size(), envs_ * tokens_);
  }
  for (std::size_t env = 0; env < envs_; ++env) {
    tokens("frames", step.frames, env);
    if (!std::isfinite(step.rewards[env])) {
      fail("rewards", env, "is " + std::to_string(step.rewards[env]) + ", must be finite");
    }
    if (step.actions[env] < std::numeric_limits<std::int32_t>::min() ||
        step.actions[env] > std::numeric_limits<std::int32_t>::max()) {
      fail("actions", env, "is " + std::to_string(step.actions[env]) + ", must fit 32 bits");
    }
    if (same_step && (step.terminated[env] || step.truncated[env])) {
      if (step.final_frames.empty()) {
        fail("final_frames", env, "is missing: the episode ended and autoreset is same_step");
      }
      tokens("final_frames", step.final_frames, env);
    }
  }
}

void TokenReplay::require_width(const char* field, const ConstTokenSpan& frames) const {
  if (frames.token_bytes() == store_.codec().token_bytes()) return;
  throw std::invalid_argument(std::string(field) + " has tokens of " +
                              std::to_string(frames.token_bytes()) + " bytes, this buffer has " +
                              std::to_string(store_.codec().token_bytes()));
}

void TokenReplay::require_tokens_of(const std::string& field, const std::byte* frame) const {
  const FrameCodec& codec = store_.codec();
  const std::uint16_t largest = codec.largest(frame);
  if (largest < options_.vocab_size) return;
  const auto token = [&](std::size_t i) {
    std::uint16_t value = 0;
    std::memcpy(&value, frame + i * codec.token_bytes(), codec.token_bytes());
    return value;
  };
  std::size_t at = 0;
  while (token(at) != largest) ++at;
  throw std::invalid_argument(field + " has token " + std::to_string(largest) + " at position " +
                              std::to_string(at) + ", allowed are 0 to " +
                              std::to_string(options_.vocab_size - 1));
}

void TokenReplay::add(const StepInput& step) {
  const std::lock_guard lock(mutex_);
  require_step(step);
  if (!step.final_frames.empty()) {
    // The last thing that can fail. For every env: the flags are the caller's memory, and another
    // thread may set one after they were counted.
    store_.reserve_finals(envs_);
  }
  const std::uint64_t now = store_.header().steps;
  if (store_.header().cut_at == now && now > 0) apply_cut();
  for (std::size_t env = 0; env < envs_; ++env) write_row(step, env);
  const std::uint64_t was_oldest = oldest();
  store_.commit();
  inserted_ += envs_;

  const std::uint64_t n_step = gamma_powers_.size() - 1;
  for (std::size_t env = 0; env < envs_; ++env) {
    ended_ += store_.bits(row_at(env, now)) & row_bits::kEnded ? 1u : 0u;
    if (oldest() != was_oldest) {
      recheck(env, was_oldest);
      const std::size_t gone = row_at(env, was_oldest);
      ended_ -= store_.bits(gone) & row_bits::kEnded ? 1u : 0u;
      store_.free_final(gone);
      const std::uint64_t end = std::min(oldest() + history_ - 1, now);
      for (std::uint64_t at = oldest(); at < end; ++at) recheck(env, at);
    }
    for (std::uint64_t at = now - std::min(now, n_step); at <= now; ++at) recheck(env, at);
  }
  flush_changes();
}

void TokenReplay::write_row(const StepInput& step, std::uint64_t env) {
  const std::uint64_t now = store_.header().steps;
  const std::size_t row = row_at(env, now);
  std::uint8_t since = 0;
  bool is_final = false;
  if (now > 0) {
    const std::size_t last = row_at(env, now - 1);
    const bool ended = (store_.bits(last) & row_bits::kEnded) != 0;
    is_final = ended && options_.autoreset == Autoreset::kNextStep;
    const bool goes_on = is_final || (!ended && !(store_.bits(last) & row_bits::kFinal));
    if (goes_on) since = one_more(store_.since(last));
  }
  std::uint8_t bits = is_final ? row_bits::kFinal : 0;
  if (!is_final) {
    if (step.terminated[env]) bits |= row_bits::kTerminated;
    if (step.truncated[env]) bits |= row_bits::kTruncated;
    if (!step.life_lost.empty() && step.life_lost[env]) bits |= row_bits::kLifeLost;
    if ((bits & row_bits::kEnded) && !step.final_frames.empty()) {
      store_.put_final(row, step.final_frames.at(env * tokens_));
    }
  }
  store_.codec().pack(step.frames.at(env * tokens_), store_.frame(row));
  store_.action(row) = static_cast<std::int32_t>(step.actions[env]);
  store_.reward(row) = step.rewards[env];
  store_.since(row) = since;
  store_.set_bits(row, bits);
  store_.seal(row, now);
}

void TokenReplay::cut() {
  const std::lock_guard lock(mutex_);
  store_.header().cut_at = store_.header().steps;
}

// The order of the stores, and leaving finished envs alone, make a second pass after a kill right.
void TokenReplay::apply_cut() {
  const std::uint64_t newest = store_.header().steps - 1;
  for (std::size_t env = 0; env < envs_; ++env) {
    const std::size_t row = row_at(env, newest);
    if ((store_.bits(row) & row_bits::kFinal) || store_.final_of(row)) continue;
    if (store_.since(row) > 0) {
      const std::uint8_t before = store_.bits(row_at(env, newest - 1));
      change_bits(env, newest - 1, before | row_bits::kTruncated);
    }
    change_bits(env, newest, row_bits::kFinal);
  }
}

// Of a row that is stored, or forgotten and not overwritten yet.
void TokenReplay::change_bits(std::uint64_t env, std::uint64_t step, std::uint8_t bits) {
  const std::size_t row = row_at(env, step);
  if (step >= oldest()) {
    ended_ -= store_.bits(row) & row_bits::kEnded ? 1u : 0u;
    ended_ += bits & row_bits::kEnded ? 1u : 0u;
  }
  store_.set_bits(row, bits);
}

// Notes whether a row has become drawable, or is no longer.
void TokenReplay::recheck(std::uint64_t env, std::uint64_t step) {
  const std::size_t leaf = leaf_at(env, step);
  const bool is = drawable(env, step);
  if (is == (drawable_[leaf] != 0)) return;
  changed_.push_back(leaf);
  changed_to_.push_back(is ? 1 : 0);
  changed_leaf_.push_back(is ? newest_leaf_ : 0.0);
}

void TokenReplay::flush_changes() {
  rows_tree_.set(changed_, changed_to_);
  if (priority_tree_) priority_tree_->set(changed_, changed_leaf_);
  changed_.clear();
  changed_to_.clear();
  changed_leaf_.clear();
}

}  // namespace wmfast
