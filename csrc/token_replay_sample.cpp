// TokenReplay: drawing rows and putting histories together.
#include <algorithm>
#include <cmath>
#include <cstring>

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

std::uint64_t TokenReplay::step_of_slot(std::uint64_t slot) const {
  const std::uint64_t steps = store_.header().steps;
  const std::uint64_t head = store_.slot_of(steps);
  return steps - (head > slot ? head - slot : head + store_.header().slots() - slot);
}

void TokenReplay::copy_rows(std::uint64_t env, std::uint64_t step, std::size_t count,
                            std::uint16_t* out) const {
  const std::uint64_t slot = store_.slot_of(step);
  const std::size_t first = std::min<std::size_t>(count, store_.header().slots() - slot);
  const std::size_t frame_bytes = tokens_ * sizeof(std::uint16_t);
  std::memcpy(out, store_.frame(store_.row(env, slot)), first * frame_bytes);
  if (first < count) {
    std::memcpy(out + first * tokens_, store_.frame(store_.row(env, 0)),
                (count - first) * frame_bytes);
  }
}

// The H frames that end with the one of `step`.
void TokenReplay::copy_history(std::uint64_t env, std::uint64_t step, std::uint16_t* out) const {
  const std::size_t before = std::min<std::size_t>(store_.since(row_at(env, step)), history_ - 1);
  for (std::size_t pad = before + 1; pad < history_; ++pad, out += tokens_) {
    copy_rows(env, step - before, 1, out);
  }
  copy_rows(env, step - before, before + 1, out);
}

void TokenReplay::gather(const TransitionOutput& out, std::size_t i, std::size_t leaf) {
  const std::uint64_t env = leaf % envs_;
  const std::uint64_t step = step_of_slot(leaf / envs_);
  const std::size_t start = row_at(env, step);
  out.index[i] = static_cast<std::int64_t>(step * envs_ + env);
  out.action[i] = store_.action(start);

  double sum = 0.0;
  double discount = gamma_powers_.back();
  std::uint64_t last = step + gamma_powers_.size() - 2;  // the last step of the return
  for (std::uint64_t at = step; at <= last; ++at) {
    const std::size_t row = row_at(env, at);
    double reward = static_cast<double>(store_.reward(row));
    if (options_.reward_transform == RewardTransform::kSign) {
      reward = reward > 0.0 ? 1.0 : (reward < 0.0 ? -1.0 : 0.0);
    }
    sum += gamma_powers_[at - step] * reward;
    const std::uint8_t bits = store_.bits(row);
    if (bits & (row_bits::kEnded | row_bits::kLifeLost)) {
      last = at;
      const bool dead = (bits & (row_bits::kTerminated | row_bits::kLifeLost)) != 0;
      discount = dead ? 0.0 : gamma_powers_[at - step + 1];
    }
  }
  out.reward[i] = static_cast<float>(sum);
  out.discount[i] = static_cast<float>(discount);

  const std::size_t stack = history_ * tokens_;
  const std::size_t frame_bytes = tokens_ * sizeof(std::uint16_t);
  const std::optional<std::uint32_t> final = store_.final_of(row_at(env, last));
  if (!out.window.empty()) {
    std::uint16_t* window = &out.window[i * (stack + tokens_)];
    copy_history(env, step, window);
    if (final) {
      std::memcpy(window + stack, store_.final_frame(*final), frame_bytes);
    } else {
      copy_rows(env, step + 1, 1, window + stack);
    }
    return;
  }
  copy_history(env, step, &out.state[i * stack]);
  std::uint16_t* next = &out.next_state[i * stack];
  if (!final) {
    copy_history(env, last + 1, next);
    return;
  }
  // The history that ends with the final frame is that of the last row, one frame on.
  const std::size_t since = store_.since(row_at(env, last)) + std::size_t{1};
  const std::size_t before = std::min(since, history_ - 1);
  for (std::size_t pad = before + 1; pad < history_; ++pad, next += tokens_) {
    copy_rows(env, last + 1 - before, 1, next);
  }
  if (before > 0) copy_rows(env, last + 1 - before, before, next);
  std::memcpy(next + before * tokens_, store_.final_frame(*final), frame_bytes);
}

void TokenReplay::draw_by_priority(std::span<std::size_t> leaf, std::span<float> weight,
                                   double beta) {
  const double total = priority_tree_->total();
  const double part = total / static_cast<double>(leaf.size());
  RngState rng = store_.header().rng;
  std::vector<double> target(leaf.size());
  for (std::size_t i = 0; i < leaf.size(); ++i) {
    target[i] = (static_cast<double>(i) + next_unit(rng)) * part;
  }
  store_.header().rng = rng;
  priority_tree_->find(target, leaf);
  // (N p / sum)^-beta over its maximum, which the smallest p has: N and the sum cancel.
  double smallest = (*priority_tree_)[leaf[0]];
  for (const std::size_t at : leaf) smallest = std::min(smallest, (*priority_tree_)[at]);
  for (std::size_t i = 0; i < leaf.size(); ++i) {
    weight[i] = static_cast<float>(std::pow((*priority_tree_)[leaf[i]] / smallest, -beta));
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
  std::vector<std::uint32_t> rank(leaf.size());
  for (std::uint32_t& value : rank) {
    const std::uint64_t at = std::uint64_t{first} + next_below(rng, count);
    value = static_cast<std::uint32_t>(at < all ? at : at - all);
  }
  store_.header().rng = rng;
  rows_tree_.find(rank, leaf);
}

void TokenReplay::sample(const TransitionOutput& out, double beta) {
  const std::lock_guard lock(mutex_);
  if (out.index.empty()) throw std::invalid_argument("sample: batch_size is 0, must be positive");
  if (!(beta >= 0.0 && std::isfinite(beta))) {
    throw std::invalid_argument("sample: beta is " + std::to_string(beta) +
                                ", must be finite and not negative");
  }
  if (!out.window.empty() && options_.n_step != 1) {
    throw std::invalid_argument("sample: window=True needs n_step 1, this buffer has " +
                                std::to_string(options_.n_step));
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
  for (std::size_t i = 0; i < drawn_.size(); ++i) gather(out, i, drawn_[i]);
  sampled_ += drawn_.size();
}

void TokenReplay::gather_sequence(const SequenceOutput& out, std::size_t i, std::size_t leaf) {
  const std::uint64_t env = leaf % envs_;
  const std::uint64_t step = step_of_slot(leaf / envs_);
  const auto length = static_cast<std::size_t>(out.length);
  const std::size_t base = i * length;
  std::size_t taken = 0;
  std::optional<std::uint32_t> final;
  while (taken < length && has_successor(env, step + taken)) {
    const std::size_t row = row_at(env, step + taken);
    const std::uint8_t bits = store_.bits(row);
    out.action[base + taken] = store_.action(row);
    out.reward[base + taken] = store_.reward(row);
    out.terminated[base + taken] = bits & row_bits::kTerminated ? 1 : 0;
    out.mask[base + taken] = 1;
    ++taken;
    final = store_.final_of(row);
    if (bits & row_bits::kEnded) break;
  }
  std::fill_n(&out.action[base] + taken, length - taken, std::int64_t{0});
  std::fill_n(&out.reward[base] + taken, length - taken, 0.0f);
  std::fill_n(&out.terminated[base] + taken, length - taken, std::uint8_t{0});
  std::fill_n(&out.mask[base] + taken, length - taken, std::uint8_t{0});

  std::uint16_t* at = &out.tokens[i * (history_ + length) * tokens_];
  copy_history(env, step, at);
  at += history_ * tokens_;
  if (final) {
    copy_rows(env, step + 1, taken - 1, at);
    std::copy_n(store_.final_frame(*final), tokens_, at + (taken - 1) * tokens_);
  } else {
    copy_rows(env, step + 1, taken, at);
  }
  at += taken * tokens_;
  for (std::size_t rest = taken; rest < length; ++rest, at += tokens_) {
    std::copy_n(at - tokens_, tokens_, at);
  }
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
  for (std::size_t i = 0; i < batch; ++i) gather_sequence(out, i, drawn_[i]);
  sampled_ += batch;
}

}  // namespace wmfast
