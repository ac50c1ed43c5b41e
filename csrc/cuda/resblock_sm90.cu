// Cuts images into tiles for resblock_sm90.cuh and launches.
#include <algorithm>
#include <array>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/resblock_sm90.cuh"
#include "cuda/sm90.h"

namespace adabm {
namespace cuda {
namespace sm90 {
namespace {

constexpr int kOtherBytes = 2 * kBarrierBytes + 8 * kOutRows * kStagedPitch;

using Kernel = void (*)(ResblockParams);

constexpr int stages(const TileConfig& config) {
  const BlockTile tile(config.strips);
  return std::min(config.stages, (kSharedBytes - kOtherBytes - config.middles * tile.middle_bytes) / tile.stage_bytes);
}

template <size_t... kRow>
Kernel kernel_of(int row, std::index_sequence<kRow...>) {
  static_assert(((stages(kResblockConfigs[kRow]) == kResblockConfigs[kRow].stages) && ...), "a row that does not fit shared memory");
  const std::array<Kernel, sizeof...(kRow)> kernels = {resblock_sm90<kResblockConfigs[kRow].strips>...};
  return kernels[row];
}

bool resident(const Conv2dParams& p) {
  return (p.code_channels + kStepBytes - 1) / kStepBytes == kResidentSteps && p.tiling.tiles == 1 && p.kernel_h == 3 && p.kernel_w == 3 &&
         p.shuffle == 1 && !p.border_kernels;
}

void cut(Conv2dParams& p, const BlockTile& tile) {
  p.plane_pixels = tile.plane_pixels;
  p.inner_across = (p.width + tile.out_columns - 1) / tile.out_columns;
  p.tiles = p.inner_tiles = p.inner_across * ((p.height + kOutRows - 1) / kOutRows);
}

}  // namespace

const char* why_not_resblock(const Conv2dParams& first, const Conv2dParams& second) {
  if (!resident(first) || !resident(second)) return "its convolutions are not 3x3 with 33 to 64 channels";
  if (first.box || second.box) return "its weights need the sum of the codes";
  return nullptr;
}

void resblock(const Conv2dParams& first, const Conv2dParams& second, int device, void* stream) {
  const int blocks = multiprocessors(device);
  ResblockParams q = {first, second, 0, 0, 0};
  const int row = choose(ADABM_KERNEL_RESBLOCK, first.config, blocks, [&](const TileConfig& config) -> int64_t {
    cut(q.first, BlockTile(config.strips));
    return static_cast<int64_t>(first.batch) * q.first.tiles;
  });
  const TileConfig& config = kResblockConfigs[row];
  const BlockTile tile(config.strips);
  cut(q.first, tile), cut(q.second, tile);
  q.stages = config.stages, q.middles = config.middles, q.blocks = std::min(first.batch * q.first.tiles, blocks);
  const uint32_t shared = kOtherBytes + q.middles * tile.middle_bytes + q.stages * tile.stage_bytes;
  launch(kernel_of(row, std::make_index_sequence<std::size(kResblockConfigs)>()), "resblock_sm90", dim3(q.blocks), dim3(kThreads), shared, stream, q);
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
