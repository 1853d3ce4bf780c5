#include "wmfast/call_mutex.hpp"

#include <pthread.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace wmfast {
namespace {

// Never destroyed: a thread may still hold a buffer while the process exits.
struct Living {
  std::mutex mutex;
  std::vector<CallMutex*> all;
};

Living& living() {
  static Living* const instance = new Living;
  return *instance;
}

}  // namespace

CallMutex::CallMutex(bool guards_file) : guards_file_(guards_file) {
  static const int registered =
      ::pthread_atfork(&before_fork, &after_fork_in_parent, &after_fork_in_child);
  if (registered != 0) throw std::runtime_error("pthread_atfork: no memory");
  const std::lock_guard lock(living().mutex);
  living().all.push_back(this);
}

CallMutex::~CallMutex() {
  const std::lock_guard lock(living().mutex);
  std::erase(living().all, this);
}

void CallMutex::lock() {
  mutex_.lock();
  if (!inherited_) return;
  mutex_.unlock();
  throw std::runtime_error(
      "this buffer's file belongs to the process that forked: use it there, or a buffer in memory");
}

void CallMutex::before_fork() {
  living().mutex.lock();
  for (CallMutex* const each : living().all) each->mutex_.lock();
}

void CallMutex::after_fork_in_parent() {
  for (CallMutex* const each : living().all) each->mutex_.unlock();
  living().mutex.unlock();
}

void CallMutex::after_fork_in_child() {
  for (CallMutex* const each : living().all) {
    each->inherited_ = each->guards_file_;
    each->mutex_.unlock();
  }
  living().mutex.unlock();
}

}  // namespace wmfast
