// TokenReplay: histories put together from the rings.
#include <algorithm>
#include <cstring>

#include "wmfast/token_replay.hpp"

namespace wmfast {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kPrefetchBytes = 8192;  // of one row's frames; the hardware fetches the rest

}  // namespace

TokenReplay::Place TokenReplay::place_of(std::size_t leaf) const {
  const std::uint64_t steps = store_.header().steps;
  const std::uint64_t slots = store_.header().slots();
  // Rows number less than 2^32, and a 32-bit division takes half the time.
  const std::uint64_t slot = static_cast<std::uint32_t>(leaf) / static_cast<std::uint32_t>(envs_);
  const std::uint64_t env = leaf - slot * envs_;
  const std::uint64_t head = store_.slot_of(steps);
  return {env, steps - (head > slot ? head - slot : head + slots - slot), slot};
}

std::uint64_t TokenReplay::slot_before(std::uint64_t slot, std::uint64_t steps) const {
  return slot >= steps ? slot - steps : slot + store_.header().slots() - steps;
}

// Asks for what a draw of this row will read.
void TokenReplay::prefetch(const Place& place) const {
  const std::uint64_t first = place.slot - std::min<std::uint64_t>(place.slot, history_ - 1);
  const std::uint64_t end =
      std::min(place.slot + gamma_powers_.size(), store_.header().slots());  // past the successors
  const std::byte* begin = store_.row_begin(store_.row(place.env, first));
  const std::size_t bytes = std::min<std::size_t>((end - first) * store_.stride(), kPrefetchBytes);
  for (std::size_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(begin + at, 0, 2);
}

// `count` frames in sequence from the row at `slot` on.
void TokenReplay::copy_rows(std::uint64_t env, std::uint64_t slot, std::size_t count,
                            std::byte* out) const {
  const FrameCodec& codec = store_.codec();
  for (; count > 0; --count, out += codec.frame_bytes()) {
    codec.unpack(store_.frame(store_.row(env, slot)), out);
    if (++slot == store_.header().slots()) slot = 0;
  }
}

// The H frames that end with the one at `slot`; `since` rows before it are of its episode.
void TokenReplay::copy_history(std::uint64_t env, std::uint64_t slot, std::size_t since,
                               std::byte* out) const {
  const std::size_t frame_bytes = store_.codec().frame_bytes();
  const std::size_t before = std::min(since, history_ - 1);
  const std::size_t repeated = history_ - 1 - before;
  copy_rows(env, slot_before(slot, before), before + 1, out + repeated * frame_bytes);
  for (std::size_t i = 0; i < repeated; ++i) {
    std::memcpy(out + i * frame_bytes, out + repeated * frame_bytes, frame_bytes);
  }
}

// The histories that end at `place` and `ahead` rows later, each row read once. The whole of both
// is stored and of one episode.
void TokenReplay::copy_both_histories(const Place& place, std::size_t ahead, std::byte* state,
                                      std::byte* next_state) const {
  const FrameCodec& codec = store_.codec();
  const std::size_t frame_bytes = codec.frame_bytes();
  std::uint64_t slot = slot_before(place.slot, history_ - 1);
  for (std::size_t i = 0; i < history_ + ahead; ++i) {
    const std::byte* frame = store_.frame(store_.row(place.env, slot));
    if (i >= ahead && i < history_) {
      codec.unpack(frame, state + i * frame_bytes, next_state + (i - ahead) * frame_bytes);
    } else if (i < history_) {
      codec.unpack(frame, state + i * frame_bytes);
    } else if (i >= ahead) {
      codec.unpack(frame, next_state + (i - ahead) * frame_bytes);
    }
    if (++slot == store_.header().slots()) slot = 0;
  }
}

void TokenReplay::gather(const TransitionOutput& out, std::size_t i, const Place& place,
                         std::span<const double> gamma_powers) const {
  const std::uint64_t slots = store_.header().slots();
  const std::size_t start = store_.row(place.env, place.slot);
  out.index[i] = static_cast<std::int64_t>(place.step * envs_ + place.env);
  out.action[i] = store_.action(start);

  double sum = 0.0;
  double discount = gamma_powers.back();
  const std::size_t n_step = gamma_powers.size() - 1;
  std::size_t ahead = 0;  // steps of the return
  std::uint64_t slot = place.slot;
  std::size_t last = start;
  for (bool going = true; going;) {
    last = store_.row(place.env, slot);
    double reward = static_cast<double>(store_.reward(last));
    if (options_.reward_transform == RewardTransform::kSign) {
      reward = reward > 0.0 ? 1.0 : (reward < 0.0 ? -1.0 : 0.0);
    }
    sum += gamma_powers[ahead] * reward;
    ++ahead;
    const std::uint8_t bits = store_.bits(last);
    going = ahead < n_step;
    if (bits & (row_bits::kEnded | row_bits::kLifeLost)) {
      const bool dead = (bits & (row_bits::kTerminated | row_bits::kLifeLost)) != 0;
      discount = dead ? 0.0 : gamma_powers[ahead];
      going = false;
    }
    if (++slot == slots) slot = 0;
  }
  out.reward[i] = static_cast<float>(sum);
  out.discount[i] = static_cast<float>(discount);

  // `slot` is that of the successor, unless a final frame is kept apart.
  const std::size_t since = store_.since(start);
  const std::size_t frame_bytes = store_.codec().frame_bytes();
  const std::optional<std::uint32_t> final = store_.final_of(last);
  if (!out.window.empty()) {
    std::byte* window = out.window.at(i * (history_ + 1) * tokens_);
    if (!final && since >= history_ - 1) {
      copy_rows(place.env, slot_before(place.slot, history_ - 1), history_ + 1, window);
      return;
    }
    copy_history(place.env, place.slot, since, window);
    store_.codec().unpack(
        final ? store_.final_frame(*final) : store_.frame(store_.row(place.env, slot)),
        window + history_ * frame_bytes);
    return;
  }
  std::byte* state = out.state.at(i * history_ * tokens_);
  std::byte* next_state = out.next_state.at(i * history_ * tokens_);
  if (!final && since >= history_ - 1) {
    copy_both_histories(place, ahead, state, next_state);
    return;
  }
  copy_history(place.env, place.slot, since, state);
  if (!final) {
    copy_history(place.env, slot, since + ahead, next_state);
    return;
  }
  // The history that ends with the final frame is that of the last row, one frame on.
  const std::size_t before = std::min(since + ahead, history_ - 1);
  const std::size_t repeated = history_ - 1 - before;
  std::byte* tail = next_state + (history_ - 1) * frame_bytes;
  store_.codec().unpack(store_.final_frame(*final), tail);
  copy_rows(place.env, slot_before(slot, before), before, tail - before * frame_bytes);
  for (std::size_t k = 0; k < repeated; ++k) {
    std::memcpy(next_state + k * frame_bytes, next_state + repeated * frame_bytes, frame_bytes);
  }
}

void TokenReplay::gather_sequence(const SequenceOutput& out, std::size_t i,
                                  const Place& place) const {
  const auto length = static_cast<std::size_t>(out.length);
  const std::size_t base = i * length;
  std::size_t taken = 0;
  std::optional<std::uint32_t> final;
  while (taken < length && has_successor(place.env, place.step + taken)) {
    const std::size_t row = row_at(place.env, place.step + taken);
    const std::uint8_t bits = store_.bits(row);
    out.action[base + taken] = store_.action(row);
    out.reward[base + taken] = store_.reward(row);
    out.terminated[base + taken] = bits & row_bits::kTerminated ? 1 : 0;
    out.mask[base + taken] = 1;
    if (!out.life_lost.empty()) {
      out.life_lost[base + taken] = bits & row_bits::kLifeLost ? 1 : 0;
    }
    ++taken;
    final = store_.final_of(row);
    if (bits & row_bits::kEnded) break;
  }
  std::fill_n(&out.action[base] + taken, length - taken, std::int64_t{0});
  std::fill_n(&out.reward[base] + taken, length - taken, 0.0f);
  std::fill_n(&out.terminated[base] + taken, length - taken, std::uint8_t{0});
  std::fill_n(&out.mask[base] + taken, length - taken, std::uint8_t{0});
  if (!out.life_lost.empty()) {
    std::fill_n(&out.life_lost[base] + taken, length - taken, std::uint8_t{0});
  }

  const std::size_t frame_bytes = store_.codec().frame_bytes();
  std::byte* at = out.tokens.at(i * (history_ + length) * tokens_);
  copy_history(place.env, place.slot, store_.since(store_.row(place.env, place.slot)), at);
  at += history_ * frame_bytes;
  const std::uint64_t next = store_.slot_of(place.step + 1);
  copy_rows(place.env, next, final ? taken - 1 : taken, at);
  at += taken * frame_bytes;
  if (final) store_.codec().unpack(store_.final_frame(*final), at - frame_bytes);
  for (std::size_t rest = taken; rest < length; ++rest, at += frame_bytes) {
    std::memcpy(at, at - frame_bytes, frame_bytes);
  }
}

}  // namespace wmfast
