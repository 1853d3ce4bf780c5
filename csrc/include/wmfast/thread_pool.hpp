// A small pool of threads for loops over independent chunks of work.
//
//   caller  --+-- chunk 0 -- chunk 2 -- chunk 3 --+--> returns when every chunk is done
//   worker 1  +-- chunk 1 -- chunk 4 -------------+
//
// The caller always takes part, and chunks are handed out one by one, so a loop is never slower
// than the caller alone plus one chunk: on a busy machine a worker that gets no core takes none.
// Workers start when they are first wanted, look for the next loop for some 20 microseconds after
// one and then sleep; a sleeping pool costs nothing.
//
// Thread rule: any number of threads may call; one loop at a time has the workers, and a loop begun
// meanwhile (or inside a chunk) runs on its caller alone. After fork() the child has a fresh pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace wmfast {

class ThreadPool {
 public:
  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();  // no loop may be running

  // The process's pool; lives until the process ends.
  static ThreadPool& shared();

  // body(begin, end) for chunks that cover [0, count), each of `grain` (at least 1) but the last.
  // At most `threads` run at once, the caller being one of them; chunks start in order. The first
  // exception of a body is thrown here after the running chunks have ended; no new ones start.
  template <typename Body>
  void parallel_for(std::size_t count, std::size_t grain, std::size_t threads, Body&& body) {
    Loop loop{[](void* context, std::size_t begin, std::size_t end) {
                (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
              },
              const_cast<void*>(static_cast<const void*>(&body)), count, grain};
    run(loop, threads);
  }

  // Threads started so far, without the callers.
  std::size_t workers() const;

 private:
  struct Loop {
    void (*body)(void*, std::size_t, std::size_t);
    void* context;
    std::size_t count;
    std::size_t grain;
    std::atomic<std::size_t> next = 0;
    std::exception_ptr error = nullptr;  // guarded by mutex_
  };

  void run(Loop& loop, std::size_t threads);
  void take_chunks(Loop& loop);
  void start_workers(std::size_t wanted);
  void work();

  std::atomic_flag taken_ = ATOMIC_FLAG_INIT;  // one loop at a time has the workers
  std::atomic<std::uint64_t> posted_ = 0;      // loops so far: what an idle worker looks at
  std::atomic<std::size_t> inside_ = 0;        // workers that run chunks of loop_
  mutable std::mutex mutex_;                   // guards what follows
  std::condition_variable work_, done_;
  Loop* loop_ = nullptr;   // open to further workers
  std::size_t seats_ = 0;  // how many more may join it
  std::size_t asleep_ = 0;
  bool ending_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace wmfast
