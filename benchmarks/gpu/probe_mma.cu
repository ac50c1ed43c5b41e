// The rate of the products that one warp issues, from registers alone: what kernels of compute capability 8.x are measured against.
#include "probe.h"

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace adabm {
namespace {

constexpr int kThreads = 128, kInFlight = 8;

template <int kBits>
__global__ void __launch_bounds__(kThreads) warp_products(const adabm_probe_warp_products p) {
  const uint32_t seed = threadIdx.x * 0x01010101u;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; i++) a[i] = seed + i * 0x11111111u;
  for (int i = 0; i < 2; i++) b[i] = seed * 3 + i * 0x23232323u;
  int32_t d[kInFlight][4] = {};
  for (int round = 0; round < p.rounds; round++)
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int i = 0; i < kInFlight; i++) {
      if constexpr (kBits == 4)
        ptx::mma<4>(d[i], a, b);
      else
        ptx::mma<8>(d[i], a, b);
    }
  int32_t sum = 0;
  for (int i = 0; i < kInFlight; i++)
    for (int j = 0; j < 4; j++) sum += d[i][j];
  if (blockIdx.x == 0) ptx::store_global(p.sums + threadIdx.x, sum);
}

}  // namespace
}  // namespace adabm

extern "C" ADABM_API int32_t adabm_probe_warp_products_cuda(const adabm_probe_warp_products* args) {
  using namespace adabm;
  return guarded([&] {
    ADABM_REQUIRE(args->bits == 4 || args->bits == 8, "bits must be 4 or 8, got %d", args->bits);
    launch(args->bits == 4 ? warp_products<4> : warp_products<8>, "warp_products", dim3(args->blocks), dim3(kThreads), 0, nullptr, *args);
  });
}
