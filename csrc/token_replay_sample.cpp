// TokenReplay: drawing rows.
#include <algorithm>
#include <cmath>

#include "replay_options.hpp"
#include "wmfast/token_replay.hpp"

namespace wmfast {

void TokenReplay::throw_nothing_drawable(const std::string& call) const {
  const ReplayHeader& header = store_.header();
  throw std::invalid_argument(
      call + ": no row can be drawn: " + std::to_string(header.steps - oldest()) +
      " steps are stored in each of " + std::to_string(envs_) + " envs, a row needs " +
      std::to_string(options_.n_step) + " successors (n_step) and up to " +
      std::to_string(history_ - 1) + " earlier frames" +
      (rows_tree_.total() > 0 ? ", and all priorities are 0" : ""));
}

// Tokens of the wrong width or number would be written beside the caller's memory.
void TokenReplay::require_tokens(const char* field, const TokenSpan& tokens,
                                 std::size_t frames) const {
  if (tokens.token_bytes() == store_.codec().token_bytes() && tokens.size() == frames * tokens_) {
    return;
  }
  throw std::invalid_argument(std::string(field) + " has " + std::to_string(tokens.size()) +
                              " tokens of " + std::to_string(tokens.token_bytes()) +
                              " bytes, should have " + std::to_string(frames * tokens_) + " of " +
                              std::to_string(store_.codec().token_bytes()));
}

// Calls `take` with each drawn row's number and place, its memory asked for a little before.
template <typename Take>
void TokenReplay::for_each_drawn(Take take) {
  // Far enough ahead for short rows to arrive, not so far that long ones push each other out.
  const std::size_t row_bytes = (history_ + gamma_powers_.size() - 1) * store_.stride();
  const std::size_t ahead = std::clamp<std::size_t>(4096 / row_bytes, 2, 16);
  places_.resize(drawn_.size());
  std::uint64_t age = 0;
  for (std::size_t i = 0; i < drawn_.size(); ++i) {
    places_[i] = place_of(drawn_[i]);
    age += store_.header().steps - 1 - places_[i].step;
  }
  for (std::size_t i = 0; i < std::min(ahead, places_.size()); ++i) prefetch(places_[i]);
  for (std::size_t i = 0; i < places_.size(); ++i) {
    if (i + ahead < places_.size()) prefetch(places_[i + ahead]);
    take(i, places_[i]);
  }
  sampled_ += drawn_.size();
  sampled_age_ += age * envs_;
}

void TokenReplay::draw_by_priority(std::span<std::size_t> leaf, std::span<float> weight,
                                   double beta) {
  const double total = priority_tree_->total();
  const double part = total / static_cast<double>(leaf.size());
  RngState rng = store_.header().rng;
  target_.resize(leaf.size());
  const std::span<double> target(target_);
  for (std::size_t i = 0; i < leaf.size(); ++i) {
    target[i] = (static_cast<double>(i) + next_unit(rng)) * part;
  }
  store_.header().rng = rng;
  priority_tree_->find(target, leaf);
  // (N p / sum)^-beta over its maximum, which the smallest p has: N and the sum cancel.
  double smallest = (*priority_tree_)[leaf[0]];
  for (const std::size_t at : leaf) smallest = std::min(smallest, (*priority_tree_)[at]);
  double last = smallest;  // rows in sequence often have one priority, the largest seen
  float last_weight = 1.0f;
  for (std::size_t i = 0; i < leaf.size(); ++i) {
    const double value = (*priority_tree_)[leaf[i]];
    if (value != last) {
      last = value;
      last_weight = static_cast<float>(std::pow(value / smallest, -beta));
    }
    weight[i] = last_weight;
  }
}

// Independent, even draws among the drawable rows, of the last `recent_steps` of each env if given.
void TokenReplay::draw_evenly(std::span<std::size_t> leaf,
                              std::optional<std::int64_t> recent_steps) {
  const std::uint32_t all = rows_tree_.total();
  std::uint32_t first = 0;
  std::uint32_t count = all;
  if (recent_steps) {
    const std::uint64_t steps = store_.header().steps;
    const std::uint64_t window =
        std::min(static_cast<std::uint64_t>(*recent_steps), steps - oldest());
    const std::uint64_t begin_slot = store_.slot_of(steps - window);
    const std::uint64_t end_slot = store_.slot_of(steps);
    first = rows_tree_.prefix(begin_slot * envs_);
    const std::uint32_t end = rows_tree_.prefix(end_slot * envs_);
    count = begin_slot <= end_slot ? end - first : all - first + end;  // else round the ring's end
  }
  if (count == 0) {
    throw_nothing_drawable("sample_sequences(recent): of the last " +
                           std::to_string(*recent_steps) + " steps of each env");
  }
  RngState rng = store_.header().rng;
  rank_.resize(leaf.size());
  const std::span<std::uint32_t> rank(rank_);
  for (std::uint32_t& value : rank) {
    const std::uint64_t at = std::uint64_t{first} + next_below(rng, count);
    value = static_cast<std::uint32_t>(at < all ? at : at - all);
  }
  store_.header().rng = rng;
  rows_tree_.find(rank, leaf);
}

void TokenReplay::sample(const TransitionOutput& out, double beta, const ReturnOptions& returns) {
  const std::lock_guard lock(mutex_);
  if (out.index.empty()) throw std::invalid_argument("sample: batch_size is 0, must be positive");
  if (!(beta >= 0.0 && std::isfinite(beta))) {
    throw std::invalid_argument("sample: beta is " + std::to_string(beta) +
                                ", must be finite and not negative");
  }
  const std::int64_t n_step = returns.n_step.value_or(options_.n_step);
  const double gamma = returns.gamma.value_or(options_.gamma);
  if (n_step < 1 || n_step > options_.n_step) {
    throw std::invalid_argument("sample: n_step is " + std::to_string(n_step) +
                                ", allowed are 1 to this buffer's " +
                                std::to_string(options_.n_step));
  }
  if (!(gamma >= 0.0 && gamma <= 1.0)) {
    throw std::invalid_argument("sample: gamma is " + std::to_string(gamma) +
                                ", allowed are 0 to 1");
  }
  if (!out.window.empty() && n_step != 1) {
    throw std::invalid_argument("sample: window=True needs n_step 1, " +
                                std::string(returns.n_step ? "this draw" : "this buffer") +
                                " has " + std::to_string(n_step));
  }
  if (out.window.empty()) {
    require_tokens("state", out.state, out.index.size() * history_);
    require_tokens("next_state", out.next_state, out.index.size() * history_);
  } else {
    require_tokens("window", out.window, out.index.size() * (history_ + 1));
  }
  const bool possible = priority_tree_ ? priority_tree_->total() > 0.0 : rows_tree_.total() > 0;
  if (!possible) {
    throw_nothing_drawable("sample(batch_size=" + std::to_string(out.index.size()) + ")");
  }
  drawn_.resize(out.index.size());
  if (priority_tree_) {
    draw_by_priority(drawn_, out.weight, beta);
  } else {
    draw_evenly(drawn_, std::nullopt);
    std::fill(out.weight.begin(), out.weight.end(), 1.0f);
  }
  std::span<const double> powers = gamma_powers_;
  if (gamma != options_.gamma) {
    draw_powers_.resize(gamma_powers_.size());
    fill_powers(draw_powers_, gamma);
    powers = draw_powers_;
  }
  powers = powers.first(static_cast<std::size_t>(n_step) + 1);
  for_each_drawn([&](std::size_t i, const Place& place) { gather(out, i, place, powers); });
}

void TokenReplay::sample_sequences(const SequenceOutput& out, std::optional<Recent> recent) {
  const std::lock_guard lock(mutex_);
  if (out.length < 1) {
    throw std::invalid_argument("sample_sequences: length is " + std::to_string(out.length) +
                                ", must be positive");
  }
  const std::size_t batch = out.action.size() / static_cast<std::size_t>(out.length);
  if (batch == 0) {
    throw std::invalid_argument("sample_sequences: batch_size is 0, must be positive");
  }
  if (recent && (recent->steps < 1 || !(recent->fraction >= 0.0 && recent->fraction <= 1.0))) {
    throw std::invalid_argument("sample_sequences: recent is (" + std::to_string(recent->steps) +
                                ", " + std::to_string(recent->fraction) +
                                "), steps must be positive and the fraction in 0 to 1");
  }
  require_tokens("tokens", out.tokens, batch * (history_ + static_cast<std::size_t>(out.length)));
  if (rows_tree_.total() == 0) {
    throw_nothing_drawable("sample_sequences(batch_size=" + std::to_string(batch) + ")");
  }
  drawn_.resize(batch);
  const std::span<std::size_t> drawn(drawn_);
  std::size_t newer = 0;
  if (recent) {
    newer = static_cast<std::size_t>(std::lround(recent->fraction * static_cast<double>(batch)));
    const auto envs = static_cast<std::int64_t>(envs_);
    const std::int64_t per_env = (recent->steps - 1) / envs + 1;
    if (newer > 0) draw_evenly(drawn.first(newer), per_env);
  }
  if (newer < batch) draw_evenly(drawn.subspan(newer), std::nullopt);
  for_each_drawn([&](std::size_t i, const Place& place) { gather_sequence(out, i, place); });
}

}  // namespace wmfast
