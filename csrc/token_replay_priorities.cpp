// TokenReplay: priorities.
#include <cmath>
#include <limits>

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
  // First where the rows are, so that their memory is on its way while the powers are computed.
  drawn_.resize(index.size());
  const std::uint64_t first = oldest();
  constexpr std::size_t kGone = std::numeric_limits<std::size_t>::max();
  for (std::size_t i = 0; i < index.size(); ++i) {
    if (index[i] < 0 || static_cast<std::uint64_t>(index[i]) >= issued) {
      throw std::out_of_range("index[" + std::to_string(i) + "] is " + std::to_string(index[i]) +
                              ", " + std::to_string(issued) + " ids were issued, from 0 on");
    }
    const auto id = static_cast<std::uint64_t>(index[i]);
    const std::uint64_t step =
        id >> 32 == 0 ? static_cast<std::uint32_t>(id) / static_cast<std::uint32_t>(envs_)
                      : id / envs_;
    drawn_[i] = step < first ? kGone : leaf_at(id - step * envs_, step);
    if (drawn_[i] == kGone) continue;
    __builtin_prefetch(&drawable_[drawn_[i]]);
    __builtin_prefetch(&store_.leaves()[drawn_[i]], 1);
  }
  std::vector<std::size_t> leaf;
  std::vector<double> weight;
  leaf.reserve(index.size());
  weight.reserve(index.size());
  double largest = store_.header().max_priority;
  for (std::size_t i = 0; i < index.size(); ++i) {
    const double value = priority[i];
    const double power = value >= 0.0 ? std::pow(value, options_.alpha) : -1.0;
    if (!std::isfinite(value) || !(power >= 0.0 && power <= limit)) {
      throw std::invalid_argument("priority[" + std::to_string(i) + "] is " +
                                  std::to_string(value) +
                                  ", must be finite, not negative and small enough to be summed");
    }
    if (drawn_[i] == kGone || drawable_[drawn_[i]] == 0) continue;
    leaf.push_back(drawn_[i]);
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
