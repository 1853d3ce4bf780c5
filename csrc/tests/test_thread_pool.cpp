// The pool: every index once, whoever calls and from where; errors; sizes; fork. Run it under TSan.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "wmfast/thread_pool.hpp"

namespace {

using wmfast::ThreadPool;

void every_index_is_visited_once_in_whole_chunks() {
  ThreadPool pool;
  for (const std::size_t threads : {1u, 2u, 3u, 5u}) {
    for (const std::size_t count : {0u, 1u, 7u, 64u, 1000u}) {
      for (const std::size_t grain : {1u, 6u, 2000u}) {
        std::vector<std::atomic<int>> visits(count);
        pool.parallel_for(count, grain, threads, [&](std::size_t begin, std::size_t end) {
          CHECK(begin % grain == 0 && end <= count);
          CHECK(end - begin == grain || end == count);
          for (std::size_t i = begin; i < end; ++i) visits[i].fetch_add(1);
        });
        for (const auto& visit : visits) CHECK(visit.load() == 1);
      }
    }
  }
  CHECK(pool.workers() == 4);
}

void the_caller_takes_part_and_alone_starts_nobody() {
  ThreadPool pool;
  const auto caller = std::this_thread::get_id();
  pool.parallel_for(100, 1, 1,
                    [&](std::size_t, std::size_t) { CHECK(std::this_thread::get_id() == caller); });
  pool.parallel_for(1, 1, 8,
                    [&](std::size_t, std::size_t) { CHECK(std::this_thread::get_id() == caller); });
  CHECK(pool.workers() == 0);
}

void two_threads_really_work_at_once() {
  ThreadPool pool;
  // Each of the two chunks waits for the other to have begun.
  std::atomic<int> begun = 0;
  pool.parallel_for(2, 1, 2, [&](std::size_t, std::size_t) {
    begun.fetch_add(1);
    while (begun.load() < 2) std::this_thread::yield();
  });
  // And again when the worker has gone to sleep.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  begun = 0;
  pool.parallel_for(2, 1, 2, [&](std::size_t, std::size_t) {
    begun.fetch_add(1);
    while (begun.load() < 2) std::this_thread::yield();
  });
  CHECK(pool.workers() == 1);
}

void a_loop_inside_a_loop_and_loops_of_many_callers() {
  ThreadPool pool;
  std::atomic<std::size_t> sum = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.parallel_for(8, 1, 3, [&](std::size_t begin, std::size_t) {
          pool.parallel_for(4, 1, 3, [&](std::size_t, std::size_t) { sum.fetch_add(begin); });
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(sum.load() == std::size_t{3} * 200 * 4 * 28);
}

void the_first_error_comes_back_and_the_pool_goes_on() {
  ThreadPool pool;
  std::atomic<int> chunks = 0;
  const auto failing = [&] {
    pool.parallel_for(1'000'000, 1, 3, [&](std::size_t begin, std::size_t) {
      chunks.fetch_add(1);
      if (begin == 5) throw std::runtime_error("chunk 5");
    });
  };
  CHECK(message_of<std::runtime_error>(failing) == "chunk 5");
  CHECK(chunks.load() < 1'000'000);
  std::atomic<int> after = 0;
  pool.parallel_for(10, 1, 3, [&](std::size_t, std::size_t) { after.fetch_add(1); });
  CHECK(after.load() == 10);
}

void a_forked_child_has_a_pool_of_its_own() {
#if !defined(__SANITIZE_THREAD__)  // TSan itself does not survive a fork with threads
  ThreadPool& parent = ThreadPool::shared();
  parent.parallel_for(4, 1, 2, [](std::size_t, std::size_t) {});
  CHECK(parent.workers() == 1);
  const pid_t child = ::fork();
  CHECK(child >= 0);
  if (child == 0) {
    ::alarm(20);
    ThreadPool& own = ThreadPool::shared();
    std::atomic<int> begun = 0;
    own.parallel_for(2, 1, 2, [&](std::size_t, std::size_t) {
      begun.fetch_add(1);
      while (begun.load() < 2) std::this_thread::yield();
    });
    ::_exit(&own != &parent && own.workers() == 1 ? 0 : 1);
  }
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(&ThreadPool::shared() == &parent);
#endif
}

}  // namespace

int main() {
  every_index_is_visited_once_in_whole_chunks();
  the_caller_takes_part_and_alone_starts_nobody();
  two_threads_really_work_at_once();
  a_loop_inside_a_loop_and_loops_of_many_callers();
  the_first_error_comes_back_and_the_pool_goes_on();
  a_forked_child_has_a_pool_of_its_own();
  return 0;
}
