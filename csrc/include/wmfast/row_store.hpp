// The rows of a TokenReplay: one ring per env, in memory or in a mapped file.
//
// A step adds one row to every env. All rings turn together, so a step number tells the slot:
// slot = step % slots. There is one slot more than the steps that are kept; the row being written
// always lands in the spare one, and becomes part of the store by one 8-byte store to `steps`.
//
//            slot 0     1          h = steps % slots          slots - 1
//   env 0  [ row   | row   | ... | spare | oldest | ... ... | row     ]     <- one run of memory,
//   so env 1  [ row   | row   | ... | spare | oldest | ... ... | row     ]        a history is one
//   read
//   ...
//
//   a row  [ action int32 | reward float | mark uint16 | since uint8 | 0 | final_of uint32 | frame
//   ]
//            0              4              8             10           11  12 (same_step)     12 or
//            16
//
//   mark       low byte: row bits; high byte: their check
//   since      rows since the episode began, at most 255
//   final_of   1 + index of the row's final frame, 0: none
//   frame      as FrameCodec stores it; then zeros up to a multiple of 4 bytes
//
// What a draw reads of a row lies together: at 336 tokens of 512 a row is 392 bytes, and the five
// rows of a history and its successor are 31 cache lines in sequence.
//
// One region of memory, sections in this order, each starting on a page:
//
//   header     ReplayHeader, 4096 bytes
//   rows       [env][slot]
//   leaves     double [slot][env]   priority^alpha, 0 for rows that can't be drawn   (prioritized)
//   row_check  uint64 [env][slot]   checksum of the row                              (file only)
//   finals     [index]              true last frames of episodes; taken as needed    (same_step)
//
// A process killed at any instruction leaves a file whose committed rows are whole: nothing
// committed is ever rewritten, except marks (one 2-byte store), leaves (one 8-byte store) and
// frames (rewrite_frame: first whole into the spare row, then announced in the header; whoever
// opens the file finishes what was announced).
//
// Not thread-safe. Slots and envs are not checked: out of range is undefined.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "wmfast/frame_codec.hpp"
#include "wmfast/isa.hpp"
#include "wmfast/posix_file.hpp"
#include "wmfast/rng.hpp"

namespace wmfast {

// What the store is (fixed), and where it stands (moving). Written to files as it is: only 8-byte
// fields, no padding, little-endian machines.
struct ReplayHeader {
  std::array<char, 8> magic;
  std::uint64_t version;
  std::uint64_t num_envs;
  std::uint64_t kept;  // steps kept per env
  std::uint64_t frame_rank;
  std::array<std::uint64_t, 4> frame_shape;
  std::uint64_t vocab_size;
  std::uint64_t history;
  std::uint64_t n_step;
  double gamma;
  std::uint64_t prioritized;
  double alpha;
  std::uint64_t seed;
  std::uint64_t same_step;
  std::uint64_t sign_rewards;
  std::uint64_t token_bytes;  // 2: uint16 frames, 1: uint8
  std::uint64_t fixed_check;  // checksum of everything above

  std::uint64_t steps;        // steps ever committed; the newest row is step `steps` - 1
  std::uint64_t steps_check;  // of `steps`, or of the step before while a commit is under way
  std::uint64_t cut_at;       // a cut waits for the next step while this equals `steps`
  double max_priority;
  RngState rng;
  std::uint64_t final_slots;  // finals[0 .. final_slots) may be in use
  std::uint64_t rewriting;    // 1 + the row whose new frame lies in its env's spare row; 0: none
  std::uint64_t forgotten;    // sealed_step of the first step that is not forgotten

  std::uint64_t frame_tokens() const;  // K
  FrameCodec codec(Isa isa) const;
  std::uint64_t row_bytes() const;
  std::uint64_t slots() const { return kept + 1; }
  std::uint64_t rows() const { return slots() * num_envs; }
  std::uint64_t check_of_fixed() const;
  double largest_leaf() const;   // a priority^alpha beyond it could overflow the sum
  std::uint64_t oldest() const;  // first stored step: not overwritten, not forgotten
};

inline constexpr std::uint64_t kLiveVersion = 3;  // 3: packed rows
inline constexpr std::uint64_t kSnapshotVersion = 2;
inline constexpr std::array<char, 8> kLiveMagic{'W', 'M', 'F', 'L', 'I', 'V', 'E', '\n'};
inline constexpr std::array<char, 8> kSnapshotMagic{'W', 'M', 'F', 'S', 'N', 'A', 'P', '\n'};
inline constexpr std::size_t kHeaderBytes = 4096;

std::uint64_t check_of_steps(std::uint64_t steps);

// A step number below 2^48 with a check of it in the high 16 bits: one store changes both. 0 is 0.
inline constexpr std::uint64_t kSealedMask = (std::uint64_t{1} << 48) - 1;
constexpr std::uint64_t sealed_step(std::uint64_t step) {
  return step | ((step * 0x9E3779B97F4A7C15u) & ~kSealedMask);
}

// Throws DamagedFile unless this is a whole header of our version with that magic.
void check_header(const ReplayHeader& header, const std::array<char, 8>& magic,
                  const std::filesystem::path& path);

namespace row_bits {
inline constexpr std::uint8_t kTerminated = 1;
inline constexpr std::uint8_t kTruncated = 2;
inline constexpr std::uint8_t kEnded = kTerminated | kTruncated;
inline constexpr std::uint8_t kLifeLost = 4;
inline constexpr std::uint8_t kFinal = 8;  // the last frame of an episode: a successor, not a start

// A mark: the bits below, a check of them above (the factor is odd: any change of the bits shows).
constexpr std::uint16_t mark_of(std::uint8_t bits) {
  const unsigned check = (bits * 0x9Du + 0x5Bu) & 0xFFu;
  return static_cast<std::uint16_t>(bits | (check << 8));
}
}  // namespace row_bits

class RowStore {
 public:
  // A run of bytes of the region that holds data; what a snapshot copies.
  struct Run {
    std::byte* data;
    std::size_t bytes;
  };

  // In memory. Throws OutOfMemory, with numbers, if the machine has less.
  RowStore(const ReplayHeader& header, Isa isa);

  // In the file at `path`: made if it isn't there, otherwise taken over as it is if it has the
  // geometry of `wanted` (num_envs, kept, frame_shape, vocab_size, dtype, autoreset, prioritized,
  // alpha). Throws FileError, DamagedFile, or std::invalid_argument that names the field that
  // differs. The file is locked while the store lives. Reads every row once to verify it.
  RowStore(const std::filesystem::path& path, const ReplayHeader& wanted, Isa isa);

  ReplayHeader& header() { return *header_; }
  const ReplayHeader& header() const { return *header_; }
  const std::optional<File>& file() const { return file_; }

  // The slot of a stored step, or of the one that comes next: step % slots, without a division.
  std::uint64_t slot_of(std::uint64_t step) const {
    const std::uint64_t back = header_->steps - step;
    return head_ >= back ? head_ - back : head_ + slots_ - back;
  }
  void find_head() { head_ = header_->steps % slots_; }  // after `steps` was set by hand
  std::size_t row(std::uint64_t env, std::uint64_t slot) const { return env * slots_ + slot; }

  const FrameCodec& codec() const { return codec_; }
  static std::size_t head_bytes(const ReplayHeader& header);  // of a row, before its frame
  std::size_t stride() const { return stride_; }  // bytes from a row to the next one of its env

  // A row's stored frame, and the bytes of a whole row.
  std::byte* frame(std::size_t row) { return rows_ + row * stride_ + head_bytes_; }
  const std::byte* frame(std::size_t row) const { return rows_ + row * stride_ + head_bytes_; }
  const std::byte* row_begin(std::size_t row) const { return rows_ + row * stride_; }
  const std::byte* final_frame(std::uint32_t index) const {
    return finals_ + index * codec_.stored_bytes();
  }

  std::int32_t& action(std::size_t row) { return head(row).action; }
  std::int32_t action(std::size_t row) const { return head(row).action; }
  float& reward(std::size_t row) { return head(row).reward; }
  float reward(std::size_t row) const { return head(row).reward; }
  std::uint8_t& since(std::size_t row) { return head(row).since; }
  std::uint8_t since(std::size_t row) const { return head(row).since; }
  std::uint8_t bits(std::size_t row) const { return static_cast<std::uint8_t>(head(row).mark); }
  void set_bits(std::size_t row, std::uint8_t bits);

  // The row's final frame, if it has one.
  std::optional<std::uint32_t> final_of(std::size_t row) const {
    if (finals_ == nullptr || final_of_field(row) == 0) return std::nullopt;
    return final_of_field(row) - 1;
  }

  // Makes room for `count` more final frames, so that the next `count` put_final don't fail.
  void reserve_finals(std::size_t count);
  void put_final(std::size_t row, const std::byte* frame);  // the row has none yet
  void free_final(std::size_t row);                         // its frame, if any, may be used again

  // File only: computes the checksum of a row just written as step `step`. Otherwise nothing.
  void seal(std::size_t row, std::uint64_t step);

  // Replaces the frame of a stored row. A kill in between leaves the old frame or the new one.
  // Uses the env's spare row. The row has no final frame of its own (next_step).
  void rewrite_frame(std::uint64_t env, std::uint64_t step, const std::byte* frame);

  // Every step before `step` counts as overwritten: one atomic store. Final frames of these rows
  // are the caller's to free.
  void forget_before(std::uint64_t step);

  // Makes the rows of step `steps` part of the store, with one atomic store of `steps` + 1.
  void commit();

  std::span<double> leaves() const { return {leaves_, leaf_count_}; }

  // Runs that hold data after the header, in file order; equal headers give equal runs.
  std::vector<Run> used_runs();

  // After a snapshot filled the runs: which final frames are free. O(rows).
  void rebuild_free_finals();

  // Bytes of the region in use, final frames included as far as they were ever taken.
  std::size_t nbytes() const;

  // The checksum of the row if `bits` are its bits.
  std::uint64_t row_check(std::size_t row, std::uint64_t step, std::uint8_t bits) const {
    return row_check(row, step, bits, frame(row));
  }

 private:
  struct RowHead {
    std::int32_t action;
    float reward;
    std::uint16_t mark;
    std::uint8_t since;
    std::uint8_t zero;
  };
  struct Layout {
    explicit Layout(const ReplayHeader& header, bool in_file);
    std::size_t rows, leaves, row_check, finals, end;
  };

  RowStore(const ReplayHeader& header, std::optional<File> file, bool in_file, Isa isa);
  static File create_or_open(const std::filesystem::path& path, const ReplayHeader& wanted);
  void verify() const;
  void finish_rewrite();
  std::uint64_t row_check(std::size_t row, std::uint64_t step, std::uint8_t bits,
                          const std::byte* frame) const;
  std::size_t frame_bytes() const { return stride_ - head_bytes_; }
  bool is_whole(std::size_t row, std::uint64_t step) const;
  void make_free(std::uint32_t index);

  RowHead& head(std::size_t row) { return *reinterpret_cast<RowHead*>(rows_ + row * stride_); }
  const RowHead& head(std::size_t row) const {
    return *reinterpret_cast<const RowHead*>(rows_ + row * stride_);
  }
  std::uint32_t& final_of_field(std::size_t row) {
    return *reinterpret_cast<std::uint32_t*>(rows_ + row * stride_ + sizeof(RowHead));
  }
  std::uint32_t final_of_field(std::size_t row) const {
    return *reinterpret_cast<const std::uint32_t*>(rows_ + row * stride_ + sizeof(RowHead));
  }

  Layout layout_;
  std::optional<File> file_;
  Mapping region_;
  ReplayHeader* header_;
  FrameCodec codec_;
  std::uint64_t slots_;
  std::uint64_t head_ = 0;  // steps % slots
  std::size_t head_bytes_;
  std::size_t stride_;
  std::byte* rows_;
  double* leaves_ = nullptr;
  std::size_t leaf_count_ = 0;
  std::uint64_t* row_check_ = nullptr;
  std::byte* finals_ = nullptr;
  // A heap, the smallest first: which one is next depends on the set alone, so that a loaded buffer
  // goes on as the saved one.
  std::vector<std::uint32_t> free_finals_;
  std::size_t reserved_finals_ = 0;  // final frames that have memory or disk space
};

}  // namespace wmfast
