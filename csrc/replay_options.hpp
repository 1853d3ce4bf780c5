// ReplayOptions checked and turned into the header of a store, and back.
#pragma once

#include "wmfast/row_store.hpp"
#include "wmfast/token_replay.hpp"

namespace wmfast {

// A header with nothing added yet. Throws std::invalid_argument that names the option and what is
// allowed, or OutOfMemory.
ReplayHeader header_of(const ReplayOptions& options);

// The options that made the header; `path` is empty.
ReplayOptions options_of(const ReplayHeader& header);

// gamma^0, gamma^1, ...
void fill_powers(std::span<double> powers, double gamma);

}  // namespace wmfast
