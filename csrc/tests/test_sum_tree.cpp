// SumTree against running sums over a plain vector; the random numbers under it.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "wmfast/rng.hpp"
#include "wmfast/sum_tree.hpp"

namespace {

using wmfast::next_below;
using wmfast::next_unit;
using wmfast::SumTree;

std::size_t find_one(const SumTree<double, double>& tree, double target) {
  std::size_t leaf = 0;
  tree.find(std::span(&target, 1), std::span(&leaf, 1));
  return leaf;
}

void counts_are_exact(std::size_t size) {
  wmfast::RngState rng = wmfast::seed_rng(size);
  std::vector<std::uint8_t> leaves(SumTree<std::uint8_t, std::uint32_t>::padded(size));
  std::vector<std::uint32_t> members;
  for (std::size_t i = 0; i < size; ++i) {
    leaves[i] = next_unit(rng) < 0.3 ? 1 : 0;
    if (leaves[i] != 0) members.push_back(static_cast<std::uint32_t>(i));
  }
  const SumTree<std::uint8_t, std::uint32_t> tree(leaves);
  CHECK(tree.total() == members.size());
  std::vector<std::uint32_t> rank(members.size());
  for (std::uint32_t i = 0; i < rank.size(); ++i) rank[i] = i;
  std::vector<std::size_t> found(rank.size());
  tree.find(rank, found);
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(found[i] == members[i]);
    CHECK(tree.prefix(found[i]) == i);
  }
  CHECK(tree.prefix(leaves.size()) == members.size());
}

void draws_follow_the_running_sum(std::size_t size) {
  wmfast::RngState rng = wmfast::seed_rng(size + 1);
  std::vector<double> leaves(SumTree<double, double>::padded(size));
  std::vector<double> looped_leaves = leaves;
  SumTree<double, double> tree(leaves);
  SumTree<double, double> looped(looped_leaves);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::size_t> index(40);
    std::vector<double> weight(40);
    for (std::size_t i = 0; i < index.size(); ++i) {
      index[i] = next_below(rng, static_cast<std::uint32_t>(size));
      weight[i] = next_unit(rng) < 0.3 ? 0.0 : std::exp(40.0 * next_unit(rng) - 20.0);
    }
    tree.set(index, weight);
    for (std::size_t i = 0; i < index.size(); ++i) {
      looped.set(std::span(&index[i], 1), std::span(&weight[i], 1));
    }
    // The last of equal indices wins, and the sums depend on the leaves alone.
    CHECK(leaves == looped_leaves);
    CHECK(tree.total() == looped.total());
    if (tree.total() == 0.0) continue;

    std::vector<double> before(size + 1, 0.0);
    for (std::size_t i = 0; i < size; ++i) before[i + 1] = before[i] + leaves[i];
    const double slack = 1e-12 * before[size];
    CHECK(std::abs(tree.total() - before[size]) <= slack);
    for (int draw = 0; draw < 200; ++draw) {
      const double target = next_unit(rng) * tree.total();
      const std::size_t leaf = find_one(tree, target);
      CHECK(leaves[leaf] > 0.0);
      CHECK(before[leaf] <= target + slack && target <= before[leaf + 1] + slack);
    }
    // Rounding at the end of the range never falls on a leaf without weight.
    CHECK(leaves[find_one(tree, tree.total())] > 0.0);
    CHECK(leaves[find_one(tree, std::nextafter(tree.total(), 0.0))] > 0.0);
    CHECK(leaves[find_one(tree, 0.0)] > 0.0);
  }
}

void rounding_at_block_borders_is_safe() {
  // 0.1 summed eight times is not 0.8: targets at every border of such sums, and beside them.
  std::vector<double> leaves(64 * 8, 0.0);
  for (std::size_t i = 0; i < leaves.size(); i += 3) leaves[i] = 0.1;
  const SumTree<double, double> tree(leaves);
  double border = 0.0;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    border += leaves[i];
    for (const double target : {std::nextafter(border, 0.0), border, std::nextafter(border, 1e9)}) {
      CHECK(leaves[find_one(tree, target)] > 0.0);
    }
  }
}

void random_numbers_are_even() {
  wmfast::RngState rng = wmfast::seed_rng(7);
  std::vector<int> count(10, 0);
  double sum = 0.0;
  for (int i = 0; i < 100000; ++i) {
    ++count[next_below(rng, 10)];
    const double unit = next_unit(rng);
    CHECK(unit >= 0.0 && unit < 1.0);
    sum += unit;
  }
  for (const int times : count) CHECK(times > 9500 && times < 10500);
  CHECK(std::abs(sum / 100000 - 0.5) < 0.005);
  CHECK(next_below(rng, 1) == 0);
  CHECK(wmfast::seed_rng(1) != wmfast::seed_rng(2));
}

}  // namespace

int main() {
  for (const std::size_t size : {1, 7, 8, 9, 63, 64, 65, 511, 513, 5000}) {
    counts_are_exact(size);
    draws_follow_the_running_sum(size);
  }
  rounding_at_block_borders_is_safe();
  random_numbers_are_even();
  return 0;
}
