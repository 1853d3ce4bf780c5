// TokenReplay: frames whose tokenizer has moved: rewritten, or forgotten.
#include <algorithm>
#include <string>

#include "wmfast/token_replay.hpp"

namespace wmfast {

std::int64_t TokenReplay::rewrite(std::span<const std::int64_t> index,
                                  const ConstTokenSpan& frames) {
  const std::lock_guard lock(mutex_);
  if (options_.autoreset == Autoreset::kSameStep) {
    throw std::invalid_argument(
        "rewrite: autoreset is same_step, whose final frames have no id; allowed is next_step");
  }
  require_width("frames", frames);
  if (frames.size() != index.size() * tokens_) {
    throw std::invalid_argument("frames has " + std::to_string(frames.size()) +
                                " elements, should have " + std::to_string(index.size() * tokens_));
  }
  const std::uint64_t issued = store_.header().steps * envs_;
  for (std::size_t i = 0; i < index.size(); ++i) {
    if (index[i] < 0 || static_cast<std::uint64_t>(index[i]) >= issued) {
      throw std::out_of_range("index[" + std::to_string(i) + "] is " + std::to_string(index[i]) +
                              ", " + std::to_string(issued) + " ids were issued, from 0 on");
    }
    require_tokens_of("frames[" + std::to_string(i) + "]", frames.at(i * tokens_));
  }
  std::int64_t written = 0;
  for (std::size_t i = 0; i < index.size(); ++i) {
    const auto id = static_cast<std::uint64_t>(index[i]);
    const std::uint64_t step = id / envs_;
    if (step < oldest()) continue;
    store_.rewrite_frame(id % envs_, step, frames.at(i * tokens_));
    ++written;
  }
  rewritten_ += static_cast<std::uint64_t>(written);
  return written;
}

std::int64_t TokenReplay::forget(std::int64_t before_id) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t steps = store_.header().steps;
  if (before_id < 0 || static_cast<std::uint64_t>(before_id) > steps * envs_) {
    throw std::out_of_range("before_id is " + std::to_string(before_id) + ", allowed are 0 to " +
                            std::to_string(steps * envs_));
  }
  const std::uint64_t first = (static_cast<std::uint64_t>(before_id) + envs_ - 1) / envs_;
  const std::uint64_t was = oldest();
  if (first <= was) return 0;
  // Rows that lose a part of their history go too. Room first: what follows can't fail.
  const std::uint64_t end = std::min(first + history_ - 1, steps);
  const std::size_t most = (end - was) * envs_;
  changed_.reserve(most);
  changed_to_.reserve(most);
  changed_leaf_.reserve(most);
  store_.forget_before(first);
  for (std::uint64_t step = was; step < end; ++step) {
    for (std::uint64_t env = 0; env < envs_; ++env) {
      recheck(env, step);
      if (step >= first) continue;
      const std::size_t row = row_at(env, step);
      ended_ -= store_.bits(row) & row_bits::kEnded ? 1u : 0u;
      store_.free_final(row);
    }
  }
  flush_changes();
  const std::uint64_t gone = (first - was) * envs_;
  forgotten_ += gone;
  return static_cast<std::int64_t>(gone);
}

}  // namespace wmfast
