// The draws of TokenReplay as Python sees them; the other calls are in bindings_replay.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "batch.hpp"
#include "wmfast/token_replay.hpp"

namespace wmfast::bindings {

Batch sample(TokenReplay& replay, py::ssize_t batch_size, double beta, bool window,
             std::optional<std::int64_t> n_step, std::optional<double> gamma,
             const py::object& out);

Batch sample_sequences(TokenReplay& replay, py::ssize_t batch_size, py::ssize_t length,
                       const std::optional<std::pair<std::int64_t, double>>& recent,
                       const py::object& out);

// replay[index]: the transitions of an id, or of an array of them.
Batch get(const TokenReplay& replay, const py::object& index);

}  // namespace wmfast::bindings
