// Cuts images into tiles for resblock_sm90.cuh and launches.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/resblock_sm90.cuh"
#include "cuda/sm90.h"

namespace adabm {
namespace cuda {
namespace sm90 {
namespace {

bool resident(const Conv2dParams& p) {
  return (p.code_channels + kStepBytes - 1) / kStepBytes == kResidentSteps && p.tiling.tiles == 1 && p.kernel_h == 3 && p.kernel_w == 3 &&
         p.shuffle == 1 && !p.border_kernels;
}

void cut(Conv2dParams& p, int plane_pixels) {
  p.plane_pixels = plane_pixels;
  p.inner_across = (p.width + kOutColumns - 1) / kOutColumns;
  p.tiles = p.inner_tiles = p.inner_across * ((p.height + kOutRows - 1) / kOutRows);
}

}  // namespace

const char* why_not_resblock(const Conv2dParams& first, const Conv2dParams& second) {
  if (!resident(first) || !resident(second)) return "its convolutions are not 3x3 with 33 to 64 channels";
  if (first.box || second.box) return "its weights need the sum of the codes";
  return nullptr;
}

void resblock(const Conv2dParams& first, const Conv2dParams& second, int device, void* stream) {
  ResblockParams q = {first, second, 0, 0, 0};
  const int halo = (kStripRows + 2) * (kTileColumns + 2), plane_pixels = (halo + 7) / 8 * 8 + 2;
  cut(q.first, plane_pixels), cut(q.second, plane_pixels);
  q.stage_bytes = kMiddlePlanes * plane_pixels * kRowBytes;
  const int others = 2 * kBarrierBytes + kMiddleBuffers * kMiddleBytes + 8 * kOutRows * kStagedPitch;
  q.stages = std::min(kMaxStages, (kSharedBytes - others) / q.stage_bytes);
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  q.blocks = std::min(q.first.batch * q.first.tiles, multiprocessors);
  launch(resblock_sm90, "resblock_sm90", dim3(q.blocks), dim3(kThreads), others + q.stages * q.stage_bytes, stream, q);
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
