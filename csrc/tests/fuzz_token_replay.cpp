// Bytes as a sequence of calls with good and bad arguments, checked against the slow oracle.
//
// Any input is a valid one: the first bytes choose the options, each following byte a call, and the
// bytes after it the call's arguments (0 once the input has ended). Whatever the calls: no crash,
// no undefined behaviour, errors of the documented kinds that change nothing, and every drawn row
// word for word that of the stream.
//
// With clang: -fsanitize=fuzzer, see `make fuzz`. Elsewhere fuzz_driver.cpp makes the inputs.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "check.hpp"
#include "fuzz_input.hpp"
#include "oracle.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

class Session {
 public:
  explicit Session(Bytes& bytes)
      : bytes_(bytes),
        options_(options_from(bytes)),
        replay_(std::make_unique<wmfast::TokenReplay>(options_)),
        oracle_(options_),
        envs_(static_cast<std::size_t>(options_.num_envs)) {}

  void run() {
    while (!bytes_.empty()) {
      call(bytes_.next());
      check_counts();
    }
    if (!rows().empty()) draw(8);
  }

 private:
  void call(std::uint8_t code) {
    switch (code % 16) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return add(static_cast<std::uint8_t>(code >> 4));
      case 5:
        replay_->cut();
        return oracle_.cut();
      case 6:
      case 7:
        return draw(1 + bytes_.up_to(40));
      case 8:
        return sequences();
      case 9:
        return update();
      case 10:
        return code & 16 ? move() : update();
      case 11:
        return save_and_load(static_cast<std::uint8_t>(code >> 4));
      case 12:
        return reopen();
      case 13:
        return bad_step();
      case 14:
        return bad_update();
      default:
        return bad_draw();
    }
  }

  const std::map<std::int64_t, Drawn>& rows() {
    if (!rows_) rows_ = oracle_.drawable(false);
    return *rows_;
  }

  OwnedStep step(std::uint8_t ends) {
    wmfast::RngState rng = wmfast::seed_rng(steps_);
    OwnedStep step = random_step(rng, envs_, replay_->frame_tokens(), vocabulary(), 0.0);
    const std::uint8_t which = ends == 0 ? 0 : bytes_.next();
    for (std::size_t env = 0; env < envs_; ++env) {
      const bool hit = (which >> env & 1) != 0;
      step.terminated[env] = hit && (ends & 1) != 0;
      step.truncated[env] = hit && (ends & 2) != 0;
      step.life_lost[env] = hit && (ends & 4) != 0;
    }
    return step;
  }

  std::uint32_t vocabulary() const { return static_cast<std::uint32_t>(options_.vocab_size); }

  bool same() const { return options_.autoreset == wmfast::Autoreset::kSameStep; }

  void add(std::uint8_t ends) {
    const OwnedStep now = step(ends);
    replay_->add(now.view(same()));
    oracle_.add(now);
    ++steps_;
    rows_.reset();
    for (const auto& [id, drawn] : rows()) priority_.try_emplace(id, largest_);
    std::erase_if(priority_, [&](const auto& item) { return !rows().contains(item.first); });
  }

  void draw(std::int64_t size) {
    OwnedBatch batch(*replay_, static_cast<std::size_t>(size));
    if (rows().empty() || (options_.prioritized && total() == 0.0)) {
      CHECK(contains(message_of<std::invalid_argument>([&] { replay_->sample(batch.view(), 0.4); }),
                     "no row can be drawn"));
      return;
    }
    replay_->sample(batch.view(), 0.4);
    check_rows(batch, oracle_.drawable());
    double smallest = std::numeric_limits<double>::infinity();
    for (const std::int64_t id : batch.index) smallest = std::min(smallest, leaf(id));
    for (std::size_t i = 0; i < batch.index.size(); ++i) {
      CHECK(leaf(batch.index[i]) > 0.0);
      const double weight = std::pow(leaf(batch.index[i]) / smallest, -0.4);
      CHECK(std::abs(static_cast<double>(batch.weight[i]) - weight) <= 1e-5);
    }
  }

  void sequences() {
    const std::int64_t length = 1 + bytes_.up_to(9), size = 1 + bytes_.up_to(9);
    const std::uint8_t kind = bytes_.next();
    const auto history = static_cast<std::size_t>(options_.history);
    const auto count = static_cast<std::size_t>(length * size);
    const std::size_t frames =
        static_cast<std::size_t>(size) * (history + count / static_cast<std::size_t>(size));
    std::vector<std::uint16_t> tokens(frames * replay_->frame_tokens(), 0xFFFF);
    std::vector<std::int64_t> action(count);
    std::vector<float> reward(count);
    std::vector<std::uint8_t> terminated(count, 9), mask(count, 9), lost(count, 9);
    std::optional<wmfast::Recent> recent;
    if (kind & 1) recent = wmfast::Recent{1 + kind / 2, (kind & 2) != 0 ? 1.0 : 0.5};
    const wmfast::SequenceOutput out{
        .length = length,
        .tokens = tokens,
        .action = action,
        .reward = reward,
        .terminated = terminated,
        .mask = mask,
        .life_lost = (kind & 4) != 0 ? std::span(lost) : std::span<std::uint8_t>()};
    try {
      replay_->sample_sequences(out, recent);
    } catch (const std::invalid_argument& error) {
      CHECK(contains(error.what(), "no row can be drawn"));
      CHECK(rows().empty() || recent);
      return;
    }
    for (const std::uint16_t token : tokens) CHECK(token < options_.vocab_size);
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(mask[i] <= 1 && terminated[i] <= mask[i]);
      CHECK(out.life_lost.empty() ? lost[i] == 9 : lost[i] <= mask[i]);
      CHECK(mask[i] == 1 || (action[i] == 0 && reward[i] == 0.0f));
      const bool first = i % static_cast<std::size_t>(length) == 0;
      CHECK(!first || mask[i] == 1);
      CHECK(first || mask[i] <= mask[i - 1]);
    }
  }

  void update() {
    if (steps_ == 0) return;
    std::vector<std::int64_t> index;
    std::vector<double> priority;
    const std::int64_t issued = static_cast<std::int64_t>(steps_ * envs_);
    std::int64_t live = 0;
    for (std::int64_t i = bytes_.up_to(12); i > 0; --i) {
      index.push_back(issued - 1 - bytes_.next() % issued);
      const std::uint8_t value = bytes_.next();
      priority.push_back(value < 250 ? value / 16.0 : std::ldexp(1.0, 40 * (value - 252)));
    }
    if (!options_.prioritized) {
      (void)message_of<std::invalid_argument>([&] { replay_->update_priorities(index, priority); });
      return;
    }
    for (std::size_t i = 0; i < index.size(); ++i) {
      if (!rows().contains(index[i])) continue;
      ++live;
      priority_[index[i]] = priority[i];
      largest_ = std::max(largest_, priority[i]);
    }
    CHECK(replay_->update_priorities(index, priority) == live);
  }

  // New frames for some rows, also for some that are gone; the oldest forgotten now and then.
  void move() {
    if (steps_ == 0) return;
    const std::int64_t issued = static_cast<std::int64_t>(steps_ * envs_);
    const std::int64_t gone = issued - replay_->size();
    std::vector<std::int64_t> index;
    std::vector<std::uint16_t> frames;
    std::int64_t stored = 0;
    for (std::int64_t i = bytes_.up_to(6); i > 0; --i) {
      index.push_back(issued - 1 - bytes_.next() % issued);
      const Frame frame(replay_->frame_tokens(),
                        static_cast<std::uint16_t>(bytes_.next() % options_.vocab_size));
      frames.insert(frames.end(), frame.begin(), frame.end());
      if (index.back() < gone) continue;
      ++stored;
      const auto id = static_cast<std::size_t>(index.back());
      if (!same()) oracle_.rewrite(id % envs_, id / envs_, frame);
    }
    if (same()) {
      unchanged<std::invalid_argument>([&] { replay_->rewrite(index, frames); });
    } else {
      CHECK(replay_->rewrite(index, frames) == stored);
    }
    if (const std::int64_t back = bytes_.up_to(40); back < 20) {
      const std::int64_t before = std::max<std::int64_t>(0, issued - back);
      const std::size_t first = (static_cast<std::size_t>(before) + envs_ - 1) / envs_;
      forgotten_ = std::max(forgotten_, static_cast<std::uint64_t>(first));
      oracle_.forget(first);
      replay_->forget(before);
    }
    rows_.reset();
    std::erase_if(priority_, [&](const auto& item) { return !rows().contains(item.first); });
  }

  // What was saved is byte for byte what the loaded buffer saves; the session goes on with it.
  void save_and_load(std::uint8_t kind) {
    const fs::path path = folder() / "snapshot";
    replay_->save(path);
    const std::vector<char> bytes = contents(path);
    if (kind & 1) {
      damage(bytes, path);
      return;
    }
    auto loaded = wmfast::TokenReplay::load(path);
    loaded->save(path);
    CHECK(contents(path) == bytes);
    if (options_.path.empty()) replay_ = std::move(loaded);
  }

  void damage(std::vector<char> bytes, const fs::path& path) {
    const auto high = static_cast<std::size_t>(bytes_.next());
    const std::size_t at = (high * 256 + bytes_.next()) % bytes.size();
    const std::uint8_t change = bytes_.next();
    if (change == 0) {
      bytes.resize(at);
    } else {
      bytes[at] = static_cast<char>(bytes[at] ^ change);
    }
    fs::remove(path);
    std::ofstream(path, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    (void)message_of<wmfast::DamagedFile>([&] { wmfast::TokenReplay::load(path); });
  }

  void reopen() {
    if (options_.path.empty()) return;
    replay_.reset();
    replay_ = std::make_unique<wmfast::TokenReplay>(options_);
    for (auto& [id, value] : priority_) {
      if (value == 0.0) value = largest_;  // as documented
    }
  }

  void bad_step() {
    OwnedStep bad = step(static_cast<std::uint8_t>(1 + bytes_.up_to(6)));
    const std::size_t env = bytes_.next() % envs_;
    switch (bytes_.next() % 6) {
      case 0:
        if (vocabulary() <= 65535) {
          bad.frames[env * replay_->frame_tokens()] = static_cast<std::uint16_t>(vocabulary());
          break;
        }
        [[fallthrough]];
      case 1:
        bad.rewards[env] = std::numeric_limits<float>::quiet_NaN();
        break;
      case 2:
        bad.actions[env] = std::int64_t{1} << 31;
        break;
      case 3:
        bad.frames.pop_back();
        break;
      case 4:
        bad.terminated.push_back(0);
        break;
      default:
        if (same() && vocabulary() <= 65535) {
          bad.truncated[env] = 1;
          bad.final_frames[env * replay_->frame_tokens()] = 65535;
        } else {
          bad.rewards.clear();
        }
    }
    unchanged<std::invalid_argument>([&] { replay_->add(bad.view(same())); });
  }

  void bad_update() {
    if (!options_.prioritized || steps_ == 0) return;
    const std::int64_t issued = static_cast<std::int64_t>(steps_ * envs_);
    std::vector<std::int64_t> index{issued - 1, bytes_.next() % issued, issued - 1};
    std::vector<double> priority{5.0, 6.0, 7.0};
    const std::uint8_t kind = bytes_.next();
    if (kind & 1) {
      index[1] = kind & 2 ? issued : -1 - kind;
      unchanged<std::out_of_range>([&] { replay_->update_priorities(index, priority); });
      return;
    }
    const double bad[] = {std::nan(""), HUGE_VAL, -HUGE_VAL, -1e-300,
                          std::numeric_limits<double>::max()};
    priority[1] = bad[(kind >> 1) % 5];
    if (priority[1] > 1e300 && options_.alpha != 1.0) priority[1] = HUGE_VAL;
    if (kind & 128) priority.pop_back();
    unchanged<std::invalid_argument>([&] { replay_->update_priorities(index, priority); });
  }

  void bad_draw() {
    const std::uint8_t kind = bytes_.next();
    OwnedBatch batch(*replay_, kind & 1 ? 0 : 2);
    const double beta[] = {0.4, std::nan(""), -1.0, HUGE_VAL};
    if (kind & 1) {
      unchanged<std::invalid_argument>([&] { replay_->sample(batch.view(), 0.4); });
    } else {
      const double bad = beta[1 + (kind >> 1) % 3];
      unchanged<std::invalid_argument>([&] { replay_->sample(batch.view(), bad); });
    }
    wmfast::SequenceOutput none;
    none.length = kind & 2 ? 0 : -5;
    unchanged<std::invalid_argument>([&] { replay_->sample_sequences(none, std::nullopt); });
    none.length = 3;
    unchanged<std::invalid_argument>([&] { replay_->sample_sequences(none, std::nullopt); });
  }

  template <typename Error, typename Call>
  void unchanged(Call call) {
    const fs::path path = folder() / "unchanged";
    replay_->save(path);
    const std::vector<char> before = contents(path);
    (void)message_of<Error>(call);
    replay_->save(path);
    CHECK(contents(path) == before);
  }

  double leaf(std::int64_t id) const {
    return options_.prioritized ? std::pow(priority_.at(id), options_.alpha) : 1.0;
  }

  double total() const {
    double sum = 0.0;
    for (const auto& [id, value] : priority_) sum += std::pow(value, options_.alpha);
    return sum;
  }

  void check_counts() {
    const wmfast::ReplayStats stats = replay_->stats();
    const auto kept = static_cast<std::uint64_t>(options_.capacity / options_.num_envs);
    CHECK(stats.added == steps_ * envs_);
    const std::uint64_t left = std::min({steps_, kept, steps_ - forgotten_});
    CHECK(stats.stored == left * envs_);
    CHECK(replay_->size() == static_cast<std::int64_t>(stats.stored));
    CHECK(stats.drawable == rows().size());
    CHECK(priority_.size() == rows().size());
    if (!options_.prioritized) return;
    CHECK(stats.max_priority == largest_);
    CHECK(std::abs(stats.priority_sum - total()) <= 1e-9 * (1.0 + total()));
  }

  Bytes& bytes_;
  wmfast::ReplayOptions options_;
  std::unique_ptr<wmfast::TokenReplay> replay_;
  Oracle oracle_;
  std::size_t envs_;
  std::uint64_t steps_ = 0;
  std::uint64_t forgotten_ = 0;  // steps before this one are
  double largest_ = 1.0;
  std::map<std::int64_t, double> priority_;  // of every drawable row
  std::optional<std::map<std::int64_t, Drawn>> rows_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(std::span(data, std::min<std::size_t>(size, 400)));
  Session(bytes).run();
  return 0;
}
