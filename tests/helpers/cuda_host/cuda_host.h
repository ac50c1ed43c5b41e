// A CUDA block on one CPU thread: its threads are fibers that run until they wait for one another. See README.md.
#pragma once

#include <cstdint>
#include <vector>

namespace cuda_host {

struct Index3 {
  unsigned x, y, z;
};

// What a kernel sees of the thread that runs; `current` is that thread.
struct Thread {
  Index3 thread_index, block_index;
  int warp, lane;
};
extern Thread* current;

// Shared memory starts here, so that an address of 0 is a mistake.
constexpr uint32_t kSharedBase = 1024;

// Ends the launch with a sentence; never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- what the twins of instructions are made of

// Meets the other 31 lanes. The last to arrive runs `body` over all lanes' operands, in lane order.
void warp_collective(const char* name, void* operands, void (*body)(void* const* lanes));

// Waits for all threads of the block that have not ended.
void block_barrier(const char* name);

// Checks one access of the current thread and returns where the bytes lie. `who`: the instruction, for messages.
const void* shared_read(const char* who, uint32_t address, int bytes, int alignment);
void* shared_write(const char* who, uint32_t address, int bytes, int alignment);
void global_read(const char* who, const void* pointer, int64_t bytes, int alignment);
void global_write(const char* who, void* pointer, int64_t bytes, int alignment);

// cp.async: a copy that may land at any time from here to the wait for its group, or for the barrier that it arrives at.
struct AsyncCopy {
  uint32_t shared;  // from the first byte of shared memory
  const void* global;
  int bytes, source_bytes;
  bool landed;
};
void async_copy(const char* who, uint32_t shared, const void* global, int bytes, int source_bytes);
void async_commit();
void async_wait(int pending);

// ---- for instructions with a rule of their own (mbarrier, bulk copies, ...)

// What has happened before, by warp: entry w counts the steps of warp w that are known to be over.
using Clock = std::vector<uint32_t>;
// The current warp's past joins `into` (an arrival), or `from` joins the current warp's past (a wait that was answered).
void release_clock(Clock& into);
void acquire_clock(const Clock& from);

// Lets other threads run until `ready(context)` is true; a deadlock names `what`.
void wait_until(const char* what, bool (*ready)(void* context), void* context);

// Marks bytes of shared memory as being written by a copy under way (checked as a write of the current thread), and as
// written, by the current thread or by the warp and step that `by` knows of. In between, any access to them is an error.
void shared_begin_copy(const char* who, uint32_t address, int bytes);
void shared_end_copy(uint32_t address, int bytes);
void* shared_bytes(uint32_t address);  // unchecked
// Whether a copy issued now should land now rather than at its wait: the launch's policy.
bool land_now();

// ---- compute capability 9.0 (sm90.cpp)

// A product of four warps: see ptx_sm90.cuh. It is computed at its issue or at its wait (`land_now`), and reads shared memory, as
// far as checks go, at both.
void product(const char* who, int32_t* d, int columns, const uint32_t* a, uint64_t descriptor, int accumulate);
void product(const char* who, int32_t* d, int columns, uint64_t a, uint64_t descriptor, int accumulate);
void product_fence();
void product_commit();
void product_wait(int pending);

void mbarrier_init(uint32_t address, int arrivals);
void mbarrier_arrive(const char* who, uint32_t address, uint32_t bytes);
void mbarrier_wait(uint32_t address, uint32_t parity);
void bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier);
// cp.async.mbarrier.arrive.noinc: the calling thread's copies under way arrive at the barrier when they have landed, at once or when
// somebody waits for it (`land_now`). They no longer belong to a group of the thread: waiting for that does not end them.
void async_arrive(const char* who, uint32_t barrier);
void named_barrier(int id, int threads);

// What cuTensorMapEncodeTiled makes of a tensor of bytes, innermost dimension first; the first stride, 1, is left out.
struct TensorMap {
  const uint8_t* base;
  int64_t sizes[4], strides[3];
  int box[4];
};
// The rule of the driver that a map breaks, or null.
const char* why_not_encoded(const TensorMap& map);
void tensor_copy(uint32_t shared, const TensorMap& map, const int (&at)[4], uint32_t barrier);

// The calling thread's ordinary writes so far may be read by products once a barrier has passed, and those of other warps that it knows
// of by its own warp's products.
void fence_async();
// As shared_read, by a product: what was written ordinarily must have been fenced, by the thread that wrote it or by all lanes of the
// warp that reads it.
const void* shared_read_async(const char* who, uint32_t address, int bytes, int alignment);
// The current warp's step, which ends with this call, and the end of a copy that was issued by a warp at a step.
uint32_t take_step();
// The calling thread's cp.async copies under way, which are then the caller's to land, as what thread and step wrote ordinarily.
std::vector<AsyncCopy> take_async_copies();
void land_async_copies(const std::vector<AsyncCopy>& copies, int thread, uint32_t step);
void shared_land(uint32_t address, const void* from, int bytes, int warp, uint32_t step);

// Called when a block begins, and when it has ended: the latter returns what is wrong, or null.
void sm90_begin_block(int warps);
const char* sm90_end_block();

// Runs every block of a grid, one after the other. Returns 0 or cudaErrorLaunchFailure.
int run_grid(Index3 grid, Index3 block, uint32_t shared_bytes, void* context, void (*body)(void* context));

}  // namespace cuda_host

// ---- the test's side, called through ctypes

extern "C" {
enum { ADABM_HOST_ASCENDING = 0, ADABM_HOST_DESCENDING = 1, ADABM_HOST_RANDOM = 2 };
enum { ADABM_HOST_LAND_LATE = 0, ADABM_HOST_LAND_EARLY = 1, ADABM_HOST_LAND_RANDOM = 2 };
// order: which runnable warp (and lane) goes on. landing: when asynchronous copies land. detect: 0 leaves only what would also
// fail on a card, so that a test can see a wrong order change a result.
void adabm_host_policy(int order, int landing, unsigned seed, int detect);
// Global memory that kernels may touch; without any, all of it. writable: whether they may write there.
void adabm_host_clear_buffers();
void adabm_host_allow(const void* pointer, uint64_t bytes, int writable);
// The first thing that went wrong in the last launch, empty if nothing.
const char* adabm_host_error();
}
