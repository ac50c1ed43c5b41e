// What no text says for sure of compute capability 9.0, asked of a card by probes.py: products whose operands begin at any 16 bytes of
// shared memory, or repeat with strides of 0, and what that costs; and what fence.proxy.async costs behind cp.async.
#include "probe.h"

#include "cuda/launch.cuh"
#include "cuda/ptx_sm90.cuh"

namespace adabm {
namespace {

constexpr int kWarpgroup = 128, kLeftBytes = 64 * 32, kProductsOfRound = 16;

// Made here and not by ptx::matrix_descriptor, so that the probe asks about the format and not about that function.
ADABM_DEVICE uint64_t descriptor(uint32_t start, uint32_t half_bytes, uint32_t group_bytes) {
  return static_cast<uint64_t>(start >> 4 & 0x3fff) | static_cast<uint64_t>(half_bytes >> 4) << 16 | static_cast<uint64_t>(group_bytes >> 4) << 32;
}

ADABM_DEVICE int64_t clock_now() {
#if defined(__CUDACC__)
  return clock64();
#else
  return 0;
#endif
}

struct Thread {
  int index, lane, warp, group;
};

ADABM_DEVICE Thread this_thread() {
  const int index = static_cast<int>(threadIdx.x);
  return {index, index % 32, index / 32 % 4, index / kWarpgroup};
}

template <bool kSharedLeft>
__global__ void __launch_bounds__(2 * kWarpgroup, 1) products(const __grid_constant__ adabm_probe_products p) {
  const Thread t = this_thread();
  const int threads = p.warpgroups * kWarpgroup;
  const uint32_t right = ptx::shared_base(), left = right + p.right_bytes;
  for (int i = t.index * 4; i < p.right_bytes; i += threads * 4)
    ptx::store_shared(right + i, ptx::load_constant(reinterpret_cast<const uint32_t*>(p.right + i)));
  for (int i = t.index * 4; i < kLeftBytes; i += threads * 4)
    ptx::store_shared(left + i, ptx::load_constant(reinterpret_cast<const uint32_t*>(p.left + i)));
  ptx::fence_async();
  ptx::sync_block();
  uint32_t a[4];  // p.left lies as [half of the depth][row][16]
  for (int i = 0; i < 4; i++) {
    const int row = t.warp * 16 + t.lane / 4 + i % 2 * 8;
    a[i] = ptx::load_constant(reinterpret_cast<const uint32_t*>(p.left + (i / 2 * 64 + row) * 16 + t.lane % 4 * 4));
  }
  const uint64_t b = descriptor(right + p.unit * 16, p.half_bytes, p.group_bytes);
  const uint64_t rows = p.zero_strides ? descriptor(left, 0, 0) : descriptor(left, kLeftBytes / 2, 8 * 16);
  int32_t d[64] = {};
  const int64_t start = clock_now();
  for (int round = 0; round < p.rounds; round++) {
    ptx::wgmma_fence();
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int k = 0; k < kProductsOfRound; k++) {
      if constexpr (kSharedLeft)
        ptx::wgmma_s8u8<128>(d, rows, b, 1);
      else
        ptx::wgmma_s8u8<128>(d, a, b, 1);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  }
  const int64_t end = clock_now();
  if (blockIdx.x == 0 && t.index % kWarpgroup == 0) ptx::store_global(p.clocks + t.group, end - start);
  if (blockIdx.x == 0 && t.group == 0)
    for (int j = 0; j < 64; j++)
      ptx::store_global(p.sums + (t.warp * 16 + t.lane / 4 + j / 2 % 2 * 8) * 128 + j / 4 * 8 + t.lane % 4 * 2 + j % 2, d[j]);
}

// One warpgroup brings `copies` times 16 bytes a thread to shared memory, waits for them, and meets at a barrier, as producers do before
// they hand a stage over.
__global__ void __launch_bounds__(kWarpgroup, 1) copies(const __grid_constant__ adabm_probe_copies p) {
  const Thread t = this_thread();
  const uint32_t base = ptx::shared_base();
  const int64_t start = clock_now();
  for (int round = 0; round < p.rounds; round++) {
    for (int i = 0; i < p.copies; i++) {
      const int at = (i * kWarpgroup + t.index) * 16;
      ptx::cp_async<16>(base + at, p.source + at, 16);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    if (p.fence) ptx::fence_async();
    ptx::sync_block();
  }
  const int64_t end = clock_now();
  if (blockIdx.x == 0 && t.index == 0) ptx::store_global(p.clocks, end - start);
}

}  // namespace
}  // namespace adabm

extern "C" ADABM_API int32_t adabm_probe_products_cuda(const adabm_probe_products* args) {
  using namespace adabm;
  return guarded([&] {
    const adabm_probe_products& p = *args;
    const auto kernel = p.shared_left ? products<true> : products<false>;
    launch(kernel, "products", dim3(p.blocks), dim3(p.warpgroups * kWarpgroup), p.right_bytes + kLeftBytes, nullptr, p);
  });
}

extern "C" ADABM_API int32_t adabm_probe_copies_cuda(const adabm_probe_copies* args) {
  using namespace adabm;
  return guarded([&] { launch(copies, "copies", dim3(args->blocks), dim3(kWarpgroup), args->copies * kWarpgroup * 16, nullptr, *args); });
}
