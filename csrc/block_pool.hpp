// Memory for arrays that are made and dropped again and again. Part of the bindings.
//
// A batch of frames is large enough that the C library returns its memory to the system, and takes
// fresh pages for the next one: 336 page faults for 256 histories, five times the cost of filling
// them. Blocks are kept here instead and given out again.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "wmfast/posix_file.hpp"

namespace wmfast::bindings {

// Thread rule: any calls at once.
class BlockPool {
 public:
  static constexpr std::size_t kMostFree = 8;                           // blocks kept
  static constexpr std::size_t kMostBytes = std::size_t{64} << 20;      // of all blocks kept
  static constexpr std::size_t kSmallestBlock = std::size_t{64} << 10;  // less is malloc's work

  // The program's pool. Never destroyed: arrays may outlive the interpreter's last moments.
  static BlockPool& instance();

  // A block of at least `bytes` with arbitrary contents. Throws OutOfMemory.
  std::unique_ptr<Mapping> take(std::size_t bytes);
  void give_back(std::unique_ptr<Mapping> block);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Mapping>> free_;  // the longest unused first
  std::size_t free_bytes_ = 0;
};

}  // namespace wmfast::bindings
