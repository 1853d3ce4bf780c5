// Python face of TokenReplay: arrays to spans and back, the GIL released in between.
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <functional>
#include <initializer_list>
#include <limits>

#include "array_arguments.hpp"
#include "batch.hpp"
#include "bindings.hpp"
#include "block_pool.hpp"
#include "gil_released.hpp"
#include "wmfast/token_replay.hpp"

namespace wmfast::bindings {
namespace {

constexpr char kState[] = "state", kNextState[] = "next_state", kWindow[] = "window",
               kTokens[] = "tokens", kAction[] = "action", kReward[] = "reward",
               kDiscount[] = "discount", kWeight[] = "weight", kIndex[] = "index",
               kTerminated[] = "terminated", kMask[] = "mask";

py::dtype token_dtype(const TokenReplay& replay) {
  return replay.options().dtype == TokenType::kUint8 ? py::dtype::of<std::uint8_t>()
                                                     : py::dtype::of<std::uint16_t>();
}

// A new array; a large one in recycled memory.
py::array new_array(const py::dtype& dtype, const Shape& shape) {
  std::size_t bytes = static_cast<std::size_t>(dtype.itemsize());
  for (const py::ssize_t axis : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(axis), &bytes)) {
      throw OutOfMemory("an array of shape " + shape_text(shape) + " is larger than any memory");
    }
  }
  if (bytes < BlockPool::kSmallestBlock) return {dtype, shape};
  std::unique_ptr<Mapping> block = BlockPool::instance().take(bytes);
  std::byte* const data = block->data();
  const py::capsule owner(block.get(), [](void* held) {
    BlockPool::instance().give_back(std::unique_ptr<Mapping>(static_cast<Mapping*>(held)));
  });
  static_cast<void>(block.release());  // the capsule's now
  return {dtype, shape, data, owner};
}

// The output array `name`: new, or the caller's.
py::array output(const py::object& out, const py::dtype& dtype, const char* name,
                 const Shape& shape) {
  if (out.is_none()) return new_array(dtype, shape);
  const int has = PySequence_Contains(out.ptr(), py::str(name).ptr());
  if (has < 0) throw py::error_already_set();
  if (has == 0) throw py::value_error(std::string("out has no array \"") + name + "\"");
  py::array array = exact_array(out[name], dtype, std::string("out[\"") + name + "\"]", {shape});
  if (!array.writeable()) throw py::value_error(std::string("out[\"") + name + "\"] is read-only");
  return array;
}

template <typename T>
py::array output(const py::object& out, const char* name, const Shape& shape) {
  return output(out, py::dtype::of<T>(), name, shape);
}

ConstTokenSpan tokens_of(const py::array& array) {
  return {static_cast<const std::byte*>(array.data()), static_cast<std::size_t>(array.size()),
          static_cast<std::size_t>(array.itemsize())};
}

TokenSpan tokens_of(py::array& array) {
  return {static_cast<std::byte*>(array.mutable_data()), static_cast<std::size_t>(array.size()),
          static_cast<std::size_t>(array.itemsize())};
}

// The caller's arrays may not share memory: what was written first would be overwritten.
void require_disjoint(const py::object& out,
                      std::initializer_list<std::pair<const char*, const py::array*>> arrays) {
  if (out.is_none()) return;
  for (auto one = arrays.begin(); one != arrays.end(); ++one) {
    for (auto other = arrays.begin(); other != one; ++other) {
      const auto begin = [](const auto& pair) {
        return static_cast<const std::byte*>(pair.second->data());
      };
      const std::less<const std::byte*> before;
      if (before(begin(*one), begin(*other) + other->second->nbytes()) &&
          before(begin(*other), begin(*one) + one->second->nbytes())) {
        throw py::value_error(std::string("out[\"") + other->first + "\"] and out[\"" + one->first +
                              "\"] share memory");
      }
    }
  }
}

void require_positive(const char* what, py::ssize_t value) {
  if (value > 0) return;
  throw py::value_error(std::string(what) + " is " + std::to_string(value) + ", must be positive");
}

py::object slice_axis1(const py::array& array, py::ssize_t begin, py::ssize_t end) {
  return array[py::make_tuple(py::ellipsis(), py::slice(begin, end, 1),
                              py::slice(0, array.shape(2), 1))];
}

std::unique_ptr<TokenReplay> make(std::int64_t capacity, std::int64_t num_envs,
                                  const std::vector<std::int64_t>& frame_shape,
                                  std::int64_t vocab_size, const std::string& dtype,
                                  std::int64_t history, std::int64_t n_step, double gamma,
                                  bool prioritized, double alpha, std::uint64_t seed,
                                  const std::string& autoreset, const std::string& reward_transform,
                                  const std::optional<std::filesystem::path>& path) {
  if (autoreset != "next_step" && autoreset != "same_step") {
    throw py::value_error("autoreset is '" + autoreset + "', allowed are 'next_step', 'same_step'");
  }
  if (reward_transform != "none" && reward_transform != "sign") {
    throw py::value_error("reward_transform is '" + reward_transform +
                          "', allowed are 'none', 'sign'");
  }
  if (dtype != "uint16" && dtype != "uint8") {
    throw py::value_error("dtype is '" + dtype + "', allowed are 'uint16', 'uint8'");
  }
  if (path && path->empty()) throw py::value_error("path is '', must name a file");
  ReplayOptions options{
      .capacity = capacity,
      .num_envs = num_envs,
      .frame_shape = frame_shape,
      .vocab_size = vocab_size,
      .dtype = dtype == "uint8" ? TokenType::kUint8 : TokenType::kUint16,
      .history = history,
      .n_step = n_step,
      .gamma = gamma,
      .prioritized = prioritized,
      .alpha = alpha,
      .seed = seed,
      .autoreset = autoreset == "same_step" ? Autoreset::kSameStep : Autoreset::kNextStep,
      .reward_transform =
          reward_transform == "sign" ? RewardTransform::kSign : RewardTransform::kNone,
      .path = path.value_or(std::filesystem::path())};
  const GilReleased release;
  return std::make_unique<TokenReplay>(options);
}

void add(TokenReplay& replay, const py::object& frames, const py::object& actions,
         const py::object& rewards, const py::object& terminated, const py::object& truncated,
         const py::object& final_frames, const py::object& life_lost) {
  const auto envs = static_cast<py::ssize_t>(replay.num_envs());
  const auto tokens = static_cast<py::ssize_t>(replay.frame_tokens());
  const py::dtype dtype = token_dtype(replay);
  const auto frames_of = [&](const py::object& object, const char* name) {
    if (is_plain(object, dtype, {envs, tokens})) return py::reinterpret_borrow<py::array>(object);
    Shape full{envs};
    for (const std::int64_t axis : replay.options().frame_shape) full.push_back(axis);
    return exact_array(object, dtype, name, {{envs, tokens}, full});
  };
  const auto flags = [envs](const py::object& object, const char* name) {
    return short_vector<bool>(object, name, envs, "b", "bool");
  };
  const py::array frames_array = frames_of(frames, "frames");
  const auto actions_array =
      short_vector<std::int64_t>(actions, "actions", envs, "iu", "an integer type");
  const auto rewards_array =
      short_vector<float>(rewards, "rewards", envs, "fiu", "a real number type");
  const auto terminated_array = flags(terminated, "terminated");
  const auto truncated_array = flags(truncated, "truncated");
  py::array final_array, life_array;
  StepInput step;
  const auto bytes = [](const py::array& array) {
    return std::span(static_cast<const std::uint8_t*>(array.data()),
                     static_cast<std::size_t>(array.size()));
  };
  step.frames = tokens_of(frames_array);
  step.actions = view<std::int64_t>(actions_array);
  step.rewards = view<float>(rewards_array);
  step.terminated = bytes(terminated_array);
  step.truncated = bytes(truncated_array);
  if (!final_frames.is_none()) {
    final_array = frames_of(final_frames, "final_frames");
    step.final_frames = tokens_of(std::as_const(final_array));
  }
  if (!life_lost.is_none()) {
    life_array = flags(life_lost, "life_lost");
    step.life_lost = bytes(life_array);
  }
  const GilReleased release;
  replay.add(step);
}

Batch sample(TokenReplay& replay, py::ssize_t batch_size, double beta, bool window,
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
    replay.sample(target, beta);
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
  require_disjoint(out, {{"tokens", &tokens},
                         {"action", &action},
                         {"reward", &reward},
                         {"terminated", &terminated},
                         {"mask", &mask}});
  const auto bytes = [](py::array& array) {
    return std::span(static_cast<std::uint8_t*>(array.mutable_data()),
                     static_cast<std::size_t>(array.size()));
  };
  SequenceOutput target{.length = length,
                        .tokens = tokens_of(tokens),
                        .action = mutable_view<std::int64_t>(action),
                        .reward = mutable_view<float>(reward),
                        .terminated = bytes(terminated),
                        .mask = bytes(mask)};
  std::optional<Recent> window;
  if (recent) window = Recent{recent->first, recent->second};
  {
    const GilReleased release;
    replay.sample_sequences(target, window);
  }
  return Batch({{"tokens", tokens},
                {"action", action},
                {"reward", reward},
                {"terminated", terminated},
                {"mask", mask}});
}

std::int64_t update_priorities(TokenReplay& replay, const py::object& index,
                               const py::object& priority) {
  const auto count = static_cast<py::ssize_t>(py::len(index));
  const auto ids = short_vector<std::int64_t>(index, "index", count, "iu", "an integer type");
  const auto values =
      short_vector<double>(priority, "priority", count, "fiu", "a real number type");
  const GilReleased release;
  return replay.update_priorities(view<std::int64_t>(ids), view<double>(values));
}

// replay[index]: the transitions of an id, or of an array of them.
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

py::array_t<EpisodeRecord> episodes(const TokenReplay& replay) {
  std::vector<EpisodeRecord> found;
  {
    const GilReleased release;
    found = replay.episodes();
  }
  return py::array_t<EpisodeRecord>(static_cast<py::ssize_t>(found.size()), found.data());
}

py::dict stats(const TokenReplay& replay) {
  ReplayStats stats;
  {
    const GilReleased release;
    stats = replay.stats();
  }
  py::dict result;
  result["added"] = stats.added;
  result["stored"] = stats.stored;
  result["fill"] = stats.fill;
  result["drawable"] = stats.drawable;
  result["episodes"] = stats.episodes;
  result["inserts"] = stats.inserts;
  result["samples"] = stats.sampled;
  result["sampled"] = stats.sampled;  // the name of old
  result["mean_sample_age"] = stats.mean_sample_age;
  result["updated"] = stats.updated;
  result["skipped"] = stats.skipped;
  result["stale_update_share"] = stats.stale_update_share;
  result["max_priority"] = stats.max_priority;
  result["priority_sum"] = stats.priority_sum;
  return result;
}

template <const char*... kNames>
void bind_each(py::class_<Batch>& batch) {
  (batch.def_property_readonly(kNames, &Batch::property<kNames>), ...);
}

void bind_properties(py::class_<Batch>& batch) {
  bind_each<kState, kNextState, kWindow, kTokens, kAction, kReward, kDiscount, kWeight, kIndex,
            kTerminated, kMask>(batch);
}

std::string text(const TokenReplay& replay) {
  const ReplayOptions& options = replay.options();
  return "TokenReplay(capacity=" + std::to_string(options.capacity) +
         ", num_envs=" + std::to_string(options.num_envs) +
         ", stored=" + std::to_string(replay.size()) + ")";
}

// Text with a file's name in it, which need not be UTF-8.
py::object text_of_path(const std::string& text) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<py::ssize_t>(text.size())));
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const FileError& error) {
    // OSError(errno, text, filename) picks FileNotFoundError and its like by itself.
    const py::tuple arguments =
        py::make_tuple(error.code(), error.what(), text_of_path(error.path().string()));
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  } catch (const std::invalid_argument& error) {
    PyErr_SetObject(PyExc_ValueError, text_of_path(error.what()).ptr());
  }
}

}  // namespace

void bind_replay(py::module_& module) {
  py::register_exception_translator(&translate);
  py::class_<Batch> batch(module, "Batch");
  batch.def("__getitem__", &Batch::get)
      .def("__getattr__", &Batch::attribute)
      .def("__contains__", &Batch::has)
      .def("__iter__", [](const Batch& batch) { return py::iter(py::cast(batch.keys())); })
      .def("keys", &Batch::keys)
      .def("__repr__", &Batch::text);
  bind_properties(batch);

  using namespace py::literals;
  const auto option = [](auto member) {
    return [member](const TokenReplay& replay) { return replay.options().*member; };
  };
  const auto release = py::call_guard<GilReleased>();
  PYBIND11_NUMPY_DTYPE(EpisodeRecord, env, first_id, length, reward, terminated, truncated, open,
                       whole);
  py::class_<TokenReplay> replay(module, "TokenReplay");
  // Ids are no positions from 0 on: without these, Python would count through __getitem__.
  for (const char* name : {"__iter__", "__reversed__", "__contains__"}) {
    replay.attr(name) = py::none();
  }
  replay
      .def(py::init(&make), "capacity"_a, "num_envs"_a, py::kw_only(),
           "frame_shape"_a = std::vector<std::int64_t>{21, 16}, "vocab_size"_a = 512,
           "dtype"_a = "uint16", "history"_a = 4, "n_step"_a = 1, "gamma"_a = 0.99,
           "prioritized"_a = true, "alpha"_a = 0.6, "seed"_a = 0, "autoreset"_a = "next_step",
           "reward_transform"_a = "none", "path"_a = py::none())
      .def("add", &add, "frames"_a, "actions"_a, "rewards"_a, "terminated"_a, "truncated"_a,
           py::kw_only(), "final_frames"_a = py::none(), "life_lost"_a = py::none())
      .def("cut", &TokenReplay::cut, release)
      .def("sample", &sample, "batch_size"_a, py::kw_only(), "beta"_a = 0.4, "window"_a = false,
           "out"_a = py::none())
      .def("sample_sequences", &sample_sequences, "batch_size"_a, "length"_a, py::kw_only(),
           "recent"_a = py::none(), "out"_a = py::none())
      .def("update_priorities", &update_priorities, "index"_a, "priority"_a)
      .def("save", &TokenReplay::save, "path"_a, release)
      .def_static("load", &TokenReplay::load, "path"_a, release)
      .def("stats", &stats)
      .def("episodes", &episodes)
      .def("__getitem__", &get, "index"_a)
      .def("__len__", &TokenReplay::size, release)
      .def("__repr__", &text, release)
      .def_property_readonly("nbytes", py::cpp_function(&TokenReplay::nbytes, release))
      .def_property_readonly("capacity", option(&ReplayOptions::capacity))
      .def_property_readonly("num_envs", option(&ReplayOptions::num_envs))
      .def_property_readonly("frame_shape",
                             [](const TokenReplay& replay) {
                               return py::tuple(py::cast(replay.options().frame_shape));
                             })
      .def_property_readonly("vocab_size", option(&ReplayOptions::vocab_size))
      .def_property_readonly("dtype", &token_dtype)
      .def_property_readonly("isa", [](const TokenReplay& replay) { return name_of(replay.isa()); })
      .def_property_readonly("history", option(&ReplayOptions::history))
      .def_property_readonly("n_step", option(&ReplayOptions::n_step))
      .def_property_readonly("gamma", option(&ReplayOptions::gamma))
      .def_property_readonly("prioritized", option(&ReplayOptions::prioritized))
      .def_property_readonly("alpha", option(&ReplayOptions::alpha));
}

}  // namespace wmfast::bindings
