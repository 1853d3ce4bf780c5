// The mapped file of a RowStore: made, taken over, verified.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>

#include "wmfast/row_store.hpp"

namespace wmfast {
namespace {

std::string shape_text(const ReplayHeader& header) {
  std::string text = "(";
  for (std::uint64_t axis = 0; axis < header.frame_rank; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(header.frame_shape[axis]);
  }
  return text + ")";
}

std::string autoreset_text(const ReplayHeader& header) {
  return header.same_step ? "same_step" : "next_step";
}

std::string dtype_text(const ReplayHeader& header) {
  return header.token_bytes == 1 ? "uint8" : "uint16";
}

void require_same_geometry(const std::filesystem::path& path, const ReplayHeader& held,
                           const ReplayHeader& wanted) {
  const auto same = [&path](const char* field, const std::string& in_file,
                            const std::string& asked) {
    if (in_file == asked) return;
    throw std::invalid_argument(path.string() + ": the store has " + field + " " + in_file +
                                ", asked for " + asked);
  };
  same("num_envs", std::to_string(held.num_envs), std::to_string(wanted.num_envs));
  same("capacity", std::to_string(held.kept * held.num_envs),
       std::to_string(wanted.kept * wanted.num_envs));
  same("frame_shape", shape_text(held), shape_text(wanted));
  same("vocab_size", std::to_string(held.vocab_size), std::to_string(wanted.vocab_size));
  same("dtype", dtype_text(held), dtype_text(wanted));
  same("autoreset", autoreset_text(held), autoreset_text(wanted));
  same("prioritized", std::to_string(held.prioritized), std::to_string(wanted.prioritized));
  same("alpha", std::to_string(held.alpha), std::to_string(wanted.alpha));
}

}  // namespace

File RowStore::create_or_open(const std::filesystem::path& path, const ReplayHeader& wanted) {
  const Layout layout(wanted, true);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    // Made beside and renamed: a kill in between leaves no half-made store.
    std::filesystem::path beside = path;
    beside += ".new";
    File file(beside, File::Mode::kCreate);
    const bool made_meanwhile = std::filesystem::exists(path, ignored);
    try {
      if (!made_meanwhile) {
        file.resize(layout.end);
        file.reserve(0, layout.finals);  // a full disk shows now, not as a bus error later
        std::array<std::byte, sizeof(ReplayHeader)> bytes;
        std::memcpy(bytes.data(), &wanted, sizeof(wanted));
        file.write(bytes);
        file.rename_to(path);
        return file;
      }
    } catch (...) {
      if (file.path() == beside) std::filesystem::remove(beside, ignored);
      throw;
    }
    std::filesystem::remove(beside, ignored);
  }
  File file(path, File::Mode::kReadWrite);
  if (!file.try_lock()) throw DamagedFile(path, "is in use by another process or buffer");
  ReplayHeader held;
  std::array<std::byte, sizeof(ReplayHeader)> bytes;
  file.read(bytes);
  std::memcpy(&held, bytes.data(), sizeof(held));
  check_header(held, kLiveMagic, path);
  require_same_geometry(path, held, wanted);
  if (file.size() != layout.end) {
    throw DamagedFile(path, "is " + std::to_string(file.size()) + " bytes long, should be " +
                                std::to_string(layout.end));
  }
  return file;
}

// The checksum was made when the row was written; a cut may have changed the mark since then: made
// the row a final frame, whatever it was, or the end of an episode.
bool RowStore::is_whole(std::size_t row, std::uint64_t step) const {
  const std::uint8_t now = bits(row);
  if (head(row).mark != row_bits::mark_of(now)) return false;
  if (row_check_[row] == row_check(row, step, now)) return true;
  if (now == row_bits::kFinal) {
    for (std::uint8_t before = 0; before < row_bits::kFinal; ++before) {
      if (row_check_[row] == row_check(row, step, before)) return true;
    }
  }
  return (now & row_bits::kTruncated) != 0 &&
         row_check_[row] ==
             row_check(row, step, static_cast<std::uint8_t>(now & ~row_bits::kTruncated));
}

// A process killed in rewrite_frame has announced a frame that lies whole in the spare row.
void RowStore::finish_rewrite() {
  if (header_->rewriting == 0) return;
  const std::uint64_t target = header_->rewriting - 1;
  const std::uint64_t env = target / slots_, slot = target % slots_;
  const std::uint64_t spare_slot = slot_of(header_->steps);
  const std::uint64_t back = (spare_slot + slots_ - slot) % slots_;  // steps behind the next one
  const bool stored = env < header_->num_envs && back != 0 && back <= header_->steps;
  const std::size_t spare = row(stored ? env : 0, spare_slot);
  if (!stored ||
      row_check_[spare] != row_check(target, header_->steps - back, bits(target), frame(spare))) {
    throw DamagedFile(file_->path(), "damaged header");
  }
  std::memcpy(frame(target), frame(spare), frame_bytes());
  row_check_[target] = row_check_[spare];
  std::atomic_ref<std::uint64_t>(header_->rewriting).store(0, std::memory_order_release);
}

void RowStore::verify() const {
  const ReplayHeader& header = *header_;
  const std::filesystem::path& path = file_->path();
  const bool steps_ok = header.steps_check == check_of_steps(header.steps) ||
                        header.steps_check == check_of_steps(header.steps - 1);
  const bool priority_ok = header.max_priority >= 0.0 && std::isfinite(header.max_priority) &&
                           std::pow(header.max_priority, header.alpha) <= header.largest_leaf();
  const std::uint64_t first = header.forgotten & kSealedMask;
  const bool forgotten_ok = header.forgotten == sealed_step(first) && first <= header.steps;
  if (!steps_ok || header.final_slots > header.rows() || !priority_ok || !forgotten_ok ||
      header.rng == RngState{}) {
    throw DamagedFile(path, "damaged header");
  }
  const std::uint64_t oldest = header.oldest();
  std::vector<bool> taken(header.same_step ? header.final_slots : 0, false);
  for (std::uint64_t env = 0; env < header.num_envs; ++env) {
    for (std::uint64_t step = oldest; step < header.steps; ++step) {
      const std::size_t at = row(env, slot_of(step));
      const std::string name = "env " + std::to_string(env) + " step " + std::to_string(step);
      const auto index = final_of(at);
      if ((index && *index >= header.final_slots) || !is_whole(at, step)) {
        throw DamagedFile(path, "damaged row: " + name);
      }
      if (index && taken[*index]) {
        throw DamagedFile(path, "damaged row: " + name + " has the final frame of another row");
      }
      if (index) taken[*index] = true;
    }
  }
}

}  // namespace wmfast
