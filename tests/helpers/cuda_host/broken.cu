// One small kernel for each mistake that the host runtime is to find, and a right one beside it. `mistake` names it.
#include <cuda_runtime.h>

#include "cuda/ptx.cuh"

namespace adabm {
namespace {

struct Parameters {
  int mistake;
  const uint32_t* x;  // [threads]
  uint32_t* y;        // [threads]
};

enum Mistake {
  kNone,
  kNoBarrier,            // shared memory is read before the others have written it
  kNoBarrierBeforeWrite, // ... and written again before the others have read it
  kNotWritten,           // read, never written
  kBeyondShared,
  kBeyondGlobalRead,
  kBeyondGlobalWrite,
  kWriteToInput,
  kNoWait,               // the copy's barrier comes, its wait does not
  kReadWhileCopying,
  kCopyIntoUse,          // a copy into what others still read
  kBarrierInBranch,
  kPartedWarp,
  kMisaligned,
  kCopyLeftBehind,
};

constexpr int kThreads = 64;

// y[i] = x[threads - 1 - i] by way of shared memory.
__global__ void reverse(const Parameters p) {
  const int i = threadIdx.x, other = kThreads - 1 - i;
  const uint32_t own = ptx::shared_base() + 4 * i;
  uint32_t theirs = ptx::shared_base() + 4 * other;
  const uint32_t* x = p.x + i;
  if (p.mistake == kBeyondGlobalRead) x++;
  if (p.mistake == kMisaligned) theirs++;
  if (p.mistake == kBeyondShared) theirs += 4;
  if (p.mistake == kNotWritten && i == 5) theirs += 4 * kThreads;  // there is room for twice the threads
  ptx::cp_async<4>(own, x, 4);
  ptx::cp_async_commit();
  if (p.mistake != kNoWait && p.mistake != kReadWhileCopying && p.mistake != kCopyLeftBehind) ptx::cp_async_wait<0>();
  if (p.mistake == kBarrierInBranch && i < 32) return ptx::store_global(p.y + i, 0u);
  if (p.mistake != kNoBarrier) ptx::sync_block();
  uint32_t value = p.mistake == kCopyLeftBehind ? 0 : ptx::load_shared<uint32_t>(theirs);
  if (p.mistake == kNoWait || p.mistake == kReadWhileCopying) ptx::cp_async_wait<0>();
  if (p.mistake == kPartedWarp) value = i % 2 ? ptx::shuffle_down(value, 1) : (ptx::sync_block(), value);
  if (p.mistake == kNoBarrierBeforeWrite) ptx::store_shared(own, 7u);
  if (p.mistake == kCopyIntoUse) {
    ptx::cp_async<4>(own, p.x, 4);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }
  uint32_t* y = p.y + i;
  if (p.mistake == kBeyondGlobalWrite) y++;
  if (p.mistake == kWriteToInput) y = const_cast<uint32_t*>(p.x) + i;
  ptx::store_global(y, value);
}

}  // namespace
}  // namespace adabm

extern "C" __attribute__((visibility("default"))) int adabm_host_broken(int mistake, const uint32_t* x, uint32_t* y) {
  using namespace adabm;
  const bool exact = mistake == kBeyondShared;
  return cuda_host::launch(reverse, dim3(1), dim3(kThreads), exact ? 4 * kThreads : 8 * kThreads, nullptr, Parameters{mistake, x, y});
}
