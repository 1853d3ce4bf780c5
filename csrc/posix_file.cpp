#include "wmfast/posix_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace wmfast {
namespace {

int flags_of(File::Mode mode) {
  switch (mode) {
    case File::Mode::kRead:
      return O_RDONLY | O_CLOEXEC;
    case File::Mode::kReadWrite:
      return O_RDWR | O_CLOEXEC;
    case File::Mode::kCreate:
      break;
  }
  return O_RDWR | O_CREAT | O_CLOEXEC;
}

}  // namespace

FileError::FileError(int code, const std::filesystem::path& path, const std::string& doing)
    : std::runtime_error(doing + ": " + std::strerror(code)), code_(code), path_(path) {}

DamagedFile::DamagedFile(const std::filesystem::path& path, const std::string& why)
    : std::invalid_argument(path.string() + ": " + why) {}

File::File(std::filesystem::path path, Mode mode)
    : path_(std::move(path)), descriptor_(::open(path_.c_str(), flags_of(mode), 0644)) {
  if (descriptor_ < 0) throw FileError(errno, path_, "cannot open");
  if (mode != Mode::kCreate) return;
  try {
    take_over();
    resize(0);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

void File::take_over() {
  for (;;) {
    if (!try_lock()) throw DamagedFile(path_, "is in use by another process or buffer");
    if (is_at_path()) return;
    // Who had the lock before us renamed the file: what we hold is not ours to empty.
    ::close(descriptor_);
    descriptor_ = ::open(path_.c_str(), flags_of(Mode::kCreate), 0644);
    if (descriptor_ < 0) throw FileError(errno, path_, "cannot open");
  }
}

bool File::is_at_path() const {
  struct stat open{}, named{};
  if (::fstat(descriptor_, &open) != 0) throw FileError(errno, path_, "cannot inspect");
  return ::stat(path_.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::uint64_t File::size() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) throw FileError(errno, path_, "cannot inspect");
  return static_cast<std::uint64_t>(status.st_size);
}

void File::read(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = ::read(descriptor_, out.data(), out.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileError(errno, path_, "cannot read");
    if (got == 0) throw DamagedFile(path_, "the file ends too early");
    out = out.subspan(static_cast<std::size_t>(got));
  }
}

void File::write(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t put = ::write(descriptor_, data.data(), data.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw FileError(errno, path_, "cannot write");
    data = data.subspan(static_cast<std::size_t>(put));
  }
}

void File::resize(std::uint64_t bytes) {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
    throw FileError(errno, path_, "cannot resize");
  }
}

void File::reserve(std::uint64_t begin, std::uint64_t bytes) {
  int code = EINTR;
  while (code == EINTR) {
    code = ::posix_fallocate(descriptor_, static_cast<off_t>(begin), static_cast<off_t>(bytes));
  }
  if (code != 0) {
    throw FileError(code, path_, "cannot reserve " + std::to_string(bytes) + " bytes");
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0) throw FileError(errno, path_, "cannot sync");
}

bool File::try_lock() {
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return true;
  if (errno == EWOULDBLOCK) return false;
  if (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK) return true;
  throw FileError(errno, path_, "cannot lock");
}

void File::rename_to(const std::filesystem::path& target) {
  if (::rename(path_.c_str(), target.c_str()) != 0) {
    throw FileError(errno, target, "cannot move " + path_.string() + " here");
  }
  path_ = target;
  const std::filesystem::path parent = target.parent_path();
  const std::filesystem::path folder = parent.empty() ? "." : parent;
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw FileError(errno, folder, "cannot open");
  const int failed = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  if (failed != 0) throw FileError(failed, folder, "cannot sync");
}

Mapping::Mapping(std::size_t bytes) : base_(nullptr), bytes_(std::max<std::size_t>(bytes, 1)) {
  base_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) {
    base_ = nullptr;
    throw OutOfMemory("cannot map " + std::to_string(bytes_) + " bytes of memory");
  }
#ifdef MADV_HUGEPAGE
  ::madvise(base_, bytes_,
            MADV_HUGEPAGE);  // a hint: random rows of a large store miss the TLB less
#endif
}

Mapping::Mapping(const File& file, std::size_t bytes) : base_(nullptr), bytes_(bytes) {
  base_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor(), 0);
  if (base_ == MAP_FAILED) {
    base_ = nullptr;
    throw FileError(errno, file.path(), "cannot map");
  }
}

Mapping::~Mapping() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

}  // namespace wmfast
