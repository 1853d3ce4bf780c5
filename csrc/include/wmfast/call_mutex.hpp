// A mutex that knows fork: a child never finds it held by a thread that it does not have.
//
// fork() waits for the calls under way, so that the child's copy of what the mutex guards is whole.
// The same memory-mapped file in two processes would still be torn: a mutex that guards one refuses
// in the child. Works with std::lock_guard.
#pragma once

#include <mutex>

namespace wmfast {

class CallMutex {
 public:
  explicit CallMutex(bool guards_file);
  CallMutex(const CallMutex&) = delete;
  CallMutex& operator=(const CallMutex&) = delete;
  ~CallMutex();

  // Throws std::runtime_error in a forked child if it guards a file. Don't fork while holding it.
  void lock();
  void unlock() { mutex_.unlock(); }

 private:
  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();

  std::mutex mutex_;
  const bool guards_file_;
  bool inherited_ = false;  // written while the child has one thread
};

}  // namespace wmfast
