// TokenReplay: what is stored, seen without drawing.
#include <algorithm>
#include <string>

#include "wmfast/token_replay.hpp"

namespace wmfast {

std::int64_t TokenReplay::size() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>((store_.header().steps - oldest()) * envs_);
}

std::size_t TokenReplay::nbytes() const {
  const std::lock_guard lock(mutex_);
  return store_.nbytes() + drawable_.size() + rows_tree_.nbytes() +
         (priority_tree_ ? priority_tree_->nbytes() : 0);
}

ReplayStats TokenReplay::stats() const {
  const std::lock_guard lock(mutex_);
  const auto share = [](std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  ReplayStats stats;
  stats.added = store_.header().steps * envs_;
  stats.stored = (store_.header().steps - oldest()) * envs_;
  stats.drawable = rows_tree_.total();
  stats.episodes = ended_;
  stats.sampled = sampled_;
  stats.updated = updated_;
  stats.skipped = skipped_;
  stats.inserts = inserted_;
  stats.rewritten = rewritten_;
  stats.forgotten = forgotten_;
  stats.fill = share(stats.stored, static_cast<std::uint64_t>(options_.capacity));
  stats.mean_sample_age = share(sampled_age_, sampled_);
  stats.stale_update_share = share(skipped_, updated_ + skipped_);
  stats.max_priority = store_.header().max_priority;
  stats.priority_sum = priority_tree_ ? priority_tree_->total() : 0.0;
  return stats;
}

// The place of the `i`-th id asked for, if its transition can be drawn.
TokenReplay::Place TokenReplay::place_of_id(std::size_t i, std::int64_t id) const {
  const std::uint64_t steps = store_.header().steps;
  const auto refuse = [&](const std::string& why) {
    throw std::out_of_range("index[" + std::to_string(i) + "] is " + std::to_string(id) + ": " +
                            why);
  };
  if (id < 0 || static_cast<std::uint64_t>(id) >= steps * envs_) {
    refuse("never issued, " + std::to_string(steps * envs_) + " ids were, from 0 on");
  }
  const auto number = static_cast<std::uint64_t>(id);
  if (number / envs_ < oldest()) {
    refuse("overwritten or forgotten, the oldest stored is " + std::to_string(oldest() * envs_));
  }
  const Place place{number % envs_, number / envs_, store_.slot_of(number / envs_)};
  if (drawable_[leaf_at(place.env, place.step)] != 0) return place;
  if (store_.bits(store_.row(place.env, place.slot)) & row_bits::kFinal) {
    refuse("the final frame of an episode, no transition starts there");
  }
  refuse("can't be drawn, its successors or a part of its history are not stored");
  return place;
}

void TokenReplay::get(std::span<const std::int64_t> index, const TransitionOutput& out) const {
  const std::lock_guard lock(mutex_);
  require_tokens("state", out.state, index.size() * history_);
  require_tokens("next_state", out.next_state, index.size() * history_);
  std::vector<Place> places;
  places.reserve(index.size());
  for (std::size_t i = 0; i < index.size(); ++i) places.push_back(place_of_id(i, index[i]));
  for (std::size_t i = 0; i < places.size(); ++i) gather(out, i, places[i], gamma_powers_);
}

void TokenReplay::episodes_of(std::uint64_t env, std::vector<EpisodeRecord>& found) const {
  bool going = false;  // the last record found is of this env and goes on
  for (std::uint64_t step = oldest(); step < store_.header().steps; ++step) {
    const std::size_t row = row_at(env, step);
    const std::uint8_t bits = store_.bits(row);
    if (bits & row_bits::kFinal) {
      going = false;
      continue;
    }
    if (!going) {
      found.push_back({.env = static_cast<std::int64_t>(env),
                       .first_id = static_cast<std::int64_t>(step * envs_ + env),
                       .length = 0,
                       .reward = 0.0,
                       .terminated = false,
                       .truncated = false,
                       .open = true,
                       .whole = store_.since(row) == 0});
      going = true;
    }
    EpisodeRecord& episode = found.back();
    ++episode.length;
    episode.reward += static_cast<double>(store_.reward(row));
    if (bits & row_bits::kEnded) {
      episode.terminated = (bits & row_bits::kTerminated) != 0;
      episode.truncated = !episode.terminated;
      episode.open = false;
      going = false;
    }
  }
}

std::vector<EpisodeRecord> TokenReplay::episodes() const {
  const std::lock_guard lock(mutex_);
  std::vector<EpisodeRecord> found;
  for (std::uint64_t env = 0; env < envs_; ++env) episodes_of(env, found);
  std::ranges::sort(found, {}, &EpisodeRecord::first_id);
  return found;
}

}  // namespace wmfast
