// Draws of TokenReplay: output arrays, the call with the GIL released, a Batch.
#include <pybind11/stl.h>

#include <limits>

#include "bindings_replay.hpp"
#include "gil_released.hpp"
#include "replay_arrays.hpp"

namespace wmfast::bindings {
namespace {

void require_positive(const char* what, py::ssize_t value) {
  if (value > 0) return;
  throw py::value_error(std::string(what) + " is " + std::to_string(value) + ", must be positive");
}

py::object slice_axis1(const py::array& array, py::ssize_t begin, py::ssize_t end) {
  return array[py::make_tuple(py::ellipsis(), py::slice(begin, end, 1),
                              py::slice(0, array.shape(2), 1))];
}

}  // namespace

Batch sample(TokenReplay& replay, py::ssize_t batch_size, double beta, bool window,
             std::optional<std::int64_t> n_step, std::optional<double> gamma,
             const py::object& out) {
  require_positive("batch_size", batch_size);
  const auto history = static_cast<py::ssize_t>(replay.options().history);
  const auto tokens = static_cast<py::ssize_t>(replay.frame_tokens());
  const Shape stack{batch_size, history, tokens};
  const py::dtype dtype = token_dtype(replay);
  py::array state, next_state, frames;
  TransitionOutput target;
  if (window) {
    frames = output(out, dtype, "window", {batch_size, history + 1, tokens});
    target.window = tokens_of(frames);
  } else {
    state = output(out, dtype, "state", stack);
    next_state = output(out, dtype, "next_state", stack);
    target.state = tokens_of(state);
    target.next_state = tokens_of(next_state);
  }
  py::array action = output<std::int64_t>(out, "action", {batch_size});
  py::array reward = output<float>(out, "reward", {batch_size});
  py::array discount = output<float>(out, "discount", {batch_size});
  py::array weight = output<float>(out, "weight", {batch_size});
  py::array index = output<std::int64_t>(out, "index", {batch_size});
  if (window) {
    require_disjoint(out, {{"window", &frames},
                           {"action", &action},
                           {"reward", &reward},
                           {"discount", &discount},
                           {"weight", &weight},
                           {"index", &index}});
  } else {
    require_disjoint(out, {{"state", &state},
                           {"next_state", &next_state},
                           {"action", &action},
                           {"reward", &reward},
                           {"discount", &discount},
                           {"weight", &weight},
                           {"index", &index}});
  }
  target.action = mutable_view<std::int64_t>(action);
  target.reward = mutable_view<float>(reward);
  target.discount = mutable_view<float>(discount);
  target.weight = mutable_view<float>(weight);
  target.index = mutable_view<std::int64_t>(index);
  {
    const GilReleased release;
    replay.sample(target, beta, {.n_step = n_step, .gamma = gamma});
  }
  Fields fields;
  if (window) {
    fields = {{"window", frames},
              {"state", slice_axis1(frames, 0, history)},
              {"next_state", slice_axis1(frames, 1, history + 1)}};
  } else {
    fields = {{"state", state}, {"next_state", next_state}};
  }
  fields.insert(fields.end(), {{"action", action},
                               {"reward", reward},
                               {"discount", discount},
                               {"weight", weight},
                               {"index", index}});
  return Batch(std::move(fields));
}

Batch sample_sequences(TokenReplay& replay, py::ssize_t batch_size, py::ssize_t length,
                       const std::optional<std::pair<std::int64_t, double>>& recent,
                       const py::object& out) {
  require_positive("batch_size", batch_size);
  require_positive("length", length);
  if (length > std::numeric_limits<std::int32_t>::max()) {
    throw py::value_error("length is " + std::to_string(length) + ", allowed are 1 to 2147483647");
  }
  const auto history = static_cast<py::ssize_t>(replay.options().history);
  const auto tokens_per_frame = static_cast<py::ssize_t>(replay.frame_tokens());
  const Shape steps{batch_size, length};
  py::array tokens =
      output(out, token_dtype(replay), "tokens", {batch_size, history + length, tokens_per_frame});
  py::array action = output<std::int64_t>(out, "action", steps);
  py::array reward = output<float>(out, "reward", steps);
  py::array terminated = output<bool>(out, "terminated", steps);
  py::array mask = output<bool>(out, "mask", steps);
  const bool with_lives = out.is_none() || out.contains("life_lost");
  py::array life_lost = with_lives ? output<bool>(out, "life_lost", steps) : py::array();
  std::vector<std::pair<const char*, const py::array*>> arrays{{"tokens", &tokens},
                                                               {"action", &action},
                                                               {"reward", &reward},
                                                               {"terminated", &terminated},
                                                               {"mask", &mask}};
  if (with_lives) arrays.emplace_back("life_lost", &life_lost);
  require_disjoint(out, arrays);
  const auto bytes = [](py::array& array) {
    return std::span(static_cast<std::uint8_t*>(array.mutable_data()),
                     static_cast<std::size_t>(array.size()));
  };
  SequenceOutput target{.length = length,
                        .tokens = tokens_of(tokens),
                        .action = mutable_view<std::int64_t>(action),
                        .reward = mutable_view<float>(reward),
                        .terminated = bytes(terminated),
                        .mask = bytes(mask),
                        .life_lost = {}};
  if (with_lives) target.life_lost = bytes(life_lost);
  std::optional<Recent> window;
  if (recent) window = Recent{recent->first, recent->second};
  {
    const GilReleased release;
    replay.sample_sequences(target, window);
  }
  Fields fields{{"tokens", tokens},
                {"action", action},
                {"reward", reward},
                {"terminated", terminated},
                {"mask", mask}};
  if (with_lives) fields.emplace_back("life_lost", life_lost);
  return Batch(std::move(fields));
}

Batch get(const TokenReplay& replay, const py::object& index) {
  const bool many = (py::isinstance<py::array>(index) && index.cast<py::array>().ndim() > 0) ||
                    py::isinstance<py::list>(index);
  if (!many && (!PyIndex_Check(index.ptr()) || PyBool_Check(index.ptr()))) {
    throw py::type_error("an id or an array of ids is wanted, this is a " +
                         py::str(py::type::of(index).attr("__name__")).cast<std::string>());
  }
  std::int64_t id = 0;
  py::array_t<std::int64_t> ids;
  if (many) {
    const auto count = static_cast<py::ssize_t>(py::len(index));
    ids = short_vector<std::int64_t>(index, "index", count, "iu", "an integer type");
  } else {
    id = static_cast<std::int64_t>(PyNumber_AsSsize_t(index.ptr(), PyExc_IndexError));
    if (PyErr_Occurred()) {
      PyErr_Clear();
      throw py::index_error("index is " + py::str(index).cast<std::string>() + ": never issued");
    }
  }
  const std::span<const std::int64_t> wanted =
      many ? view<std::int64_t>(ids) : std::span<const std::int64_t>(&id, 1);
  const auto count = static_cast<py::ssize_t>(wanted.size());
  const Shape stack{count, static_cast<py::ssize_t>(replay.options().history),
                    static_cast<py::ssize_t>(replay.frame_tokens())};
  const py::dtype dtype = token_dtype(replay);
  py::array state = new_array(dtype, stack);
  py::array next_state = new_array(dtype, stack);
  py::array action = new_array(py::dtype::of<std::int64_t>(), {count});
  py::array reward = new_array(py::dtype::of<float>(), {count});
  py::array discount = new_array(py::dtype::of<float>(), {count});
  py::array drawn = new_array(py::dtype::of<std::int64_t>(), {count});
  const TransitionOutput target{.state = tokens_of(state),
                                .next_state = tokens_of(next_state),
                                .window = {},
                                .action = mutable_view<std::int64_t>(action),
                                .reward = mutable_view<float>(reward),
                                .discount = mutable_view<float>(discount),
                                .weight = {},
                                .index = mutable_view<std::int64_t>(drawn)};
  {
    const GilReleased release;
    replay.get(wanted, target);
  }
  const auto field = [many](const py::array& array) -> py::object {
    if (many) return array;
    return array[py::int_(0)];
  };
  return Batch({{kState, field(state)},
                {kNextState, field(next_state)},
                {kAction, field(action)},
                {kReward, field(reward)},
                {kDiscount, field(discount)},
                {kIndex, field(drawn)}});
}

}  // namespace wmfast::bindings
