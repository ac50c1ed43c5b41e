// As broken.cu, for the instructions of compute capability 9.0: a product of four warps on a matrix that a fifth has brought in.
#include <cuda_runtime.h>

#include "cuda/ptx_sm90.cuh"

namespace adabm {
namespace {

struct Parameters {
  int mistake;
  const uint8_t* a;  // [64 rows][32]
  const uint8_t* b;  // [128 columns][32], as [2 halves][128 columns][16]
  int32_t* y;        // [64][128]
  ptx::TensorMap map;  // of b
};

enum Mistake {
  kNone,
  kNoWgmmaFence,         // registers of a product without a fence
  kNoWgmmaWait,          // the result is taken before the wait
  kProductLeftBehind,    // the kernel ends before the wait
  kNoAsyncFence,         // ordinary stores are not fenced before the product reads them
  kWarpsDiffer,          // one warp of the four issues another product
  kNoMbarrierWait,       // the product reads before the copy has come
  kOverwrittenInFlight,  // the matrix is overwritten before the product has been waited for
  kReleasedEarly,        // ... because its reader said too early that it was done
  kWrongParity,          // the wait is for a phase that is over
  kWrongBytes,           // the copy is smaller than was announced
  kTooManyArrivals,
  kNoInit,               // the barrier was never made
  kNoSyncAfterInit,
  kBulkMisaligned,
  kBulkBeyond,           // the copy reads past the end of its source
  kBulkLeftBehind,       // nobody waits for a copy
  kNamedBarrierCount,    // more threads are named than come
  kSwizzled,             // the descriptor asks for what the layout is not
  kTensorMisaligned,     // a tensor copy to 16 bytes past a multiple of 128
  kTensorBytes,          // more bytes are announced than the box has
  kTensorRight,          // none: a tensor copy in place of a bulk copy
  // The lanes of a warp copy 16 bytes at a time, and those who wait for them make the fence.
  kCopiesRight,
  kStoresRight,          // ordinary stores, fenced by their readers
  kCopiesUnfenced,       // nobody makes a fence
  kCopiesFencedBefore,   // ... before the copies have come
  kCopiesFencedByOne,    // ... in one lane of each warp
  kCopiesNotTracked,     // the lanes arrive, their copies do not
  kCopiesArriveBefore,   // copies that come after the arrival
  kCopiesTooMany,        // a lane arrives twice
};

constexpr int kThreads = 160, kBytes = 128 * 32;

__global__ void multiply(const Parameters p) {
  const uint32_t full = ptx::shared_base(), empty = full + ptx::kBarrierBytes, extra = full + 2 * ptx::kBarrierBytes, b = full + 128;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m = p.mistake;
  if (threadIdx.x == 0 && m != kNoInit) ptx::mbarrier_init(full, m >= kCopiesRight ? 32 : 1), ptx::mbarrier_init(empty, 4), ptx::mbarrier_init(extra, 1);
  if (m != kNoSyncAfterInit) ptx::sync_block();
  if (warp == 4) {
    // The producer brings the matrix in, and overwrites it once it is free.
    const bool ordinary = m == kNoAsyncFence;
    if (m == kStoresRight) {
      for (int i = lane; i < kBytes / 4; i += 32) ptx::store_shared(b + 4 * i, ptx::load_global(reinterpret_cast<const uint32_t*>(p.b) + i));
      ptx::mbarrier_arrive(full);
    } else if (m >= kCopiesRight) {
      if (m == kCopiesArriveBefore || (m == kCopiesTooMany && lane == 0)) ptx::cp_async_arrive(full);
      for (int i = lane; i < kBytes / 16; i += 32) ptx::cp_async<16>(b + 16 * i, p.b + 16 * i, 16);
      if (m == kCopiesNotTracked)
        ptx::mbarrier_arrive(full);
      else if (m != kCopiesArriveBefore)
        ptx::cp_async_arrive(full);
    } else if (ordinary) {
      for (int i = lane; i < kBytes / 4; i += 32) ptx::store_shared(b + 4 * i, ptx::load_global(reinterpret_cast<const uint32_t*>(p.b) + i));
      ptx::sync_warp();
      if (lane == 0) ptx::mbarrier_arrive(full);
    } else if (lane == 0) {
      ptx::mbarrier_arrive_expect(full, m == kWrongBytes || m == kTensorBytes ? kBytes + 16 : kBytes);
      if (m == kTooManyArrivals) ptx::mbarrier_arrive(full);
      if (m >= kTensorMisaligned)
        ptx::tensor_copy(b + (m == kTensorMisaligned ? 16 : 0), p.map, 0, 0, 0, 0, full);
      else
        ptx::bulk_copy(b + (m == kBulkMisaligned ? 8 : 0), p.b + (m == kBulkBeyond ? 16 : 0), kBytes, full);
      if (m == kBulkLeftBehind) ptx::mbarrier_arrive_expect(extra, 16), ptx::bulk_copy(b + kBytes, p.b, 16, extra);
    }
    ptx::mbarrier_wait(m == kOverwrittenInFlight ? full : empty, 0);
    for (int i = lane; i < kBytes / 4; i += 32) ptx::store_shared(b + 4 * i, 0x77777777u);
    return;
  }
  uint32_t a[4];
  for (int i = 0; i < 4; i++)
    a[i] = ptx::load_global(reinterpret_cast<const uint32_t*>(p.a + (warp * 16 + lane / 4 + i % 2 * 8) * 32 + i / 2 * 16 + lane % 4 * 4));
  int32_t d[64] = {};
  if (m == kCopiesFencedBefore) ptx::fence_async();
  if (m != kNoMbarrierWait) ptx::mbarrier_wait(full, m == kWrongParity);
  if (m >= kCopiesRight && m != kCopiesUnfenced && m != kCopiesFencedBefore && (m != kCopiesFencedByOne || lane == 0)) ptx::fence_async();
  if (m != kNoWgmmaFence) ptx::wgmma_fence();
  const uint64_t where = ptx::matrix_descriptor(b, 128 * 16, 128) | (m == kSwizzled ? uint64_t{1} << 62 : 0);
  ptx::wgmma_s8u8<128>(d, a, where + (m == kWarpsDiffer && warp == 1), 0);
  ptx::wgmma_commit();
  if (m == kReleasedEarly && lane == 0) ptx::mbarrier_arrive(empty);
  if (m != kNoWgmmaWait && m != kProductLeftBehind) ptx::wgmma_wait<0>();
  if (m != kReleasedEarly && m != kNoWgmmaWait) {
    ptx::sync_warp();
    if (lane == 0) ptx::mbarrier_arrive(empty);
  }
  ptx::sync_threads(1, m == kNamedBarrierCount ? kThreads : kThreads - 32);
  for (int i = 0; i < 64; i++)
    ptx::store_global(p.y + (warp * 16 + lane / 4 + i / 2 % 2 * 8) * 128 + i / 4 * 8 + lane % 4 * 2 + i % 2, d[i]);
  if (m != kNoWgmmaWait) return;
  ptx::wgmma_wait<0>();
  if (lane == 0) ptx::mbarrier_arrive(empty);
}

}  // namespace
}  // namespace adabm

extern "C" __attribute__((visibility("default"))) int adabm_host_broken_sm90(int mistake, const uint8_t* a, const uint8_t* b, int32_t* y) {
  using namespace adabm;
  return cuda_host::launch(multiply, dim3(1), dim3(kThreads), 128 + kBytes + 16, nullptr,
                           Parameters{mistake, a, b, y, {b, {16, 128, 2, 1}, {16, 2048, 4096}, {16, 128, 2, 1}}});
}
