// Products of the kernels of compute capability 9.0: weights as fragments in registers, and the products of a strip with them.
#pragma once

#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

// Loads the weights of one product: row r of this warp's 16 is output 2 (r % 8) + r / 8 of 16, so that a thread's two outputs are neighbours.
// read(half, output, quarter) gives four bytes.
template <class Read>
ADABM_DEVICE void fragment(uint32_t (&a)[4], int width, Read&& read) {
  const int lane = threadIdx.x % 32, output = threadIdx.x / 32 % 4 * 16 + lane / 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = output + i % 2 < width ? read(i / 2, output + i % 2, lane % 4) : 0u;
}

// Starts the products of one strip with all weights; acc holds them once the wait is over.
template <int kColumns>
ADABM_DEVICE void multiply_resident(int32_t (&acc)[kColumns / 2], const uint32_t (&a)[kResidentSteps][kResidentTaps][4], uint64_t strip, uint32_t plane_bytes,
                                    int row_pixels) {
  ptx::wgmma_fence();
  const uint32_t start = static_cast<uint32_t>(strip);  // offsets change only the lower half of a descriptor
#pragma unroll
  for (int step = 0; step < kResidentSteps; step++)
#pragma unroll
    for (int tap = 0; tap < kResidentTaps; tap++) {
      const uint32_t moved = start + step * 2 * (plane_bytes >> 4) + tap / 3 * row_pixels + tap % 3;
      ptx::wgmma_s8u8<kColumns>(acc, a[step][tap], strip >> 32 << 32 | moved, step | tap);
    }
  ptx::wgmma_commit();
}

// Returns the descriptor of the matrix `offset` units of 16 bytes further on; only the lower half changes.
ADABM_DEVICE uint64_t moved(uint64_t descriptor, uint32_t offset) { return descriptor >> 32 << 32 | (static_cast<uint32_t>(descriptor) + offset); }

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
