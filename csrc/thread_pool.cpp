#include "wmfast/thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <system_error>

namespace wmfast {
namespace {

constexpr std::chrono::microseconds kSpin{20};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Looks at the condition for a short while; true as soon as it holds.
template <typename Condition>
bool spin_until(Condition condition) {
  const auto give_up = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  return false;
}

std::atomic<ThreadPool*> shared_pool = nullptr;

// The child has one thread and perhaps a locked mutex: it forgets the pool, workers and all.
const int at_fork = ::pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr); });

}  // namespace

ThreadPool& ThreadPool::shared() {
  static_cast<void>(at_fork);
  if (ThreadPool* pool = shared_pool.load()) return *pool;
  auto fresh = std::make_unique<ThreadPool>();
  ThreadPool* expected = nullptr;
  if (shared_pool.compare_exchange_strong(expected, fresh.get())) return *fresh.release();
  return *expected;
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    posted_.fetch_add(1);
  }
  work_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

std::size_t ThreadPool::workers() const {
  const std::lock_guard lock(mutex_);
  return workers_.size();
}

void ThreadPool::run(Loop& loop, std::size_t threads) {
  if (loop.count == 0) return;
  const std::size_t chunks = (loop.count - 1) / loop.grain + 1;
  threads = std::min(threads, chunks);
  if (threads < 2 || taken_.test_and_set(std::memory_order_acquire)) {
    take_chunks(loop);
  } else {
    bool sleepers = false;
    {
      const std::lock_guard lock(mutex_);
      start_workers(threads - 1);
      loop_ = &loop;
      seats_ = threads - 1;
      sleepers = asleep_ > 0;
      posted_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers) threads == 2 ? work_.notify_one() : work_.notify_all();
    take_chunks(loop);
    {
      const std::lock_guard lock(mutex_);
      loop_ = nullptr;  // who has not joined by now has nothing to do
    }
    const auto all_left = [&] { return inside_.load(std::memory_order_acquire) == 0; };
    if (!spin_until(all_left)) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, all_left);
    }
    taken_.clear(std::memory_order_release);
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

void ThreadPool::take_chunks(Loop& loop) {
  try {
    for (;;) {
      const std::size_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
      if (begin >= loop.count) return;
      loop.body(loop.context, begin, std::min(begin + loop.grain, loop.count));
    }
  } catch (...) {
    loop.next.store(loop.count, std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    if (!loop.error) loop.error = std::current_exception();
  }
}

void ThreadPool::start_workers(std::size_t wanted) {
  try {
    while (workers_.size() < wanted) workers_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {
    // The system gives no more threads: those that there are do the work.
  }
}

void ThreadPool::work() {
  std::uint64_t seen = 0;
  for (;;) {
    spin_until([&] { return posted_.load(std::memory_order_acquire) != seen; });
    Loop* loop = nullptr;
    {
      std::unique_lock lock(mutex_);
      if (posted_.load() == seen) {
        ++asleep_;
        work_.wait(lock, [&] { return posted_.load() != seen; });
        --asleep_;
      }
      if (ending_) return;
      seen = posted_.load();
      if (loop_ == nullptr || seats_ == 0) continue;
      --seats_;
      loop = loop_;
      inside_.fetch_add(1);
    }
    take_chunks(*loop);
    {
      const std::lock_guard lock(mutex_);
      inside_.fetch_sub(1, std::memory_order_release);
    }
    done_.notify_one();
  }
}

}  // namespace wmfast
