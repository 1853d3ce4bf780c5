// TokenReplay: priorities.
#include <cmath>

#include "wmfast/token_replay.hpp"

namespace wmfast {

std::int64_t TokenReplay::update_priorities(std::span<const std::int64_t> index,
                                            std::span<const double> priority) {
  const std::lock_guard lock(mutex_);
  if (!priority_tree_)
    throw std::invalid_argument("this buffer has no priorities: prioritized=False");
  if (index.size() != priority.size()) {
    throw std::invalid_argument("index has " + std::to_string(index.size()) +
                                " elements, priority has " + std::to_string(priority.size()));
  }
  const std::uint64_t issued = store_.header().steps * envs_;
  const double limit = store_.header().largest_leaf();
  std::vector<std::size_t> leaf;
  std::vector<double> weight;
  leaf.reserve(index.size());
  weight.reserve(index.size());
  double largest = store_.header().max_priority;
  for (std::size_t i = 0; i < index.size(); ++i) {
    if (index[i] < 0 || static_cast<std::uint64_t>(index[i]) >= issued) {
      throw std::out_of_range("index[" + std::to_string(i) + "] is " + std::to_string(index[i]) +
                              ", " + std::to_string(issued) + " ids were issued, from 0 on");
    }
    const double value = priority[i];
    const double power = value >= 0.0 ? std::pow(value, options_.alpha) : -1.0;
    if (!std::isfinite(value) || !(power >= 0.0 && power <= limit)) {
      throw std::invalid_argument("priority[" + std::to_string(i) + "] is " +
                                  std::to_string(value) +
                                  ", must be finite, not negative and small enough to be summed");
    }
    const std::uint64_t step = static_cast<std::uint64_t>(index[i]) / envs_;
    const std::uint64_t env = static_cast<std::uint64_t>(index[i]) % envs_;
    if (step < oldest() || drawable_[leaf_at(env, step)] == 0) continue;
    leaf.push_back(leaf_at(env, step));
    weight.push_back(power);
    largest = std::max(largest, value);
  }
  priority_tree_->set(leaf, weight);
  store_.header().max_priority = largest;
  newest_leaf_ = std::pow(largest, options_.alpha);
  updated_ += leaf.size();
  skipped_ += index.size() - leaf.size();
  return static_cast<std::int64_t>(leaf.size());
}

}  // namespace wmfast
