// A tree of sums with eight children a node, for drawing rows by weight.
//
//   levels_[1]      [ S ]                                      root block: at most 8 nodes
//   levels_[0]      [ s0 | s1 | ... | s7 ]                     s_i = sum of leaves 8i .. 8i+7
//   leaves   [ w0 .. w7 | w8 .. w15 | ... | w56 .. w63 ]       in the caller's memory
//
// A block of eight doubles is one cache line, so a search in a million leaves touches seven lines.
// A node is always recomputed from its children, never moved by a difference: the sums don't drift,
// and they depend on the leaves alone, not on the order of the updates. A leaf of weight zero is
// never found.
//
// The caller owns the leaves, keeps them alive, and changes them only through `set`, or directly
// and then `rebuild`s. Not thread-safe.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <span>
#include <vector>

#include "wmfast/posix_file.hpp"

namespace wmfast {

template <typename Leaf, typename Node>
class SumTree {
 public:
  static constexpr std::size_t kWidth = 8;

  // Leaves that a tree over `count` rows needs: rounded up to whole blocks.
  static constexpr std::size_t padded(std::size_t count) {
    return (count + kWidth - 1) / kWidth * kWidth;
  }

  // `leaves.size()` is a positive multiple of 8; the sums are built from what it holds. O(leaves).
  explicit SumTree(std::span<Leaf> leaves)
      : leaves_(leaves), nodes_(sizeof(Node) * node_count(leaves.size())) {
    assert(!leaves.empty() && leaves.size() % kWidth == 0);
    auto* at = reinterpret_cast<Node*>(nodes_.data());
    for (const std::size_t size : level_sizes(leaves.size())) {
      levels_.emplace_back(at, size);
      at += size;
    }
    rebuild();
  }

  // Recomputes every node from the leaves. O(leaves).
  void rebuild() {
    for (std::size_t i = 0; i < leaves_.size() / kWidth; ++i) {
      levels_[0][i] = block_sum(&leaves_[i * kWidth]);
    }
    for (std::size_t level = 1; level < levels_.size(); ++level) {
      for (std::size_t i = 0; i < levels_[level - 1].size() / kWidth; ++i) {
        levels_[level][i] = block_sum(&levels_[level - 1][i * kWidth]);
      }
    }
  }

  Node total() const { return block_sum(levels_.back().data()); }

  Leaf operator[](std::size_t leaf) const { return leaves_[leaf]; }

  // Bytes of the nodes, without the caller's leaves.
  std::size_t nbytes() const {
    std::size_t bytes = 0;
    for (const auto& level : levels_) bytes += level.size() * sizeof(Node);
    return bytes;
  }

  // Sum of the leaves before `leaf` (which may be the number of leaves). O(log leaves).
  Node prefix(std::size_t leaf) const {
    if (leaf == leaves_.size()) return total();
    Node sum{0};
    for (std::size_t i = leaf / kWidth * kWidth; i < leaf; ++i) sum += Node{leaves_[i]};
    for (const auto& level : levels_) {
      leaf /= kWidth;
      for (std::size_t i = leaf / kWidth * kWidth; i < leaf; ++i) sum += level[i];
    }
    return sum;
  }

  // leaves[index[i]] = weight[i] in order, so that the last of equal indices wins; then the nodes
  // above, level by level. Weights are finite and not negative. O(batch * log leaves).
  void set(std::span<const std::size_t> index, std::span<const Leaf> weight) {
    assert(index.size() == weight.size());
    for (std::size_t i = 0; i < index.size(); ++i) {
      leaves_[index[i]] = weight[i];
      __builtin_prefetch(&levels_[0][index[i] / kWidth], 1);
    }
    std::size_t divisor = kWidth;
    for (std::size_t level = 0; level < levels_.size(); ++level, divisor *= kWidth) {
      std::size_t last = levels_[level].size();
      for (const std::size_t leaf : index) {
        const std::size_t node = leaf / divisor;
        if (node == last) continue;  // neighbours share their ancestors
        last = node;
        levels_[level][node] = level == 0 ? block_sum(&leaves_[node * kWidth])
                                          : block_sum(&levels_[level - 1][node * kWidth]);
      }
    }
  }

  // For each target in [0, total()): the leaf where the running sum passes it. Needs total() > 0.
  // Descents go down in lock-step, so that their cache misses overlap. O(batch * log leaves).
  void find(std::span<const Node> target, std::span<std::size_t> leaf) const {
    assert(target.size() == leaf.size());
    constexpr std::size_t kGroup = 16;
    Node rest[kGroup];
    for (std::size_t begin = 0; begin < target.size(); begin += kGroup) {
      const std::size_t count = std::min(kGroup, target.size() - begin);
      std::size_t* at = &leaf[begin];
      for (std::size_t j = 0; j < count; ++j) {
        rest[j] = target[begin + j];
        at[j] = 0;
      }
      for (std::size_t level = levels_.size(); level-- > 0;) {
        for (std::size_t j = 0; j < count; ++j) {
          at[j] = at[j] * kWidth + descend(&levels_[level][at[j] * kWidth], rest[j]);
          // The other descents of the group are worked on while this one's next block comes.
          if (level > 0) {
            __builtin_prefetch(&levels_[level - 1][at[j] * kWidth]);
          } else {
            __builtin_prefetch(&leaves_[at[j] * kWidth]);
          }
        }
      }
      for (std::size_t j = 0; j < count; ++j) {
        at[j] = at[j] * kWidth + descend(&leaves_[at[j] * kWidth], rest[j]);
      }
    }
  }

 private:
  // Nodes of each level, the lowest first.
  static std::vector<std::size_t> level_sizes(std::size_t leaves) {
    std::size_t blocks = leaves / kWidth;
    std::vector<std::size_t> sizes{padded(blocks)};
    while (blocks > kWidth) {
      blocks = (blocks + kWidth - 1) / kWidth;
      sizes.push_back(padded(blocks));
    }
    return sizes;
  }
  static std::size_t node_count(std::size_t leaves) {
    std::size_t count = 0;
    for (const std::size_t size : level_sizes(leaves)) count += size;
    return count;
  }

  template <typename Child>
  static Node block_sum(const Child* child) {
    Node sum{0};
    for (std::size_t i = 0; i < kWidth; ++i) sum += Node{child[i]};
    return sum;
  }

  // The child in which `rest` falls; `rest` becomes the remainder inside it. Rounding may leave
  // `rest` at or past the sum of the block: then the last child of positive weight takes it.
  template <typename Child>
  static std::size_t descend(const Child* child, Node& rest) {
    Node before[kWidth + 1];
    before[0] = Node{0};
    std::size_t pick = 0;
    for (std::size_t i = 0; i < kWidth; ++i) {
      before[i + 1] = before[i] + Node{child[i]};
      pick += before[i + 1] <= rest ? 1u : 0u;
    }
    if (pick == kWidth) [[unlikely]] {
      pick = kWidth - 1;
      while (pick > 0 && child[pick] == Child{0}) --pick;
    }
    rest -= before[pick];
    return pick;
  }

  std::span<Leaf> leaves_;
  Mapping nodes_;  // in large pages where there are any: draws go all over it
  std::vector<std::span<Node>> levels_;
};

}  // namespace wmfast
