// Files and mappings that close themselves, and the errors that name them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

namespace wmfast {

// The operating system refused: `code` is errno, `path` the file, what() doesn't repeat it.
class FileError : public std::runtime_error {
 public:
  FileError(int code, const std::filesystem::path& path, const std::string& doing);
  int code() const { return code_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  int code_;
  std::filesystem::path path_;
};

// The file can be read but does not hold what it should; the message names the file.
class DamagedFile : public std::invalid_argument {
 public:
  DamagedFile(const std::filesystem::path& path, const std::string& why);
};

// A request larger than the machine, with numbers.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// An open file descriptor. Every method throws FileError.
class File {
 public:
  // kCreate: read and write, locked, then emptied; throws DamagedFile where another process or
  // buffer holds the file, and leaves that file as it is.
  enum class Mode { kRead, kReadWrite, kCreate };

  File(std::filesystem::path path, Mode mode);
  File(File&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}
  File& operator=(File&&) = delete;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  std::uint64_t size() const;
  void read(std::span<std::byte> out);  // throws DamagedFile at the end of the file
  void write(std::span<const std::byte> data);
  void resize(std::uint64_t bytes);                        // grows without taking disk space
  void reserve(std::uint64_t begin, std::uint64_t bytes);  // takes the disk space now
  void sync();
  bool try_lock();  // false: another process or buffer holds the file. A file system that knows no
                    // locks keeps nobody out.
  void rename_to(const std::filesystem::path& target);  // atomic; then the folder is synced

 private:
  bool is_at_path() const;  // the name still leads to the open file
  void take_over();         // kCreate: locks the file, or the one that has its name by now

  std::filesystem::path path_;
  int descriptor_;
};

// Zeroed private memory, or a file's bytes shared with it; unmapped at the end.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes);  // pages are taken when first written
  Mapping(const File& file, std::size_t bytes);
  Mapping(Mapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping();

  std::byte* data() const { return static_cast<std::byte*>(base_); }
  std::size_t size() const { return bytes_; }

 private:
  void* base_;
  std::size_t bytes_;
};

}  // namespace wmfast
