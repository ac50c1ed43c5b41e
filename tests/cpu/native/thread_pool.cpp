// Tasks that throw, and threads that cannot start: the pool reports the first and does without the second.
#include "cpu/thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <stdexcept>

namespace {

int startable = 2;  // threads that the system still grants
std::atomic<int> done{0};
int failures = 0;

void expect(bool holds, const char* what, int round) {
  if (!holds) std::printf("%s, round %d\n", what, round), failures++;
}

void work(void*, int) { done++; }

void work_or_throw(void* bad, int task) {
  if (task == *static_cast<int*>(bad)) throw std::runtime_error("a task");
  done++;
}

}  // namespace

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  if (startable == 0) return EAGAIN;
  startable--;
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  return reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"))(thread, attributes, start, argument);
}

int main() {
  for (int round = 0; round < 300; round++) {
    done = 0;
    adabm::parallel_for(8, 100, work, nullptr);  // more threads than can be had
    expect(done == 100, "tasks were left out", round);
    int bad = round % 100;
    bool caught = false;
    try {
      adabm::parallel_for(round % 8 + 1, 100, work_or_throw, &bad);
    } catch (const std::runtime_error&) {
      caught = true;
    }
    expect(caught, "the exception was lost", round);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
