// The fiber runtime: scheduling, collectives, checked memory. One block at a time, on the calling thread.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>

#include "cuda_host.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {

Thread* current;

namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 128 << 10;
constexpr int kLaunchFailure = 719;

// ---- fibers

#if defined(__x86_64__)
// Saves the callee's registers and the stack of the running fiber, and takes up another.
extern "C" void adabm_host_switch(void** from, void* to);
asm(R"(
.text
.globl adabm_host_switch
.hidden adabm_host_switch
adabm_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
using Context = void*;
void switch_to(Context& from, Context& to) { adabm_host_switch(&from, to); }
void start(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 1;  // at entry the stack is 8 off a multiple of 16, as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
void start(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = kStackBytes, context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// ---- state

enum class State { kRunnable, kWarp, kBlock, kPoll, kEnded };

struct Fiber : Thread {
  Context context;
  State state;
  const char* waits;  // at what
  bool (*ready)(void*);
  void* ready_context;
  std::vector<AsyncCopy> open;                // since the last commit
  std::deque<std::vector<AsyncCopy>> groups;  // oldest first
  std::vector<uint32_t> unfenced;             // words written since the last fence_async
  Clock fenced;                               // what its warp knew of at the last fence_async
};

struct Warp {
  uint32_t runnable, waiting, ended;  // lanes
  void* operands[kLanes];
  const char* collective;
  Clock clock;
};

struct Range {
  uintptr_t begin, end;
  bool writable;
};

struct Policy {
  int order = ADABM_HOST_ASCENDING, landing = ADABM_HOST_LAND_LATE;
  unsigned seed = 0;
  bool detect = true;
} policy;
std::vector<Range> buffers;
std::string error;

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Context scheduler;
  char* stacks = nullptr;
  size_t stack_count = 0;
  void* kernel;
  void (*body)(void*);
  bool failed;
  int live, at_barrier, polling;
  const char* barrier;
  std::mt19937 random;
  // Shared memory and, for each of its 32-bit words, who wrote it last and when each warp read it last.
  std::vector<uint8_t> memory, written, writer, copying;
  std::vector<uint32_t> write_step, read_step;
  std::vector<uint16_t> unfenced;  // the thread, plus 1, that wrote the word ordinarily and has not fenced it since
} block;

Fiber& self() { return *static_cast<Fiber*>(current); }
Warp& own_warp() { return block.warps[current->warp]; }

void yield(State state, const char* what) {
  Fiber& fiber = self();
  fiber.state = state, fiber.waits = what;
  if (state != State::kRunnable) own_warp().runnable &= ~(1u << fiber.lane);
  switch_to(fiber.context, block.scheduler);
}

void wake(Fiber& fiber) {
  fiber.state = State::kRunnable;
  block.warps[fiber.warp].runnable |= 1u << fiber.lane;
}

void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); i++) into[i] = std::max(into[i], from[i]);
}

void open_barrier() {
  Clock all;
  for (const Warp& warp : block.warps) join(all, warp.clock);
  for (size_t w = 0; w < block.warps.size(); w++) block.warps[w].clock = all, block.warps[w].clock[w]++;
  for (Fiber& fiber : block.fibers)
    if (fiber.state == State::kBlock) wake(fiber);
  block.at_barrier = 0, block.barrier = nullptr;
}

void entry() {
  block.body(block.kernel);
  Fiber& fiber = self();
  if (!fiber.open.empty() || !fiber.groups.empty()) fail("the thread ends with asynchronous copies under way");
  Warp& warp = own_warp();
  warp.ended |= 1u << fiber.lane;
  if (warp.waiting) fail("the thread ends while lanes of its warp wait at %s", warp.collective);
  block.live--;
  if (block.at_barrier) fail("the thread ends while %d threads wait at %s", block.at_barrier, block.barrier);
  yield(State::kEnded, "its end");
}

// The next lane to run: one warp as far as it gets where the order is fixed, any warp at any time where it is random.
Fiber* next() {
  const int warps = static_cast<int>(block.warps.size());
  const bool random = policy.order == ADABM_HOST_RANDOM;
  const int first = random ? static_cast<int>(block.random() % warps) : 0;
  for (int i = 0; i < warps; i++) {
    const int w = policy.order == ADABM_HOST_DESCENDING ? warps - 1 - i : (first + i) % warps;
    const uint32_t lanes = block.warps[w].runnable;
    if (!lanes) continue;
    const bool from_above = policy.order == ADABM_HOST_DESCENDING || (random && block.random() % 2);
    const int lane = from_above ? 31 - __builtin_clz(lanes) : __builtin_ctz(lanes);
    return &block.fibers[w * kLanes + lane];
  }
  return nullptr;
}

// Wakes the threads whose condition has come true.
bool poll() {
  bool woken = false;
  for (Fiber& fiber : block.fibers)
    if (fiber.state == State::kPoll && fiber.ready(fiber.ready_context)) wake(fiber), block.polling--, woken = true;
  return woken;
}

std::string place(const Thread& t) {
  char text[128];
  std::snprintf(text, sizeof text, "block (%u, %u, %u) warp %d lane %d", t.block_index.x, t.block_index.y, t.block_index.z, t.warp, t.lane);
  return text;
}

void run_block() {
  while (block.live > 0 && !block.failed) {
    if (block.polling && (policy.order == ADABM_HOST_RANDOM || block.random() % 8 == 0)) poll();
    Fiber* fiber = next();
    if (!fiber && poll()) continue;
    if (!fiber) {
      for (const Fiber& f : block.fibers)
        if (f.state != State::kEnded) {
          error = place(f) + ": deadlock: it waits at " + f.waits + " and nobody can go on";
          block.failed = true;
          return;
        }
    }
    current = fiber;
    switch_to(block.scheduler, fiber->context);
  }
  if (block.failed) return;
  if (const char* wrong = sm90_end_block()) error = place(*current) + ": " + wrong, block.failed = true;
}

void begin_block(Index3 index, Index3 size, uint32_t shared_bytes) {
  const int threads = static_cast<int>(size.x * size.y * size.z), warps = (threads + kLanes - 1) / kLanes;
  if (block.stack_count < static_cast<size_t>(threads)) {
    if (block.stacks) munmap(block.stacks, block.stack_count * kStackBytes);
    block.stack_count = threads;
    block.stacks = static_cast<char*>(mmap(nullptr, threads * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  block.fibers = std::vector<Fiber>(threads);
  block.warps = std::vector<Warp>(warps);
  for (int w = 0; w < warps; w++) {
    Warp& warp = block.warps[w];
    warp.runnable = warp.waiting = warp.ended = 0, warp.collective = nullptr;
    warp.clock.assign(warps, 0), warp.clock[w] = 1;
  }
  for (int i = 0; i < threads; i++) {
    Fiber& f = block.fibers[i];
    f.thread_index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    f.block_index = index, f.warp = i / kLanes, f.lane = i % kLanes;
    start(f.context, block.stacks + i * kStackBytes, entry);
    wake(f);
  }
  const size_t words = (shared_bytes + 3) / 4;
  block.memory.assign(shared_bytes, 0xa5);  // what a kernel reads without having written it
  block.written.assign(shared_bytes, 0);
  block.writer.assign(words, 0), block.copying.assign(words, 0), block.write_step.assign(words, 0);
  block.read_step.assign(words * warps, 0);
  block.unfenced.assign(words, 0);
  sm90_begin_block(warps);
  block.live = threads, block.at_barrier = 0, block.polling = 0, block.barrier = nullptr;
}

// Range and alignment, which a card checks too.
uint32_t check_place(const char* who, uint32_t address, int bytes, int alignment) {
  const uint64_t offset = static_cast<uint64_t>(address) - kSharedBase;
  if (address < kSharedBase || offset + bytes > block.memory.size())
    fail("%s of %d bytes at %lld outside the block's %zu bytes of shared memory", who, bytes,
         static_cast<long long>(address) - kSharedBase, block.memory.size());
  if (offset % alignment) fail("%s at byte %llu of shared memory, which must be a multiple of %d", who, static_cast<unsigned long long>(offset), alignment);
  return static_cast<uint32_t>(offset);
}

// The words that bytes offset .. offset + bytes - 1 touch.
template <class Body>
void each_word(uint32_t offset, int bytes, Body&& body) {
  for (uint32_t word = offset / 4; word <= (offset + bytes - 1) / 4; word++) body(word);
}

void check_write(const char* who, uint32_t offset, int bytes) {
  const Clock& clock = own_warp().clock;
  const size_t warps = block.warps.size();
  each_word(offset, bytes, [&](uint32_t word) {
    if (block.copying[word]) fail("%s at byte %u of shared memory, which an asynchronous copy is writing", who, offset);
    if (block.write_step[word] > clock[block.writer[word]])
      fail("race: %s at byte %u of shared memory, which warp %d wrote with no barrier in between", who, offset, block.writer[word]);
    for (size_t w = 0; w < warps; w++)
      if (block.read_step[word * warps + w] > clock[w])
        fail("race: %s at byte %u of shared memory, which warp %zu read with no barrier in between", who, offset, w);
  });
}

void mark_written(uint32_t offset, int bytes) {
  const uint32_t step = own_warp().clock[current->warp];
  std::fill_n(block.written.begin() + offset, bytes, 1);
  Fiber& fiber = self();
  each_word(offset, bytes, [&](uint32_t word) {
    block.writer[word] = current->warp, block.write_step[word] = step;
    block.unfenced[word] = static_cast<uint16_t>(current->warp * kLanes + current->lane + 1);
    fiber.unfenced.push_back(word);
  });
}

void check_global(const char* who, const void* pointer, int64_t bytes, int alignment, bool write) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(pointer), end = begin + bytes;
  if (begin % alignment) fail("%s at a global address that is no multiple of %d", who, alignment);
  if (buffers.empty()) return;
  for (const Range& range : buffers)
    if (begin >= range.begin && end <= range.end && (range.writable || !write)) return;
  // The nearest buffer is the one that is meant.
  const Range* nearest = nullptr;
  uintptr_t least = 4096;
  for (const Range& range : buffers) {
    if (begin >= range.begin && end <= range.end) fail("%s of %lld bytes into a buffer that is only read", who, static_cast<long long>(bytes));
    const uintptr_t apart = begin > range.end ? begin - range.end : range.begin > end ? range.begin - end : 0;
    if (apart < least) nearest = &range, least = apart;
  }
  if (nearest)
    fail("%s of %lld bytes at byte %lld of a buffer of %llu bytes", who, static_cast<long long>(bytes),
         static_cast<long long>(begin) - static_cast<long long>(nearest->begin), static_cast<unsigned long long>(nearest->end - nearest->begin));
  fail("%s of %lld bytes outside every buffer", who, static_cast<long long>(bytes));
}

void land(const AsyncCopy& copy) {
  uint8_t* at = block.memory.data() + copy.shared;
  if (copy.source_bytes) std::memcpy(at, copy.global, copy.source_bytes);
  std::memset(at + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

void fail(const char* format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof text, format, list);
  va_end(list);
  error = place(*current) + ": " + text;
  block.failed = true;
  yield(State::kEnded, "its end");
  std::abort();  // a failed block is never resumed
}

void warp_collective(const char* name, void* operands, void (*body)(void* const*)) {
  Warp& warp = own_warp();
  const uint32_t bit = 1u << current->lane;
  if (warp.ended) fail("%s without the lanes that have ended (mask %08x)", name, warp.ended);
  if (!warp.waiting) warp.collective = name;
  if (warp.collective != name) fail("the lanes of a warp part: one is at %s, another at %s", name, warp.collective);
  warp.operands[current->lane] = operands;
  warp.waiting |= bit;
  if (warp.waiting != ~0u) return yield(State::kWarp, name);
  body(warp.operands);
  warp.waiting = 0;
  Fiber* fibers = &block.fibers[current->warp * kLanes];
  for (int i = 0; i < kLanes; i++)
    if (i != current->lane) wake(fibers[i]);
  if (policy.order == ADABM_HOST_RANDOM) yield(State::kRunnable, name);
}

void block_barrier(const char* name) {
  if (block.at_barrier && block.barrier != name) fail("threads of a block part: one is at %s, another at %s", name, block.barrier);
  if (block.live < static_cast<int>(block.fibers.size())) fail("%s after %zu threads have ended", name, block.fibers.size() - block.live);
  block.barrier = name;
  if (++block.at_barrier == block.live) {
    self().state = State::kBlock;
    open_barrier();
    return yield(State::kRunnable, name);
  }
  yield(State::kBlock, name);
}

const void* shared_read(const char* who, uint32_t address, int bytes, int alignment) {
  const uint32_t offset = check_place(who, address, bytes, alignment);
  if (policy.detect) {
    const Clock& clock = own_warp().clock;
    const size_t warps = block.warps.size();
    for (int i = 0; i < bytes; i++)
      if (!block.written[offset + i] && !block.copying[(offset + i) / 4]) fail("%s at byte %u of shared memory, which nothing has written", who, offset + i);
    each_word(offset, bytes, [&](uint32_t word) {
      if (block.copying[word]) fail("%s at byte %u of shared memory, which an asynchronous copy is writing", who, offset);
      if (block.write_step[word] > clock[block.writer[word]])
        fail("race: %s at byte %u of shared memory, which warp %d wrote with no barrier in between", who, offset, block.writer[word]);
      block.read_step[word * warps + current->warp] = clock[current->warp];
    });
  }
  return block.memory.data() + offset;
}

void* shared_write(const char* who, uint32_t address, int bytes, int alignment) {
  const uint32_t offset = check_place(who, address, bytes, alignment);
  if (policy.detect) check_write(who, offset, bytes), mark_written(offset, bytes);
  return block.memory.data() + offset;
}

void global_read(const char* who, const void* pointer, int64_t bytes, int alignment) { check_global(who, pointer, bytes, alignment, false); }
void global_write(const char* who, void* pointer, int64_t bytes, int alignment) { check_global(who, pointer, bytes, alignment, true); }

void async_copy(const char* who, uint32_t shared, const void* global, int bytes, int source_bytes) {
  if (source_bytes < 0 || source_bytes > bytes) fail("%s of %d bytes with %d of the source", who, bytes, source_bytes);
  const uint32_t offset = check_place(who, shared, bytes, bytes);
  if (source_bytes) check_global(who, global, source_bytes, bytes, false);
  if (policy.detect) shared_begin_copy(who, shared, bytes);
  AsyncCopy copy = {offset, global, bytes, source_bytes, land_now()};
  if (copy.landed) land(copy);
  self().open.push_back(copy);
}

void async_commit() {
  Fiber& fiber = self();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void async_wait(int pending) {
  Fiber& fiber = self();
  while (static_cast<int>(fiber.groups.size()) > pending) {
    for (const AsyncCopy& copy : fiber.groups.front()) {
      if (!copy.landed) land(copy);
      if (policy.detect) shared_end_copy(copy.shared + kSharedBase, copy.bytes);
    }
    fiber.groups.pop_front();
  }
}

void release_clock(Clock& into) {
  Warp& warp = own_warp();
  join(into, warp.clock);
  warp.clock[current->warp]++;
}

void acquire_clock(const Clock& from) { join(own_warp().clock, from); }

void wait_until(const char* what, bool (*ready)(void*), void* context) {
  if (ready(context)) return;
  Fiber& fiber = self();
  fiber.ready = ready, fiber.ready_context = context;
  block.polling++;
  yield(State::kPoll, what);
}

void shared_begin_copy(const char* who, uint32_t address, int bytes) {
  const uint32_t offset = check_place(who, address, bytes, 1);
  check_write(who, offset, bytes);
  each_word(offset, bytes, [&](uint32_t word) { block.copying[word] = 1; });
}

void shared_end_copy(uint32_t address, int bytes) {
  const uint32_t offset = address - kSharedBase;
  each_word(offset, bytes, [&](uint32_t word) { block.copying[word] = 0; });
  mark_written(offset, bytes);
}

void fence_async() {
  Fiber& fiber = self();
  for (uint32_t word : fiber.unfenced)
    if (block.unfenced[word] == current->warp * kLanes + current->lane + 1) block.unfenced[word] = 0;
  fiber.unfenced.clear();
  fiber.fenced = own_warp().clock;
}

// Whether every lane of the current warp has made a fence since it knew of the word's last write, by another warp.
static bool fenced_by_reader(uint32_t word) {
  const int writer = block.writer[word];
  if (writer == current->warp) return false;  // lanes do not know of one another's writes by the clock of their warp
  const Fiber* lanes = &block.fibers[current->warp * kLanes];
  return std::all_of(lanes, lanes + kLanes, [&](const Fiber& lane) {
    return lane.fenced.size() > static_cast<size_t>(writer) && lane.fenced[writer] >= block.write_step[word];
  });
}

const void* shared_read_async(const char* who, uint32_t address, int bytes, int alignment) {
  const void* at = shared_read(who, address, bytes, alignment);
  if (policy.detect)
    each_word(address - kSharedBase, bytes, [&](uint32_t word) {
      if (block.unfenced[word] && !fenced_by_reader(word))
        fail("%s at byte %u of shared memory, which thread %d wrote without fence_async", who, address - kSharedBase, block.unfenced[word] - 1);
    });
  return at;
}

uint32_t take_step() { return own_warp().clock[current->warp]++; }

void shared_land(uint32_t address, const void* from, int bytes, int warp, uint32_t step) {
  const uint32_t offset = address - kSharedBase;
  std::memcpy(block.memory.data() + offset, from, bytes);
  std::fill_n(block.written.begin() + offset, bytes, 1);
  each_word(offset, bytes, [&](uint32_t word) {
    block.copying[word] = 0, block.unfenced[word] = 0;
    block.writer[word] = static_cast<uint8_t>(warp), block.write_step[word] = step;
  });
}

std::vector<AsyncCopy> take_async_copies() {
  Fiber& fiber = self();
  std::vector<AsyncCopy> all;
  for (const auto& group : fiber.groups) all.insert(all.end(), group.begin(), group.end());
  all.insert(all.end(), fiber.open.begin(), fiber.open.end());
  fiber.groups.clear(), fiber.open.clear();
  return all;
}

void land_async_copies(const std::vector<AsyncCopy>& copies, int thread, uint32_t step) {
  for (const AsyncCopy& copy : copies) {
    if (!copy.landed) land(copy);
    std::fill_n(block.written.begin() + copy.shared, copy.bytes, 1);
    each_word(copy.shared, copy.bytes, [&](uint32_t word) {
      block.copying[word] = 0, block.unfenced[word] = static_cast<uint16_t>(thread + 1);
      block.writer[word] = static_cast<uint8_t>(thread / kLanes), block.write_step[word] = step;
    });
  }
}

void* shared_bytes(uint32_t address) { return block.memory.data() + check_place("shared_bytes", address, 1, 1); }

bool land_now() {
  return policy.landing == ADABM_HOST_LAND_EARLY || (policy.landing == ADABM_HOST_LAND_RANDOM && block.random() % 2);
}

int run_grid(Index3 grid, Index3 size, uint32_t shared_bytes, void* kernel, void (*body)(void*)) {
  block.kernel = kernel, block.body = body, block.failed = false;
  block.random.seed(policy.seed);
  error.clear();
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x && !block.failed; x++) {
        begin_block({x, y, z}, size, shared_bytes);
        run_block();
      }
  current = nullptr;
  return block.failed ? kLaunchFailure : 0;
}

}  // namespace cuda_host

using namespace cuda_host;

extern "C" __attribute__((visibility("default"))) void adabm_host_policy(int order, int landing, unsigned seed, int detect) {
  policy.order = order, policy.landing = landing, policy.seed = seed, policy.detect = detect != 0;
}
extern "C" __attribute__((visibility("default"))) void adabm_host_clear_buffers() { buffers.clear(); }
extern "C" __attribute__((visibility("default"))) void adabm_host_allow(const void* pointer, uint64_t bytes, int writable) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(pointer);
  buffers.push_back({begin, begin + bytes, writable != 0});
}
extern "C" __attribute__((visibility("default"))) const char* adabm_host_error() { return error.c_str(); }
