// Python face of TokenReplay: arrays to spans and back, the GIL released in between.
#include "bindings_replay.hpp"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "bindings.hpp"
#include "docstrings.hpp"
#include "gil_released.hpp"
#include "replay_arrays.hpp"

namespace wmfast::bindings {
namespace {

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

std::int64_t update_priorities(TokenReplay& replay, const py::object& index,
                               const py::object& priority) {
  const auto count = static_cast<py::ssize_t>(py::len(index));
  const auto ids = short_vector<std::int64_t>(index, "index", count, "iu", "an integer type");
  const auto values =
      short_vector<double>(priority, "priority", count, "fiu", "a real number type");
  const GilReleased release;
  return replay.update_priorities(view<std::int64_t>(ids), view<double>(values));
}

std::int64_t rewrite(TokenReplay& replay, const py::object& index, const py::object& frames) {
  const auto count = static_cast<py::ssize_t>(py::len(index));
  const auto ids = short_vector<std::int64_t>(index, "index", count, "iu", "an integer type");
  Shape full{count};
  for (const std::int64_t axis : replay.options().frame_shape) full.push_back(axis);
  const Shape flat{count, static_cast<py::ssize_t>(replay.frame_tokens())};
  const py::array array = exact_array(frames, token_dtype(replay), "frames", {flat, full});
  const GilReleased release;
  return replay.rewrite(view<std::int64_t>(ids), tokens_of(array));
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
  result["rewritten"] = stats.rewritten;
  result["forgotten"] = stats.forgotten;
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
  py::class_<Batch> batch(module, "Batch", docstring("Batch"));
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
  py::class_<TokenReplay> replay(module, "TokenReplay", docstring("TokenReplay"));
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
      .def("add", &add, docstring("TokenReplay.add"), "frames"_a, "actions"_a, "rewards"_a,
           "terminated"_a, "truncated"_a, py::kw_only(), "final_frames"_a = py::none(),
           "life_lost"_a = py::none())
      .def("cut", &TokenReplay::cut, docstring("TokenReplay.cut"), release)
      .def("sample", &sample, docstring("TokenReplay.sample"), "batch_size"_a, py::kw_only(),
           "beta"_a = 0.4, "window"_a = false, "n_step"_a = py::none(), "gamma"_a = py::none(),
           "out"_a = py::none())
      .def("sample_sequences", &sample_sequences, docstring("TokenReplay.sample_sequences"),
           "batch_size"_a, "length"_a, py::kw_only(), "recent"_a = py::none(), "out"_a = py::none())
      .def("update_priorities", &update_priorities, docstring("TokenReplay.update_priorities"),
           "index"_a, "priority"_a)
      .def("rewrite", &rewrite, docstring("TokenReplay.rewrite"), "index"_a, "frames"_a)
      .def("forget", &TokenReplay::forget, docstring("TokenReplay.forget"), "before_id"_a, release)
      .def("save", &TokenReplay::save, docstring("TokenReplay.save"), "path"_a, release)
      .def_static("load", &TokenReplay::load, docstring("TokenReplay.load"), "path"_a, release)
      .def("stats", &stats, docstring("TokenReplay.stats"))
      .def("episodes", &episodes, docstring("TokenReplay.episodes"))
      .def("__getitem__", &get, docstring("TokenReplay.__getitem__"), "index"_a)
      .def("__len__", &TokenReplay::size, docstring("TokenReplay.__len__"), release)
      .def("__repr__", &text, release)
      .def("__reduce__",
           [](const TokenReplay&) -> py::object {
             throw py::type_error(
                 "a TokenReplay can't be pickled or copied: save(path) it, then "
                 "TokenReplay.load(path)");
           })
      .def_property_readonly("nbytes", py::cpp_function(&TokenReplay::nbytes, release),
                             docstring("TokenReplay.nbytes"))
      .def_property_readonly("capacity", option(&ReplayOptions::capacity))
      .def_property_readonly("num_envs", option(&ReplayOptions::num_envs))
      .def_property_readonly("frame_shape",
                             [](const TokenReplay& replay) {
                               return py::tuple(py::cast(replay.options().frame_shape));
                             })
      .def_property_readonly("vocab_size", option(&ReplayOptions::vocab_size))
      .def_property_readonly("dtype", &token_dtype)
      .def_property_readonly(
          "isa", [](const TokenReplay& replay) { return name_of(replay.isa()); },
          docstring("TokenReplay.isa"))
      .def_property_readonly("history", option(&ReplayOptions::history))
      .def_property_readonly("n_step", option(&ReplayOptions::n_step))
      .def_property_readonly("gamma", option(&ReplayOptions::gamma))
      .def_property_readonly("prioritized", option(&ReplayOptions::prioritized))
      .def_property_readonly("alpha", option(&ReplayOptions::alpha));
}

}  // namespace wmfast::bindings
