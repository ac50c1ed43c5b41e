// How the kernels of compute capability 9.0 bring tiles of codes into shared memory, ahead of the warpgroups that multiply.
#pragma once

#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

// Brings `planes` rows of 16 channels, from the first_plane-th on, of a tile and its halo into shared memory; zeros outside the
// image.
ADABM_DEVICE void load_tile(const Conv2dParams& p, const Tile& at, const uint8_t* image, int storage, int first_plane, int planes, uint32_t to) {
  const int pitch = pixel_bytes(p.code_channels, storage), row_bytes = kRowBytes * storage / 8;
  const int across = at.row_step == 1 ? at.halo_rows : at.halo_columns, pixels = at.halo_rows * at.halo_columns;
  const int top = at.row - p.kernel_h / 2, left = at.column - p.kernel_w / 2;
  for (int unit = threadIdx.x % kGroupThreads; unit < pixels * planes; unit += kGroupThreads) {
    const int pixel = unit / planes, plane = unit % planes;
    const int outer = pixel / across, inner = pixel % across;
    const int row = top + (at.row_step == 1 ? inner : outer), column = left + (at.row_step == 1 ? outer : inner);
    const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height) && static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
    const int from = (first_plane + plane) * row_bytes;
    const int there = inside && pitch > from ? pitch - from : 0;  // bytes of this row that exist
    const uint8_t* source = there ? image + (row * p.width + column) * pitch + from : image;
    const uint32_t target = to + (plane * p.plane_pixels + pixel) * kRowBytes;
    if (storage != 8) {
      auto word = [&](int i) { return 4 * i < there ? ptx::load_constant(reinterpret_cast<const uint32_t*>(source) + i) : 0u; };
      ptx::store_shared(target, convert_row<8>(storage, word));
    } else if (pitch % kRowBytes == 0) {
      ptx::cp_async<16>(target, source, there ? 16 : 0);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) ptx::cp_async<4>(target + 4 * i, 4 * i < there ? source + 4 * i : image, 4 * i < there ? 4 : 0);
    }
  }
}

// The same by the copy engine, started by one thread: a box for each row of 16 channels. For codes stored as bytes.
ADABM_DEVICE void copy_tile(const Conv2dParams& p, const ptx::TensorMap& map, const Tile& at, int image, int first_plane, int planes, uint32_t to,
                            uint32_t barrier) {
  for (int plane = 0; plane < planes; plane++)
    ptx::tensor_copy(to + plane * p.plane_pixels * kRowBytes, map, (first_plane + plane) * kRowBytes, at.column - p.kernel_w / 2,
                     at.row - p.kernel_h / 2, image, barrier);
}

// A ring of stages in shared memory: barrier 2 i says that stage i is full, barrier 2 i + 1 that it is empty again.
struct Ring {
  uint32_t barriers;
  int stages, stage = 0;
  uint32_t parity = 0;

  ADABM_DEVICE Ring(uint32_t barriers, int stages) : barriers(barriers), stages(stages) {}
  ADABM_DEVICE uint32_t full() const { return barriers + stage * 2 * ptx::kBarrierBytes; }
  ADABM_DEVICE uint32_t empty() const { return full() + ptx::kBarrierBytes; }
  ADABM_DEVICE void wait_full() const { ptx::mbarrier_wait(full(), parity); }
  // The first round finds everything empty.
  ADABM_DEVICE void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  ADABM_DEVICE void next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Stages of ordinary copies, which become full one stage late: then the next stage's are already on their way.
struct Producer {
  Ring ring;
  uint32_t before = 0;
  bool any = false;

  ADABM_DEVICE void issued() {
    ptx::cp_async_commit();
    if (any) ptx::cp_async_wait<1>(), ptx::fence_async(), ptx::mbarrier_arrive(before);
    before = ring.full(), any = true;
    ring.next();
  }
  ADABM_DEVICE void finish() {
    if (any) ptx::cp_async_wait<0>(), ptx::fence_async(), ptx::mbarrier_arrive(before);
    any = false;
  }
  // A stage whose copies arrive by themselves.
  ADABM_DEVICE void handed_over() {
    ptx::mbarrier_arrive(ring.full());
    ring.next();
  }
};

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
