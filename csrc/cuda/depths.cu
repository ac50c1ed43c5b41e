// Finds the depth of each depth tile: deep where the image bends by more than a threshold in the tile.
#include <algorithm>

#include "common/rules.h"
#include "common/status.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace adabm {
namespace cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kMaxBlocks = 2048;

struct DepthsParams {
  adabm_depths_args a;
  int rows, columns;  // numbers of tiles
};

// The pixels first..end - 1 that lie in a tile along one side of an image, which has `size` pixels there.
struct Span {
  int first, end;
};
ADABM_DEVICE Span span_of(int index, int tile, int lacking, int size) {
  const int first = index * tile - lacking, end = first + tile;
  return {first < 0 ? 0 : first, end > size ? size : end};
}

// Returns whether |before - 2 * at + after| is above the threshold in one of four channels.
ADABM_DEVICE bool bends(uint32_t before, uint32_t at, uint32_t after, int threshold) {
  bool more = false;
#pragma unroll
  for (int shift = 0; shift < 32; shift += 8) {
    const int change = static_cast<int>((before >> shift & 255) + (after >> shift & 255)) - 2 * static_cast<int>(at >> shift & 255);
    more |= change > threshold || -change > threshold;
  }
  return more;
}

// Returns whether a pixel in the share of a warp bends by more: every kWarps-th row of a tile, 32 columns at once. All lanes get the same
// answer.
ADABM_DEVICE bool warp_finds_bend(const DepthsParams& p, int64_t image, int tile_row, int tile_column) {
  const adabm_depths_args& a = p.a;
  const Span rows = span_of(tile_row, a.tile, a.top, a.height), columns = span_of(tile_column, a.tile, a.left, a.width);
  const int lane = threadIdx.x % 32;
  for (int row = rows.first + threadIdx.x / 32; row < rows.end; row += kWarps) {
    const uint32_t* line = reinterpret_cast<const uint32_t*>(a.x_q) + (image * a.height + row) * a.width;
    const uint32_t* above = row ? line - a.width : line;
    const uint32_t* below = row + 1 < a.height ? line + a.width : line;
    for (int start = columns.first; start < columns.end; start += 32) {
      const int column = start + lane;
      bool more = false;
      if (column < columns.end) {
        const int before = column ? column - 1 : column, after = column + 1 < a.width ? column + 1 : column;
        const uint32_t at = ptx::load_constant(line + column);
        more = bends(ptx::load_constant(above + column), at, ptx::load_constant(below + column), a.threshold) ||
               bends(ptx::load_constant(line + before), at, ptx::load_constant(line + after), a.threshold);
      }
      if (ptx::any_lane(more)) return true;
    }
  }
  return false;
}

// Tiles of all images are counted together; a block takes every tile that is a multiple of kMaxBlocks behind its first.
__global__ void __launch_bounds__(kThreads) tile_depths(const __grid_constant__ DepthsParams p) {
  const int64_t tiles = static_cast<int64_t>(p.a.batch) * p.rows * p.columns;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += kMaxBlocks) {
    const int64_t tile_line = tile / p.columns;
    const bool found = warp_finds_bend(p, tile_line / p.rows, static_cast<int>(tile_line % p.rows), static_cast<int>(tile % p.columns));
    if (threadIdx.x % 32 == 0) ptx::store_shared(ptx::shared_base() + threadIdx.x / 32 * 4, static_cast<uint32_t>(found));
    ptx::sync_block();
    if (threadIdx.x == 0) {
      uint32_t any = 0;
      for (int warp = 0; warp < kWarps; warp++) any |= ptx::load_shared<uint32_t>(ptx::shared_base() + warp * 4);
      ptx::store_global(p.a.depth + tile, static_cast<uint8_t>(any ? p.a.deep : 0));
    }
    ptx::sync_block();
  }
}

}  // namespace
}  // namespace cuda
}  // namespace adabm

extern "C" adabm_status adabm_depths_cuda(const adabm_depths_args* args, int32_t device, void* stream) {
  using namespace adabm;
  using namespace adabm::cuda;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_depths_args), "args must be a struct of %zu bytes", sizeof(adabm_depths_args));
    const adabm_depths_args& a = *args;
    check_rules(a);
    ADABM_REQUIRE(reinterpret_cast<uintptr_t>(a.x_q) % 4 == 0, "x_q must be 4-byte aligned");
    const DeviceScope scope(device);
    scope.check_pointer(a.x_q, "x_q"), scope.check_pointer(a.depth, "depth");
    const DepthsParams p = {a, (a.top + a.height + a.tile - 1) / a.tile, (a.left + a.width + a.tile - 1) / a.tile};
    const int64_t tiles = static_cast<int64_t>(a.batch) * p.rows * p.columns;
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(tiles, kMaxBlocks)));
    launch(tile_depths, "tile depths", grid, dim3(kThreads), kWarps * sizeof(uint32_t), stream, p);
  });
}
