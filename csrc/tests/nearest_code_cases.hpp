// Vectors and codes of all sorts, and their nearest codes by the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../nearest_code_kernels.hpp"
#include "wmfast/rng.hpp"

namespace {

using namespace wmfast;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The definition, without blocks, lanes or bounds.
std::int64_t nearest(const float* x, const float* codes, std::size_t k, std::size_t dim) {
  std::vector<float> x_padded(round_up(dim, kLanes), 0.0f), c_padded(x_padded);
  std::copy_n(x, dim, x_padded.begin());
  double least = static_cast<double>(kInfinity);
  std::int64_t best = 0;
  for (std::size_t j = 0; j < k; ++j) {
    std::copy_n(codes + j * dim, dim, c_padded.begin());
    double lanes[kLanes] = {};
    for (std::size_t d = 0; d < x_padded.size(); ++d) {
      const double gap = static_cast<double>(x_padded[d]) - static_cast<double>(c_padded[d]);
      lanes[d % kLanes] += gap * gap;
    }
    for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    if (lanes[0] < least) {
      least = lanes[0];
      best = static_cast<std::int64_t>(j);
    }
  }
  return best;
}

struct Case {
  std::string name;
  std::size_t rows, codes, dim;
  std::vector<float> x, c;
};

float uniform(RngState& rng) { return static_cast<float>(2 * next_unit(rng) - 1); }

Case make_case(const std::string& kind, std::size_t rows, std::size_t codes, std::size_t dim) {
  RngState rng = seed_rng(rows * 1000003 + codes * 1009 + dim);
  Case made{
      kind, rows, codes, dim, std::vector<float>(rows * dim), std::vector<float>(codes * dim)};
  for (float& v : made.x) v = uniform(rng);
  for (float& v : made.c) v = uniform(rng);
  const auto scale = [&](float x_factor, float c_factor) {
    for (float& v : made.x) v *= x_factor;
    for (float& v : made.c) v *= c_factor;
  };
  if (kind == "integers") {
    for (float& v : made.x) v = std::round(2 * v);
    for (float& v : made.c) v = std::round(2 * v);
  } else if (kind == "duplicates") {
    for (std::size_t i = 0; i < made.c.size(); ++i) made.c[i] = made.c[i % ((codes + 1) / 2 * dim)];
  } else if (kind == "near ties") {
    for (std::size_t i = 0; i < made.c.size(); ++i) made.c[i] = made.c[i % dim] + 3e-7f * made.c[i];
    for (std::size_t i = 0; i < made.x.size(); ++i) made.x[i] = made.c[i % made.c.size()];
  } else if (kind == "between codes") {
    for (float& v : made.c) v = from_bfloat16(to_bfloat16(v));  // only the rows are rounded
    for (std::size_t i = 0; i < made.x.size(); ++i) {
      const std::size_t row = i / dim, d = i % dim, other = (7 * row + 3) % codes;
      const float middle = (made.c[row % codes * dim + d] + made.c[other * dim + d]) / 2;
      made.x[i] = middle + 0x1p-14f * made.x[i];
    }
  } else if (kind == "far away") {
    for (float& v : made.x) v += 1e4f;
    for (float& v : made.c) v += 1e4f;
  } else if (kind == "denormal") {
    scale(1e-38f, 1e-39f);
  } else if (kind == "tiny") {
    scale(1e-25f, 1e-25f);
  } else if (kind == "huge") {
    scale(1e37f, 1e37f);
  } else if (kind == "at the edge of the bound") {
    scale(0x1p57f, 0x1p57f);
  } else if (kind == "tiny and huge") {
    scale(1e-25f, 1e12f);
  } else if (kind == "zeros") {
    scale(0.0f, 0.0f);
  } else if (kind == "not finite") {
    made.x[0] = kNan;
    made.x[(rows - 1) * dim] = -kInfinity;
    made.c[0] = kNan;
    made.c[codes / 2 * dim] = kInfinity;
  } else if (kind == "no finite code") {
    for (std::size_t k = 0; k < codes; ++k) made.c[k * dim] = k % 2 == 0 ? kNan : kInfinity;
  }
  return made;
}

const std::vector<std::string> kKinds{"uniform",
                                      "integers",
                                      "duplicates",
                                      "near ties",
                                      "between codes",
                                      "far away",
                                      "denormal",
                                      "tiny",
                                      "huge",
                                      "zeros",
                                      "not finite",
                                      "tiny and huge",
                                      "at the edge of the bound",
                                      "no finite code"};

}  // namespace
