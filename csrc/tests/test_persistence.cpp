// Snapshots and mapped stores: go on bit for bit, survive kill -9, and never load damage.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "check.hpp"
#include "streams.hpp"
#include "wmfast/token_replay.hpp"

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kEnvs = 2;
constexpr std::size_t kTokens = 3;
constexpr std::size_t kPage = 4096;    // the rows of a store begin at the second
constexpr std::size_t kRowBytes = 20;  // same_step: 16 of fields, 3 low bytes, a plane of 1 byte

wmfast::ReplayOptions options_with(bool same_step, const fs::path& path = {}) {
  return {.capacity = 24,
          .num_envs = kEnvs,
          .frame_shape = {kTokens},
          .n_step = 2,
          .seed = 5,
          .autoreset = same_step ? wmfast::Autoreset::kSameStep : wmfast::Autoreset::kNextStep,
          .path = path};
}

// Adds, draws and updates; the same for equal buffers and equal `rng`.
std::vector<OwnedBatch> live(wmfast::TokenReplay& replay, wmfast::RngState rng, int steps,
                             bool same_step) {
  std::vector<OwnedBatch> drawn;
  for (int t = 0; t < steps; ++t) {
    replay.add(random_step(rng, kEnvs, kTokens, 512, 0.15).view(same_step));
    if (t == 4) replay.cut();
    if (replay.stats().drawable == 0) continue;
    OwnedBatch& batch = drawn.emplace_back(replay, 8);
    replay.sample(batch.view(), 0.5);
    std::vector<double> priority(8);
    for (double& value : priority) value = 3.0 * wmfast::next_unit(rng);
    replay.update_priorities(batch.index, priority);
  }
  return drawn;
}

std::vector<char> contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void a_loaded_snapshot_goes_on_alike(const fs::path& folder, bool same_step, int before) {
  wmfast::TokenReplay replay(options_with(same_step));
  live(replay, wmfast::seed_rng(1), before, same_step);
  replay.save(folder / "snapshot");
  const auto loaded = wmfast::TokenReplay::load(folder / "snapshot");
  CHECK(loaded->stats().priority_sum == replay.stats().priority_sum);
  CHECK(loaded->stats().drawable == replay.stats().drawable);
  CHECK(live(*loaded, wmfast::seed_rng(2), 40, same_step) ==
        live(replay, wmfast::seed_rng(2), 40, same_step));
  CHECK(!fs::exists(folder / "snapshot.tmp"));
  loaded->save(folder / "snapshot");
  replay.save(folder / "twin");
  CHECK(contents(folder / "snapshot") == contents(folder / "twin"));
}

// Short episodes, saved and loaded at every step: freed final frames are used again.
void final_frames_are_recycled(const fs::path& folder) {
  auto replay = std::make_unique<wmfast::TokenReplay>(options_with(true));
  wmfast::RngState rng = wmfast::seed_rng(8);
  std::uintmax_t full = 0;
  for (int t = 0; t < 60; ++t) {
    OwnedStep step = random_step(rng, kEnvs, kTokens, 512, 0.0);
    step.truncated.assign(kEnvs, 1);
    replay->add(step.view(true));
    replay->save(folder / "snapshot");
    replay = wmfast::TokenReplay::load(folder / "snapshot");
    if (t == 20) full = fs::file_size(folder / "snapshot");
  }
  CHECK(fs::file_size(folder / "snapshot") == full);
}

// A new file: to truncate and rewrite one makes some file systems sync it.
void put_contents(const fs::path& path, const std::vector<char>& data) {
  fs::remove(path);
  std::ofstream(path, std::ios::binary)
      .write(data.data(), static_cast<std::streamsize>(data.size()));
}

void every_damaged_byte_of_a_snapshot_is_noticed(const fs::path& folder) {
  wmfast::TokenReplay replay(options_with(true));
  live(replay, wmfast::seed_rng(1), 30, true);
  replay.save(folder / "snapshot");
  const std::vector<char> good = contents(folder / "snapshot");
  const auto load = [&] { (void)wmfast::TokenReplay::load(folder / "damaged"); };
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::vector<char> bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    put_contents(folder / "damaged", bad);
    CHECK(contains(message_of<wmfast::DamagedFile>(load), "damaged"));
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, good.size() - 1}) {
    put_contents(folder / "damaged",
                 std::vector<char>(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)));
    CHECK(contains(message_of<wmfast::DamagedFile>(load), "damaged"));
  }
  std::vector<char> newer = good;
  newer[8] = 9;
  put_contents(folder / "damaged", newer);
  CHECK(contains(message_of<wmfast::DamagedFile>(load), "format version 9"));
}

void a_store_goes_on_where_it_was(const fs::path& folder, bool same_step, int before) {
  const fs::path path = folder / "store";
  fs::remove(path);
  auto replay = std::make_unique<wmfast::TokenReplay>(options_with(same_step, path));
  wmfast::TokenReplay twin(options_with(same_step));
  // (No priority is exactly 0 here: a reopened store would revive it.)
  CHECK(live(*replay, wmfast::seed_rng(1), before, same_step) ==
        live(twin, wmfast::seed_rng(1), before, same_step));
  CHECK(contains(message_of<wmfast::DamagedFile>(
                     [&] { const wmfast::TokenReplay second(options_with(same_step, path)); }),
                 "in use"));
  replay.reset();
  replay = std::make_unique<wmfast::TokenReplay>(options_with(same_step, path));
  CHECK(live(*replay, wmfast::seed_rng(2), 40, same_step) ==
        live(twin, wmfast::seed_rng(2), 40, same_step));
}

void damage_of_a_store_is_noticed(const fs::path& folder) {
  const fs::path path = folder / "store";
  fs::remove(path);
  {
    wmfast::TokenReplay replay(options_with(true, path));
    live(replay, wmfast::seed_rng(1), 12, true);
  }
  const std::vector<char> good = contents(path);
  const auto open = [&] { const wmfast::TokenReplay replay(options_with(true, path)); };
  for (std::size_t byte = 0; byte < 12 * kRowBytes; ++byte) {  // 12 of 13 slots are committed
    std::vector<char> bad = good;
    char& target = bad[kPage + byte];
    target = static_cast<char>(target ^ (1 << (byte % 8)));
    put_contents(path, bad);
    CHECK(contains(message_of<wmfast::DamagedFile>(open), "damaged row: env 0"));
  }
  std::vector<char> bad = good;
  bad[offsetof(wmfast::ReplayHeader, steps)] ^= 2;
  put_contents(path, bad);
  CHECK(contains(message_of<wmfast::DamagedFile>(open), "damaged header"));
  put_contents(path, std::vector<char>(good.begin(), good.end() - 1));
  CHECK(contains(message_of<wmfast::DamagedFile>(open), "bytes long"));
  put_contents(path, good);
  open();
  wmfast::ReplayOptions other = options_with(true, path);
  other.vocab_size = 32;
  CHECK(contains(message_of<std::invalid_argument>([&] { const wmfast::TokenReplay r(other); }),
                 "vocab_size 512, asked for 32"));
}

// Whatever a killed process had written into the spare rows does not count.
void a_row_under_way_leaves_nothing(const fs::path& folder) {
  const fs::path path = folder / "store";
  constexpr int kBefore = 20;
  fs::remove(path);
  wmfast::TokenReplay twin(options_with(true));
  live(twin, wmfast::seed_rng(1), kBefore, true);
  {
    wmfast::TokenReplay replay(options_with(true, path));
    live(replay, wmfast::seed_rng(1), kBefore, true);
  }
  std::vector<char> data = contents(path);
  for (std::size_t env = 0; env < kEnvs; ++env) {
    const std::size_t spare = env * 13 + kBefore % 13;
    for (std::size_t byte = 0; byte < kRowBytes; ++byte) {
      data[kPage + spare * kRowBytes + byte] = byte % 4 == 0 ? 1 : 0;
    }
  }
  put_contents(path, data);
  wmfast::TokenReplay replay(options_with(true, path));
  CHECK(live(replay, wmfast::seed_rng(2), 40, true) == live(twin, wmfast::seed_rng(2), 40, true));
}

// As after a power failure: some pages are those of a while ago, each row sound in itself.
void rows_of_an_earlier_lap_are_noticed(const fs::path& folder) {
  const fs::path path = folder / "store";
  fs::remove(path);
  const auto run = [&](int steps) {
    wmfast::TokenReplay replay(options_with(false, path));
    live(replay, wmfast::seed_rng(1), steps, false);
    return contents(path);
  };
  const std::vector<char> earlier = run(20);
  std::vector<char> now = run(20);
  std::copy(earlier.begin() + kPage, earlier.end(), now.begin() + kPage);
  put_contents(path, now);
  CHECK(contains(message_of<wmfast::DamagedFile>(
                     [&] { const wmfast::TokenReplay replay(options_with(false, path)); }),
                 "damaged row"));
}

// The child adds steps and reports each that returned; the parent kills it at some moment.
void a_killed_writer_loses_at_most_one_step(const fs::path& folder, unsigned wait_us) {
  const fs::path path = folder / "killed";
  fs::remove(path);
  int pipe_ends[2];
  CHECK(::pipe(pipe_ends) == 0);
  const pid_t child = ::fork();
  CHECK(child >= 0);
  if (child == 0) {
    wmfast::TokenReplay replay(options_with(true, path));
    wmfast::RngState rng = wmfast::seed_rng(9);
    for (;;) {
      replay.add(random_step(rng, kEnvs, kTokens, 512, 0.3).view(true));
      if (wmfast::next_unit(rng) < 0.2) replay.cut();
      if (::write(pipe_ends[1], "x", 1) != 1) ::_exit(1);
    }
  }
  ::close(pipe_ends[1]);
  char byte = 0;
  CHECK(::read(pipe_ends[0], &byte, 1) == 1);
  ::usleep(wait_us);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  std::uint64_t reported = 1;
  char buffer[4096];
  for (ssize_t got; (got = ::read(pipe_ends[0], buffer, sizeof(buffer))) > 0;) {
    reported += static_cast<std::uint64_t>(got);
  }
  ::close(pipe_ends[0]);
  wmfast::TokenReplay replay(options_with(true, path));  // verifies every row
  const std::uint64_t committed = replay.stats().added / kEnvs;
  CHECK(committed == reported || committed == reported + 1);
  CHECK(replay.size() == static_cast<std::int64_t>(kEnvs * std::min<std::uint64_t>(committed, 12)));
  live(replay, wmfast::seed_rng(3), 30, true);
}

}  // namespace

int main() {
  const fs::path folder = fs::temp_directory_path() / ("wmfast_test_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  for (const bool same_step : {false, true}) {
    for (const int before : {0, 5, 11, 30}) {
      a_loaded_snapshot_goes_on_alike(folder, same_step, before);
      a_store_goes_on_where_it_was(folder, same_step, before);
    }
  }
  final_frames_are_recycled(folder);
  every_damaged_byte_of_a_snapshot_is_noticed(folder);
  damage_of_a_store_is_noticed(folder);
  a_row_under_way_leaves_nothing(folder);
  rows_of_an_earlier_lap_are_noticed(folder);
  for (unsigned run = 0; run < 15; ++run) a_killed_writer_loses_at_most_one_step(folder, 300 * run);
  fs::remove_all(folder);
  return 0;
}
