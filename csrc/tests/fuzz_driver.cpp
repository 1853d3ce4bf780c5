// Runs the fuzz target where clang's libFuzzer is missing: the files named on the command line, or
// inputs of its own for some seconds, half of them changes of earlier ones.
//
//   fuzz_token_replay SECONDS [SEED]
//   fuzz_token_replay FILE...
//
// A failing input is left in crash-input.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "wmfast/rng.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;

Input g_current;

void keep_current() {
  std::ofstream("crash-input", std::ios::binary)
      .write(reinterpret_cast<const char*>(g_current.data()),
             static_cast<std::streamsize>(g_current.size()));
}

Input fresh(wmfast::RngState& rng) {
  Input input(8 + wmfast::next_below(rng, 400));
  // Steps of which few end an episode come often, or the ring would never turn.
  const double adds = wmfast::next_unit(rng);
  for (std::uint8_t& byte : input) {
    byte = static_cast<std::uint8_t>(wmfast::next_below(rng, 256));
    if (wmfast::next_unit(rng) < adds) byte = static_cast<std::uint8_t>(byte % 5);
  }
  input[0] = static_cast<std::uint8_t>(wmfast::next_below(rng, 256));
  return input;
}

Input changed(wmfast::RngState& rng, const Input& one, const Input& other) {
  Input input(one.begin(),
              one.begin() + wmfast::next_below(rng, static_cast<std::uint32_t>(one.size())));
  input.insert(input.end(),
               other.begin() + wmfast::next_below(rng, static_cast<std::uint32_t>(other.size())),
               other.end());
  for (std::uint32_t i = wmfast::next_below(rng, 8); i > 0; --i) {
    input[wmfast::next_below(rng, static_cast<std::uint32_t>(input.size()))] =
        static_cast<std::uint8_t>(wmfast::next_below(rng, 256));
  }
  return input;
}

void run_for(double seconds, std::uint64_t seed) {
  wmfast::RngState rng = wmfast::seed_rng(seed);
  std::vector<Input> kept;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::size_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    const bool change = kept.size() > 10 && wmfast::next_unit(rng) < 0.5;
    const auto any = [&]() -> const Input& {
      return kept[wmfast::next_below(rng, static_cast<std::uint32_t>(kept.size()))];
    };
    g_current = change ? changed(rng, any(), any()) : fresh(rng);
    LLVMFuzzerTestOneInput(g_current.data(), g_current.size());
    if (kept.size() < 200) kept.push_back(g_current);
  }
  std::printf("%zu inputs in %.0f s\n", runs, seconds);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: %s SECONDS [SEED] | FILE...\n", arguments[0]);
    return 2;
  }
  // A failed CHECK exits; a sanitizer's report aborts (abort_on_error=1).
  std::atexit([] {
    if (!g_current.empty()) keep_current();
  });
  ::signal(SIGABRT, [](int) {
    keep_current();
    ::_exit(1);
  });
  char* end = nullptr;
  const double seconds = std::strtod(arguments[1], &end);
  if (*end == '\0') {
    run_for(seconds, count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
  } else {
    for (int i = 1; i < count; ++i) {
      std::ifstream file(arguments[i], std::ios::binary);
      g_current.assign(std::istreambuf_iterator<char>(file), {});
      LLVMFuzzerTestOneInput(g_current.data(), g_current.size());
    }
  }
  g_current.clear();
  return 0;
}
