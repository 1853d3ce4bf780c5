// TokenReplay: snapshots.
//
//   header (4096 bytes, ReplayHeader and zeros) | the used runs of the store | uint64 checksum
//
// The checksum is over all before it, in pieces of at most kPiece bytes.
#include <algorithm>
#include <cstring>

#include "replay_options.hpp"
#include "wmfast/checksum.hpp"
#include "wmfast/token_replay.hpp"

namespace wmfast {
namespace {

constexpr std::size_t kPiece = std::size_t{4} << 20;
using HeaderPage = std::array<std::byte, kHeaderBytes>;

// Calls `use` with each piece of the runs, in file order.
template <typename Use>
void for_each_piece(const std::vector<RowStore::Run>& runs, Use use) {
  for (const RowStore::Run& run : runs) {
    for (std::size_t at = 0; at < run.bytes; at += kPiece) {
      use(std::span<std::byte>(run.data + at, std::min(kPiece, run.bytes - at)));
    }
  }
}

// Bytes of a whole snapshot with this header; as RowStore::used_runs.
std::uint64_t snapshot_bytes(const ReplayHeader& header) {
  const std::uint64_t rows = std::min(header.steps, header.slots()) * header.num_envs;
  const std::uint64_t row_bytes = header.row_bytes() + (header.prioritized ? sizeof(double) : 0);
  const std::uint64_t final_bytes =
      header.same_step ? header.final_slots * header.codec(Isa::kScalar).stored_bytes() : 0;
  return kHeaderBytes + rows * row_bytes + final_bytes + sizeof(std::uint64_t);
}

// The rename would cut a store off from its name: all it holds would be lost with its process.
void refuse_live_store(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return;
  File file(path, File::Mode::kRead);
  std::array<char, kLiveMagic.size()> magic{};
  if (file.size() < magic.size()) return;
  file.read(std::as_writable_bytes(std::span(magic)));
  if (magic == kLiveMagic) {
    throw std::invalid_argument(path.string() +
                                ": is a live store, a snapshot would replace it: save elsewhere");
  }
}

}  // namespace

void TokenReplay::save(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  ReplayHeader header = header_of(options_);
  header.magic = kSnapshotMagic;
  header.version = kSnapshotVersion;
  header.fixed_check = header.check_of_fixed();
  const ReplayHeader& now = store_.header();
  header.steps = now.steps;
  header.steps_check = now.steps_check;
  header.cut_at = now.cut_at;
  header.max_priority = now.max_priority;
  header.rng = now.rng;
  header.final_slots = now.final_slots;
  header.forgotten = now.forgotten;
  HeaderPage page{};
  std::memcpy(page.data(), &header, sizeof(header));

  std::filesystem::path beside = path;
  beside += ".tmp";
  refuse_live_store(path);
  File file(beside, File::Mode::kCreate);
  try {
    Checksum sum;
    sum.add(page);
    file.write(page);
    for_each_piece(store_.used_runs(), [&](std::span<std::byte> piece) {
      sum.add(piece);
      file.write(piece);
    });
    const std::uint64_t value = sum.value();
    file.write(bytes_of(&value, 1));
    file.sync();
    file.rename_to(path);
  } catch (...) {
    std::error_code ignored;
    if (file.path() == beside) std::filesystem::remove(beside, ignored);
    throw;
  }
}

std::unique_ptr<TokenReplay> TokenReplay::load(const std::filesystem::path& path) {
  File file(path, File::Mode::kRead);
  HeaderPage page;
  file.read(page);
  ReplayHeader header;
  std::memcpy(&header, page.data(), sizeof(header));
  check_header(header, kSnapshotMagic, path);
  const std::uint64_t expected = snapshot_bytes(header);
  const std::uint64_t first = header.forgotten & kSealedMask;
  if (header.forgotten != sealed_step(first) || first > header.steps) {
    throw DamagedFile(path, "damaged snapshot: the header's first step is wrong");
  }
  if (header.final_slots > header.rows() || file.size() != expected) {
    throw DamagedFile(path, "damaged snapshot: it is " + std::to_string(file.size()) +
                                " bytes long, should be " + std::to_string(expected));
  }
  auto replay = std::make_unique<TokenReplay>(options_of(header));
  ReplayHeader& now = replay->store_.header();
  now.steps = header.steps;
  now.steps_check = check_of_steps(header.steps);
  now.cut_at = header.cut_at;
  now.max_priority = header.max_priority;
  now.rng = header.rng;
  now.final_slots = header.final_slots;
  now.forgotten = header.forgotten;
  replay->store_.find_head();

  Checksum sum;
  sum.add(page);
  for_each_piece(replay->store_.used_runs(), [&](std::span<std::byte> piece) {
    file.read(piece);
    sum.add(piece);
  });
  std::uint64_t value = 0;
  file.read(std::as_writable_bytes(std::span(&value, 1)));
  if (value != sum.value())
    throw DamagedFile(path, "damaged snapshot: the checksum does not match");
  replay->store_.rebuild_free_finals();
  replay->build_trees(false);
  return replay;
}

}  // namespace wmfast
