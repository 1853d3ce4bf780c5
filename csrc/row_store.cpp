#include "wmfast/row_store.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "wmfast/checksum.hpp"
#include "wmfast/sum_tree.hpp"

namespace wmfast {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kFinalsChunk = 256;  // final frames reserved at a time

static_assert(sizeof(ReplayHeader) <= kHeaderBytes);
static_assert(std::is_trivially_copyable_v<ReplayHeader>);
static_assert(std::endian::native == std::endian::little);

std::size_t page_up(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

std::string gib(double bytes) {
  std::string text = std::to_string(bytes / (1024.0 * 1024.0 * 1024.0));
  return text.substr(0, text.find('.') + 3) + " GiB";
}

// Linux hands out more memory than it has and kills the process later: refuse here instead.
void require_memory(std::size_t bytes) {
  const double have = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) *
                      static_cast<double>(::sysconf(_SC_PAGE_SIZE));
  if (static_cast<double>(bytes) > have) {
    throw OutOfMemory("this capacity needs " + gib(static_cast<double>(bytes)) +
                      " of memory, the machine has " + gib(have));
  }
}

}  // namespace

std::uint64_t ReplayHeader::frame_tokens() const {
  std::uint64_t product = 1;
  for (std::uint64_t axis = 0; axis < frame_rank; ++axis) product *= frame_shape[axis];
  return product;
}

FrameCodec ReplayHeader::codec(Isa isa) const {
  return {token_bytes == 1 ? TokenType::kUint8 : TokenType::kUint16, frame_tokens(), vocab_size,
          isa};
}

std::uint64_t ReplayHeader::row_bytes() const {
  const std::uint64_t bytes = RowStore::head_bytes(*this) + codec(Isa::kScalar).stored_bytes();
  return (bytes + 3) / 4 * 4;  // the fields of the next row are aligned
}

std::size_t RowStore::head_bytes(const ReplayHeader& header) {
  return sizeof(RowHead) + (header.same_step ? sizeof(std::uint32_t) : 0);
}

std::uint64_t ReplayHeader::check_of_fixed() const {
  Checksum sum;
  sum.add({reinterpret_cast<const std::byte*>(this), offsetof(ReplayHeader, fixed_check)});
  return sum.value();
}

std::uint64_t ReplayHeader::oldest() const {
  return std::max(steps - std::min(steps, kept), forgotten & kSealedMask);
}

double ReplayHeader::largest_leaf() const {
  return std::numeric_limits<double>::max() / (2.0 * static_cast<double>(rows()));
}

std::uint64_t check_of_steps(std::uint64_t steps) {
  Checksum sum;
  sum.add_word(steps);
  return sum.value();
}

void check_header(const ReplayHeader& header, const std::array<char, 8>& magic,
                  const std::filesystem::path& path) {
  if (header.magic != magic) {
    if (header.magic == kLiveMagic) {
      throw DamagedFile(path, "is a live store: open it with TokenReplay(..., path=...)");
    }
    if (header.magic == kSnapshotMagic) {
      throw DamagedFile(path, "is a snapshot: open it with TokenReplay.load");
    }
    throw DamagedFile(path, "is not a replay buffer of wmfast");
  }
  const std::uint64_t version = magic == kLiveMagic ? kLiveVersion : kSnapshotVersion;
  if (header.version != version) {
    throw DamagedFile(path, "has format version " + std::to_string(header.version) +
                                ", this program reads version " + std::to_string(version));
  }
  if (header.fixed_check != header.check_of_fixed()) throw DamagedFile(path, "damaged header");
}

RowStore::Layout::Layout(const ReplayHeader& header, bool in_file) {
  const std::size_t row_count = header.rows();
  const std::size_t leaf_count = SumTree<double, double>::padded(row_count);
  std::size_t at = kHeaderBytes;
  const auto section = [&at](std::size_t bytes) {
    const std::size_t begin = at;
    at = page_up(at + bytes);
    return begin;
  };
  rows = section(row_count * header.row_bytes());
  leaves = section(header.prioritized ? leaf_count * sizeof(double) : 0);
  row_check = section(in_file ? row_count * sizeof(std::uint64_t) : 0);
  finals = section(header.same_step ? row_count * header.codec(Isa::kScalar).stored_bytes() : 0);
  end = at;
}

RowStore::RowStore(const ReplayHeader& header, Isa isa)
    : RowStore(header, std::nullopt, false, isa) {
  *header_ = header;
}

RowStore::RowStore(const std::filesystem::path& path, const ReplayHeader& wanted, Isa isa)
    : RowStore(wanted, create_or_open(path, wanted), true, isa) {
  finish_rewrite();
  verify();
  // A process killed in the middle of a commit has left the check of the step before; another kill
  // there must not find it two steps behind.
  header_->steps_check = check_of_steps(header_->steps);
  rebuild_free_finals();
}

RowStore::RowStore(const ReplayHeader& header, std::optional<File> file, bool in_file, Isa isa)
    : layout_(header, in_file),
      file_(std::move(file)),
      region_([&] {
        if (file_) return Mapping(*file_, layout_.end);
        require_memory(layout_.finals);
        return Mapping(layout_.end);
      }()),
      header_(reinterpret_cast<ReplayHeader*>(region_.data())),
      codec_(header.codec(isa)),
      slots_(header.slots()),
      head_bytes_(head_bytes(header)),
      stride_(header.row_bytes()),
      rows_(region_.data() + layout_.rows) {
  const auto at = [this](std::size_t offset) { return region_.data() + offset; };
  if (in_file) row_check_ = reinterpret_cast<std::uint64_t*>(at(layout_.row_check));
  if (header.same_step) finals_ = at(layout_.finals);
  find_head();
  if (header.prioritized) {
    leaves_ = reinterpret_cast<double*>(at(layout_.leaves));
    leaf_count_ = SumTree<double, double>::padded(header.rows());
  }
}

void RowStore::set_bits(std::size_t row, std::uint8_t bits) {
  head(row).mark = row_bits::mark_of(bits);
}

void RowStore::reserve_finals(std::size_t count) {
  if (count <= free_finals_.size()) return;
  const std::size_t fresh = count - free_finals_.size();
  const std::size_t needed = header_->final_slots + fresh;
  free_finals_.reserve(header_->rows());  // so that free_final and put_final can't fail
  if (needed > reserved_finals_) {
    const std::size_t more = std::min(std::max(needed - reserved_finals_, kFinalsChunk),
                                      header_->rows() - reserved_finals_);
    const std::size_t stored = codec_.stored_bytes();
    if (file_) file_->reserve(layout_.finals + reserved_finals_ * stored, more * stored);
    reserved_finals_ += more;
  }
  for (std::size_t i = 0; i < fresh; ++i) {
    make_free(static_cast<std::uint32_t>(header_->final_slots++));
  }
}

void RowStore::put_final(std::size_t row, const std::byte* frame) {
  std::ranges::pop_heap(free_finals_, std::greater<>());
  const std::uint32_t index = free_finals_.back();
  free_finals_.pop_back();
  codec_.pack(frame, finals_ + index * codec_.stored_bytes());
  final_of_field(row) = index + 1;
}

void RowStore::free_final(std::size_t row) {
  const std::optional<std::uint32_t> index = final_of(row);
  if (!index) return;
  final_of_field(row) = 0;
  make_free(*index);
}

void RowStore::make_free(std::uint32_t index) {
  free_finals_.push_back(index);
  std::ranges::push_heap(free_finals_, std::greater<>());
}

std::uint64_t RowStore::row_check(std::size_t row, std::uint64_t step, std::uint8_t bits,
                                  const std::byte* frame) const {
  Checksum sum;
  sum.add_word(step);  // a page that never reached the disk may hold a sound row of the last lap
  const RowHead& fields = head(row);
  sum.add_word(static_cast<std::uint32_t>(fields.action));
  sum.add_word(std::bit_cast<std::uint32_t>(fields.reward));
  sum.add_word(static_cast<std::uint64_t>(fields.since) << 8 | fields.zero);
  sum.add_word(bits);
  sum.add({frame, frame_bytes()});
  if (const auto index = final_of(row)) sum.add({final_frame(*index), codec_.stored_bytes()});
  return sum.value();
}

void RowStore::seal(std::size_t row, std::uint64_t step) {
  if (row_check_ != nullptr) row_check_[row] = row_check(row, step, bits(row));
}

void RowStore::rewrite_frame(std::uint64_t env, std::uint64_t step, const std::byte* frame_in) {
  const std::size_t target = row(env, slot_of(step));
  const std::size_t spare = row(env, slot_of(header_->steps));
  codec_.pack(frame_in, frame(spare));  // in memory too: equal calls, equal snapshots
  if (row_check_ == nullptr) {
    std::memcpy(frame(target), frame(spare), frame_bytes());
    return;
  }
  row_check_[spare] = row_check(target, step, bits(target), frame(spare));
  const std::atomic_ref<std::uint64_t> rewriting(header_->rewriting);
  // Acquire too: no store of the copy comes before this one. (A fence would say the same, but
  // ThreadSanitizer knows none.)
  rewriting.exchange(target + 1, std::memory_order_acq_rel);
  std::memcpy(frame(target), frame(spare), frame_bytes());
  row_check_[target] = row_check_[spare];
  rewriting.store(0, std::memory_order_release);
}

void RowStore::forget_before(std::uint64_t step) {
  std::atomic_ref<std::uint64_t>(header_->forgotten)
      .store(sealed_step(step), std::memory_order_release);
}

void RowStore::commit() {
  // Release: a kill after this store leaves every store before it in the file.
  const std::uint64_t steps = header_->steps + 1;
  std::atomic_ref<std::uint64_t>(header_->steps).store(steps, std::memory_order_release);
  std::atomic_ref<std::uint64_t>(header_->steps_check)
      .store(check_of_steps(steps), std::memory_order_release);
  head_ = head_ + 1 == slots_ ? 0 : head_ + 1;
}

std::vector<RowStore::Run> RowStore::used_runs() {
  const std::size_t used = std::min(header_->steps, slots_);
  const std::size_t envs = header_->num_envs;
  std::vector<Run> runs;
  for (std::size_t env = 0; env < envs; ++env) {
    runs.push_back({rows_ + row(env, 0) * stride_, used * stride_});
  }
  if (leaves_ != nullptr) {
    runs.push_back({reinterpret_cast<std::byte*>(leaves_), used * envs * sizeof(double)});
  }
  if (finals_ != nullptr) {
    runs.push_back({finals_, header_->final_slots * codec_.stored_bytes()});
  }
  return runs;
}

void RowStore::rebuild_free_finals() {
  if (finals_ == nullptr) return;
  const std::uint64_t steps = header_->steps;
  const std::uint64_t present = steps - std::min(steps, header_->kept);
  const std::uint64_t oldest = header_->oldest();
  std::vector<bool> taken(header_->final_slots, false);
  for (std::uint64_t env = 0; env < header_->num_envs; ++env) {
    for (std::uint64_t step = present; step < steps; ++step) {
      const std::size_t at = row(env, slot_of(step));
      if (step < oldest) {
        final_of_field(at) = 0;  // forgotten; a killed process may not have got to freeing it
      } else if (const auto index = final_of(at)) {
        taken[*index] = true;
      }
    }
    // The spare row: a killed process may have been writing it.
    final_of_field(row(env, slot_of(steps))) = 0;
  }
  free_finals_.clear();
  for (std::uint32_t index = 0; index < taken.size(); ++index) {
    if (!taken[index]) free_finals_.push_back(index);
  }
  reserved_finals_ = taken.size();
}

std::size_t RowStore::nbytes() const {
  return layout_.finals + (finals_ == nullptr ? 0 : reserved_finals_ * codec_.stored_bytes());
}

}  // namespace wmfast
