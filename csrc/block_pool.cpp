#include "block_pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace wmfast::bindings {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;

std::size_t rounded(std::size_t bytes) {
  const std::size_t unit = bytes >= kHugePage / 2 ? kHugePage : kPage;
  return (bytes + unit - 1) / unit * unit;
}

// A mapping takes its pages when they are written: beyond what the machine has, the process would
// be killed in the middle of a draw.
void require_memory(std::size_t bytes) {
  static const double have = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) *
                             static_cast<double>(::sysconf(_SC_PAGE_SIZE));
  if (static_cast<double>(bytes) > have) {
    throw OutOfMemory("an array of " + std::to_string(bytes) +
                      " bytes does not fit the machine's " +
                      std::to_string(static_cast<std::uint64_t>(have)));
  }
}

}  // namespace

BlockPool& BlockPool::instance() {
  static BlockPool* const pool = new BlockPool;
  return *pool;
}

std::unique_ptr<Mapping> BlockPool::take(std::size_t bytes) {
  require_memory(bytes);
  const std::size_t size = rounded(bytes);
  {
    const std::lock_guard lock(mutex_);
    // The last one given back is the warmest in the caches.
    const auto fits = [size](const std::unique_ptr<Mapping>& block) {
      return block->size() == size;
    };
    const auto found = std::find_if(free_.rbegin(), free_.rend(), fits);
    if (found != free_.rend()) {
      std::unique_ptr<Mapping> block = std::move(*found);
      free_.erase(std::next(found).base());
      free_bytes_ -= size;
      return block;
    }
  }
  return std::make_unique<Mapping>(size);
}

void BlockPool::give_back(std::unique_ptr<Mapping> block) {
  std::vector<std::unique_ptr<Mapping>> dropped;  // unmapped without the lock
  const std::lock_guard lock(mutex_);
  if (block->size() > kMostBytes) return;
  free_bytes_ += block->size();
  free_.push_back(std::move(block));
  while (free_.size() > kMostFree || free_bytes_ > kMostBytes) {
    free_bytes_ -= free_.front()->size();
    dropped.push_back(std::move(free_.front()));
    free_.erase(free_.begin());
  }
}

}  // namespace wmfast::bindings
