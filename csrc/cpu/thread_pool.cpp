// The pool of threads (cpu/thread_pool.h): how work is handed out and how workers sleep.
#include "cpu/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adabm {
namespace {

// About 0.2 ms, longer than the time between two layers of a network: waking a sleeper for each doubled the time of a 64x64 image.
constexpr int kSpins = 20000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Pool {
 public:
  void run(int threads, int tasks, void (*body)(void*, int), void* context) {
    int helpers = threads - 1;
    while (static_cast<int>(workers_.size()) < helpers) {
      const int index = static_cast<int>(workers_.size());
      try {
        workers_.emplace_back([this, index] { work(index); });
      } catch (const std::system_error&) {  // no more threads can be made: the existing ones do the work
        helpers = index;
        break;
      }
      workers_.back().detach();
    }
    body_ = body, context_ = context, tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    running_.store(helpers, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain();
    for (int spin = 0; running_.load(std::memory_order_acquire) > 0; spin++)
      if (spin < kSpins)
        relax();
      else
        std::this_thread::yield();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  std::mutex busy;

 private:
  void drain() {
    try {
      for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) body_(context_, static_cast<int>(task));
    } catch (...) {  // in any thread; `run` rethrows the first exception when all threads have stopped
      next_.store(tasks_, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void work(int index) {
    // A worker starts inside the run that made it, before that run's generation begins.
    unsigned seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; spin++) relax();
      int helpers;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        helpers = helpers_;
      }
      if (index < helpers) {
        drain();
        running_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int64_t> next_{0};  // every thread adds one beyond the last task
  std::atomic<int> running_{0};
  std::exception_ptr error_;
  int helpers_ = 0, tasks_ = 0;
  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
};

std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static const int registered = [] {
    // Threads do not survive a fork: the child starts a pool of its own and leaves the parent's memory alone.
    pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    return 0;
  }();
  (void)registered;
  Pool* current = pool.load(std::memory_order_acquire);
  if (!current) {
    Pool* fresh = new Pool;  // never deleted: workers may outlive static destruction
    if (pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

void parallel_for(int threads, int tasks, void (*body)(void*, int), void* context) {
  if (threads > tasks) threads = tasks;
  if (threads > 1) {
    Pool& shared = the_pool();
    std::unique_lock<std::mutex> lock(shared.busy, std::try_to_lock);
    if (lock.owns_lock()) {
      shared.run(threads, tasks, body, context);
      return;
    }
  }
  for (int task = 0; task < tasks; task++) body(context, task);
}

}  // namespace adabm
