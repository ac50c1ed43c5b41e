// Cuts images into tiles for conv2d_sm90.cuh, shares out shared memory, and launches.
#include <algorithm>

#include "cuda/conv2d_sm90.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90.h"

namespace adabm {
namespace cuda {
namespace sm90 {
namespace {

constexpr int kMinOutputs = 48;  // of a tile: the product always has 64 rows, and those without an output are wasted
constexpr int kMinProducts = 9;  // of one strip: fewer do not pay for the tile

int across(int size, int tile) { return (size + tile - 1) / tile; }

Conv2dParams90 parameters(const Conv2dParams& from) {
  Conv2dParams90 q = {};
  Conv2dParams& p = q.c = from;
  const int taps = p.kernel_h * p.kernel_w;
  q.steps = (p.code_channels + kStepBytes - 1) / kStepBytes;
  const bool resident = q.steps == kResidentSteps && p.kernel_h == 3 && p.kernel_w == 3 && !p.border_kernels && !p.box;
  q.stage_steps = resident ? kResidentSteps : 1;
  const int halo = (kStripRows + p.kernel_h - 1) * (kTileColumns + p.kernel_w - 1);
  // Neighbouring pixels' rows then start at different banks.
  p.plane_pixels = (halo + 7) / 8 * 8 + (resident ? 2 : 4);
  q.code_bytes = 2 * q.stage_steps * p.plane_pixels * kRowBytes;
  q.stage_bytes = (q.code_bytes + (resident ? 0 : taps * p.tiling.width * kStepBytes + kWeightRoom) + 127) / 128 * 128;
  const int staged = kConsumers * 8 * kStripRows * kStagedPitch;
  q.stages = std::min(kMaxStages, (kSharedBytes - kBarrierRoom - staged) / q.stage_bytes);
  const int cut_h = p.border_kernels ? p.kernel_h - 1 : 0, cut_w = p.border_kernels ? p.kernel_w - 1 : 0;
  const int inner_h = p.height - cut_h, inner_w = p.width - cut_w;
  for (p.edge = 8 * kStripRows; p.edge > 8 && (p.kernel_h * (p.edge + p.kernel_w - 1) > halo || p.kernel_w * (p.edge + p.kernel_h - 1) > halo);) p.edge /= 2;
  p.inner_across = across(inner_w, kTileColumns);
  p.inner_tiles = p.inner_across * across(inner_h, kStripRows);
  p.row_edge_tiles = across(inner_w, p.edge), p.column_edge_tiles = across(inner_h, p.edge);
  p.tiles = p.inner_tiles + cut_h * p.row_edge_tiles + cut_w * p.column_edge_tiles + cut_h * cut_w;
  const int row = p.shuffle * p.tiling.group;
  q.image_words = p.tiling.tiles == 1 && row % 4 == 0 && reinterpret_cast<uintptr_t>(p.y_image) % 4 == 0;
  return q;
}

}  // namespace

const char* why_not_conv2d(const Conv2dParams& p) {
  const Conv2dParams90 q = parameters(p);
  if (unfolds(p.code_channels, p.kernel_w)) return "it has so few channels that their columns are unfolded";
  if (p.tiling.width < kMinOutputs) return "it has fewer outputs in a tile than pay on wgmma";
  if (q.steps * p.kernel_h * p.kernel_w < kMinProducts) return "it has too few products for each pixel";
  if (q.stages < 2) return "two tiles with their weights do not fit shared memory";
  return nullptr;
}

void conv2d(const Conv2dParams& p, int device, void* stream) {
  Conv2dParams90 q = parameters(p);
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  q.blocks = std::max(1, std::min(q.c.batch * q.c.tiles, multiprocessors / q.c.tiling.tiles));
  const uint32_t shared = kBarrierRoom + q.stages * q.stage_bytes + kConsumers * 8 * kStripRows * kStagedPitch;
  const auto kernel = q.stage_steps == kResidentSteps ? conv2d_sm90<true> : conv2d_sm90<false>;
  launch(kernel, "conv2d_sm90", dim3(q.blocks, q.c.tiling.tiles), dim3(kThreads), shared, stream, q);
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
