// TokenReplay: prioritized replay of token frames from a vector of envs.
//
// One frame a step is stored (see row_store.hpp for the memory); a history of H frames is put
// together when it is drawn:
//
//   row (env, t)   frame f_t | action a_t chosen on it | what a_t brought: reward, terminated, ...
//
//   state       f_{t-H+1} ... f_t          frames before the episode's first repeat the first
//   next_state  f_{t+m-H+1} ... f_{t+m}    m <= n_step: where the n-step return stops
//
// Episodes. With Autoreset::kNextStep the row after an end holds the final frame: a successor,
// never a start; its action, reward and flags are ignored. With kSameStep the final frame comes
// with the step that ended. The return stops at `terminated` and at a lost life (discount 0) and at
// `truncated` (it bootstraps, gamma^m, from the final frame). Nothing crosses an episode.
//
// A row is drawable once its n_step successors are stored or its episode has ended within them
// (final frame included), as long as its whole history is stored, and unless it is a final frame.
//
// Ids. Row (env, t) has the id t * num_envs + env: never repeated, ordered by time.
//
// Instructions. Chosen at run time (isa.hpp); every path gives the same bytes.
//
// Thread rule: any calls at once; a mutex makes each of them whole. Arguments are checked before
// anything is changed: a call that throws has changed nothing. Errors are std::invalid_argument
// (ValueError), std::out_of_range (IndexError), OutOfMemory, FileError, DamagedFile.
//
// fork() waits for calls under way; the child's copy of a buffer in memory is its own, a mapped
// store stays the parent's (every call in the child throws std::runtime_error).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "wmfast/call_mutex.hpp"
#include "wmfast/isa.hpp"
#include "wmfast/row_store.hpp"
#include "wmfast/sum_tree.hpp"
#include "wmfast/token_span.hpp"

namespace wmfast {

enum class Autoreset { kNextStep, kSameStep };
enum class RewardTransform { kNone, kSign };

struct ReplayOptions {
  std::int64_t capacity = 0;  // env steps over all envs; each env keeps capacity / num_envs
  std::int64_t num_envs = 0;
  std::vector<std::int64_t> frame_shape = {21, 16};  // 1 to 4 axes; K is their product
  std::int64_t vocab_size = 512;                     // tokens are 0 .. vocab_size - 1; <= 65536
  TokenType dtype = TokenType::kUint16;              // of frames given and drawn
  std::int64_t history = 4;                          // H, 1 .. 255
  std::int64_t n_step = 1;
  double gamma = 0.99;
  bool prioritized = true;
  double alpha = 0.6;
  std::uint64_t seed = 0;
  Autoreset autoreset = Autoreset::kNextStep;
  RewardTransform reward_transform = RewardTransform::kNone;  // of `sample`; stored rewards are raw
  std::filesystem::path path = {};                            // empty: in memory
  std::optional<Isa> isa = {};                                // empty: choose_isa()
};

// One step of every env; E = num_envs. The caller's memory, read during the call only.
struct StepInput {
  ConstTokenSpan frames;                     // (E, K) of `dtype`
  std::span<const std::int64_t> actions;     // (E)
  std::span<const float> rewards;            // (E)
  std::span<const std::uint8_t> terminated;  // (E) 0 or 1
  std::span<const std::uint8_t> truncated;   // (E) 0 or 1
  std::span<const std::uint8_t> life_lost;   // (E) 0 or 1, or empty
  ConstTokenSpan final_frames;               // (E, K), or empty; kSameStep only
};

// Where `sample` writes; the batch size is index.size(). Either state and next_state or window.
struct TransitionOutput {
  TokenSpan state;                 // (B, H, K)
  TokenSpan next_state;            // (B, H, K)
  TokenSpan window;                // (B, H + 1, K), draws of n_step 1 only
  std::span<std::int64_t> action;  // (B)
  std::span<float> reward;         // (B) sum of gamma^k r_{t+k}, k < m
  std::span<float> discount;       // (B) gamma^m, or 0
  std::span<float> weight;         // (B) (N P)^-beta / max in the batch
  std::span<std::int64_t> index;   // (B) ids
};

// Where `sample_sequences` writes.
struct SequenceOutput {
  std::int64_t length = 0;             // S
  TokenSpan tokens;                    // (B, H + S, K)
  std::span<std::int64_t> action;      // (B, S)
  std::span<float> reward;             // (B, S) raw
  std::span<std::uint8_t> terminated;  // (B, S) 0 or 1
  std::span<std::uint8_t> mask;        // (B, S) 0 or 1: the step is real and its successor stored
  std::span<std::uint8_t> life_lost;   // (B, S) 0 or 1, or empty: not wanted
};

struct Recent {
  std::int64_t steps = 0;  // the last so many env steps, over all envs
  double fraction = 0.0;   // of the batch, 0 .. 1
};

// The returns of one draw, where they differ from the buffer's: not longer, or discounted
// otherwise.
struct ReturnOptions {
  std::optional<std::int64_t> n_step;  // 1 .. the buffer's
  std::optional<double> gamma;         // 0 .. 1
};

struct ReplayStats {
  std::uint64_t added = 0;          // steps ever added, over all envs
  std::uint64_t stored = 0;         // of these still here
  std::uint64_t drawable = 0;       // of these can be drawn
  std::uint64_t episodes = 0;       // ends among the stored rows
  std::uint64_t sampled = 0;        // rows drawn since this object was made
  std::uint64_t updated = 0;        // priorities applied since this object was made
  std::uint64_t skipped = 0;        // priorities of rows that had gone, since this object was made
  std::uint64_t inserts = 0;        // steps added since this object was made
  std::uint64_t rewritten = 0;      // frames rewritten since this object was made
  std::uint64_t forgotten = 0;      // rows forgotten since this object was made
  double fill = 0.0;                // stored / capacity, 0 .. 1
  double mean_sample_age = 0.0;     // env steps added after a row when it was drawn; 0: none drawn
  double stale_update_share = 0.0;  // skipped / (updated + skipped); 0: none
  double max_priority = 0.0;        // largest seen, what a new row gets
  double priority_sum = 0.0;        // of priority^alpha
};

// A stored episode, as far as it is stored.
struct EpisodeRecord {
  std::int64_t env;
  std::int64_t first_id;  // of its first stored step
  std::int64_t length;    // stored steps; a final frame is none
  double reward;          // raw, summed over them
  bool terminated;
  bool truncated;  // and not terminated
  bool open;       // has not ended yet
  bool whole;      // its first step is stored
};

class TokenReplay {
 public:
  // With `options.path`: the mapped store there, made or taken over (n_step, gamma, history, seed
  // and reward_transform may differ from last time; the random state goes on).
  explicit TokenReplay(const ReplayOptions& options);

  // The buffer that `save` wrote, in memory: every draw that follows is the same.
  static std::unique_ptr<TokenReplay> load(const std::filesystem::path& path);

  TokenReplay(const TokenReplay&) = delete;
  TokenReplay& operator=(const TokenReplay&) = delete;

  // Adds a row to every env, overwriting the oldest. O(E * (K + n_step^2 + log rows)).
  void add(const StepInput& step);

  // The streams broke off: the next `add` begins an episode in every env, and the newest row of
  // each becomes the final frame of a truncated one. Until then nothing changes.
  void cut();

  // Draws rows: stratified by priority^alpha (one uniform draw in each of B equal parts of the
  // sum), or independently and evenly without priorities. Throws std::invalid_argument if none can
  // be drawn. Which rows are drawn does not depend on `returns`: those that can be drawn with n
  // steps can be with fewer.
  void sample(const TransitionOutput& out, double beta, const ReturnOptions& returns = {});

  // The transitions of these ids, as `sample` would give them; `out.weight` is left alone. Throws
  // std::out_of_range for an id never issued, overwritten, or not drawable (now).
  void get(std::span<const std::int64_t> index, const TransitionOutput& out) const;

  // Draws evenly among the drawable rows; the first round(fraction * B) among the recent ones.
  // After an episode's end the last frame is repeated, mask and the rest are 0. The frame after a
  // terminated step is the final frame as it was given: emulators may return a stale one there.
  void sample_sequences(const SequenceOutput& out, std::optional<Recent> recent);

  // Sets priorities, as if one after another: the last of equal ids wins. Ids whose rows are gone
  // or not drawable any more are skipped. Returns how many were applied. An id never issued throws
  // std::out_of_range; NaN, inf, negative or overflowing priorities throw std::invalid_argument.
  std::int64_t update_priorities(std::span<const std::int64_t> index,
                                 std::span<const double> priority);

  // Replaces the frames of these rows, (B, K), as if one after another; priorities and all else
  // stay. Any stored row has a frame, also one that can't be drawn; ids whose rows are gone are
  // skipped. Returns how many were written. An id never issued throws std::out_of_range, a token
  // outside the vocabulary std::invalid_argument, kSameStep too (its final frames have no id). In a
  // mapped store a kill leaves each row old or new. O(B K).
  std::int64_t rewrite(std::span<const std::int64_t> index, const ConstTokenSpan& frames);

  // Every row of a step with an id below `before_id` counts as overwritten from now on: not drawn,
  // in no history, not stored. Returns how many rows that were. Throws std::out_of_range beyond the
  // next id. O(rows forgotten).
  std::int64_t forget(std::int64_t before_id);

  // Writes a snapshot beside `path`, syncs it and renames it: `path` holds the old or the new
  // snapshot at any moment. Rows go from the ring to the file without a copy.
  void save(const std::filesystem::path& path);

  std::int64_t size() const;   // stored steps, over all envs
  std::size_t nbytes() const;  // memory or file space of rows and trees
  ReplayStats stats() const;   // O(1)

  // The stored episodes, oldest first. O(stored rows).
  std::vector<EpisodeRecord> episodes() const;

  // Fixed at construction; no lock.
  const ReplayOptions& options() const { return options_; }
  std::size_t num_envs() const { return envs_; }
  std::size_t frame_tokens() const { return tokens_; }  // K
  Isa isa() const { return isa_; }

 private:
  // Where a row is: its env, its step, and the ring's slot that holds it.
  struct Place {
    std::uint64_t env, step, slot;
  };

  std::uint64_t oldest() const;  // first stored step
  bool drawable(std::uint64_t env, std::uint64_t step) const;
  bool has_successor(std::uint64_t env, std::uint64_t step) const;
  std::size_t row_at(std::uint64_t env, std::uint64_t step) const;
  std::size_t leaf_at(std::uint64_t env, std::uint64_t step) const;
  void require_step(const StepInput& step) const;
  void write_row(const StepInput& step, std::uint64_t env);
  void apply_cut();
  void change_bits(std::uint64_t env, std::uint64_t step, std::uint8_t bits);
  void require_tokens_of(const std::string& field, const std::byte* frame) const;
  void require_width(const char* field, const ConstTokenSpan& frames) const;
  void episodes_of(std::uint64_t env, std::vector<EpisodeRecord>& found) const;
  Place place_of_id(std::size_t i, std::int64_t id) const;
  void recheck(std::uint64_t env, std::uint64_t step);
  void flush_changes();
  void build_trees(bool revive);

  Place place_of(std::size_t leaf) const;
  std::uint64_t slot_before(std::uint64_t slot, std::uint64_t steps) const;
  void prefetch(const Place& place) const;
  void copy_rows(std::uint64_t env, std::uint64_t slot, std::size_t count, std::byte* out) const;
  void copy_history(std::uint64_t env, std::uint64_t slot, std::size_t since, std::byte* out) const;
  void copy_both_histories(const Place& place, std::size_t ahead, std::byte* state,
                           std::byte* next_state) const;
  void gather(const TransitionOutput& out, std::size_t i, const Place& place,
              std::span<const double> gamma_powers) const;
  void gather_sequence(const SequenceOutput& out, std::size_t i, const Place& place) const;
  void require_tokens(const char* field, const TokenSpan& tokens, std::size_t frames) const;
  template <typename Take>
  void for_each_drawn(Take take);
  void draw_by_priority(std::span<std::size_t> leaf, std::span<float> weight, double beta);
  void draw_evenly(std::span<std::size_t> leaf, std::optional<std::int64_t> recent_steps);
  [[noreturn]] void throw_nothing_drawable(const std::string& call) const;

  const ReplayOptions options_;
  const std::size_t envs_;
  const std::size_t tokens_;   // K
  const std::size_t history_;  // H
  const Isa isa_;
  mutable CallMutex mutex_;
  RowStore store_;
  Mapping drawable_memory_;
  std::span<std::uint8_t> drawable_;                      // [slot][env] 0 or 1
  SumTree<std::uint8_t, std::uint32_t> rows_tree_;        // counts drawable rows
  std::optional<SumTree<double, double>> priority_tree_;  // over the store's leaves
  std::vector<double> gamma_powers_;                      // gamma^0 .. gamma^n_step
  double newest_leaf_ = 1.0;                              // max_priority^alpha
  std::uint64_t ended_ = 0;                               // stored rows that end an episode
  std::uint64_t inserted_ = 0;
  std::uint64_t sampled_ = 0;
  std::uint64_t sampled_age_ = 0;  // summed, in env steps
  std::uint64_t updated_ = 0;
  std::uint64_t skipped_ = 0;
  std::uint64_t rewritten_ = 0;
  std::uint64_t forgotten_ = 0;
  // Changed rows of the call under way, for one batched update of the trees.
  std::vector<std::size_t> changed_;
  std::vector<std::uint8_t> changed_to_;
  std::vector<double> changed_leaf_;
  // Of the draw under way.
  std::vector<double> target_;
  std::vector<std::uint32_t> rank_;
  std::vector<std::size_t> drawn_;
  std::vector<Place> places_;
  std::vector<double> draw_powers_;  // gamma_powers_ of its own ReturnOptions
};

}  // namespace wmfast
