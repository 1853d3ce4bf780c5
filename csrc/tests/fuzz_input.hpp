// The input of the fuzz target: bytes as numbers and options, and files for it to work on.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <vector>

#include "wmfast/token_replay.hpp"

namespace fs = std::filesystem;

inline const fs::path& folder() {
  static const fs::path path = [] {
    const fs::path shared = "/dev/shm";  // many small files a second
    fs::path made = (fs::is_directory(shared) ? shared : fs::temp_directory_path()) /
                    ("wmfast_fuzz_" + std::to_string(::getpid()));
    fs::create_directories(made);
    std::atexit([] {
      std::error_code ignored;
      fs::remove_all(folder(), ignored);
    });
    return made;
  }();
  return path;
}

class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> data) : data_(data) {}
  bool empty() const { return data_.empty(); }
  std::uint8_t next() {
    if (data_.empty()) return 0;
    const std::uint8_t byte = data_.front();
    data_ = data_.subspan(1);
    return byte;
  }
  std::int64_t up_to(std::int64_t most) { return next() % (most + 1); }

 private:
  std::span<const std::uint8_t> data_;
};

inline std::vector<char> contents(const fs::path& path) {
  std::vector<char> bytes(fs::file_size(path));
  std::ifstream(path, std::ios::binary)
      .read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

inline wmfast::ReplayOptions options_from(Bytes& bytes) {
  wmfast::ReplayOptions options;
  const std::uint8_t kind = bytes.next();
  options.num_envs = 1 + (kind & 3);
  options.prioritized = (kind & 4) == 0;
  options.autoreset = kind & 8 ? wmfast::Autoreset::kSameStep : wmfast::Autoreset::kNextStep;
  const bool mapped = (kind & 16) != 0;
  options.alpha = kind & 32 ? 1.0 : 0.6;
  options.n_step = 1 + bytes.up_to(3);
  options.history = 1 + bytes.up_to(5);
  options.capacity = options.num_envs * (options.n_step + 1 + bytes.up_to(12)) + (kind >> 7);
  options.frame_shape = {1 + bytes.up_to(39)};
  constexpr std::int64_t kVocabularies[] = {600, 2, 256, 257, 5000, 65536};
  options.vocab_size = kVocabularies[bytes.up_to(5)];
  options.gamma = 0.9;
  if (mapped) {
    options.path = folder() / "store";
    fs::remove(options.path);
  }
  return options;
}
