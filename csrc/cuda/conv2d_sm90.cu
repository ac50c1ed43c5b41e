// Cuts images into tiles for conv2d_sm90.cuh, shares out shared memory, and launches.
#include <algorithm>
#include <array>
#include <utility>

#include "cuda/conv2d_sm90.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90.h"
#include "cuda/tensor_map.h"

namespace adabm {
namespace cuda {
namespace sm90 {
namespace {

constexpr int kStagedBytes = kConsumers * 8 * kStripRows * kStagedPitch;

using Kernel = void (*)(Conv2dParams90);

template <bool kResident, Straight kForm, size_t... kRow>
Kernel kernel_of(int row, std::index_sequence<kRow...>) {
  constexpr const TileConfig* rows = kResident ? kResidentConfigs : kStagedConfigs;
  const std::array<Kernel, sizeof...(kRow)> kernels = {conv2d_sm90<kResident, rows[kRow].strips, kForm>...};
  return kernels[row];
}

Kernel resident_kernel(Straight form, int row) {
  constexpr auto rows = std::make_index_sequence<std::size(kResidentConfigs)>();
  switch (form) {
    case Straight::kCodes: return kernel_of<true, Straight::kCodes>(row, rows);
    case Straight::kFloat32: return kernel_of<true, Straight::kFloat32>(row, rows);
    case Straight::kFloat32Apart: return kernel_of<true, Straight::kFloat32Apart>(row, rows);
    case Straight::kInt16: return kernel_of<true, Straight::kInt16>(row, rows);
    default: return kernel_of<true, Straight::kNone>(row, rows);
  }
}

Kernel staged_kernel(Straight form, int row) {
  constexpr auto rows = std::make_index_sequence<std::size(kStagedConfigs)>();
  return form == Straight::kFours ? kernel_of<false, Straight::kFours>(row, rows) : kernel_of<false, Straight::kNone>(row, rows);
}

int across(int size, int tile) { return (size + tile - 1) / tile; }

int steps(const Conv2dParams& p) { return (p.code_channels + kStepBytes - 1) / kStepBytes; }

int kernel_kind(const Conv2dParams& p) {
  const bool resident = steps(p) == kResidentSteps && p.kernel_h == 3 && p.kernel_w == 3 && !p.border_kernels && !p.box;
  return resident ? ADABM_KERNEL_RESIDENT : ADABM_KERNEL_STAGED;
}

Conv2dParams90 parameters(const Conv2dParams& from, const TileConfig& config) {
  Conv2dParams90 q = {};
  Conv2dParams& p = q.c = from;
  const int taps = p.kernel_h * p.kernel_w, tile_columns = config.strips * kStripColumns;
  q.steps = steps(p);
  const bool resident = kernel_kind(p) == ADABM_KERNEL_RESIDENT;
  q.stage_steps = resident ? kResidentSteps : 1;
  p.edge = 8 * kStripRows;
  int halo = (kStripRows + p.kernel_h - 1) * (tile_columns + p.kernel_w - 1);
  if (p.border_kernels) halo = std::max({halo, p.kernel_h * (p.edge + p.kernel_w - 1), p.kernel_w * (p.edge + p.kernel_h - 1)});
  const bool tensor = config.tensor_copies && p.code_channels % kRowBytes == 0 && !p.border_kernels;
  q.tensor_bytes = tensor ? halo * kRowBytes : 0;
  // Neighbouring pixels' rows then start at different banks, where threads write them; boxes begin at multiples of 128 bytes.
  p.plane_pixels = (halo + 7) / 8 * 8 + (tensor ? 0 : resident ? 2 : 4);
  q.code_bytes = 2 * q.stage_steps * p.plane_pixels * kRowBytes;
  q.stage_bytes = (q.code_bytes + (resident ? 0 : taps * p.tiling.width * kStepBytes + kWeightRoom) + 127) / 128 * 128;
  q.stages = std::min(config.stages, (kSharedBytes - kBarrierRoom - kStagedBytes) / q.stage_bytes);
  const int cut_h = p.border_kernels ? p.kernel_h - 1 : 0, cut_w = p.border_kernels ? p.kernel_w - 1 : 0;
  const int inner_h = p.height - cut_h, inner_w = p.width - cut_w;
  p.inner_across = across(inner_w, tile_columns);
  p.inner_tiles = p.inner_across * across(inner_h, kStripRows);
  p.row_edge_tiles = across(inner_w, p.edge), p.column_edge_tiles = across(inner_h, p.edge);
  p.tiles = p.inner_tiles + cut_h * p.row_edge_tiles + cut_w * p.column_edge_tiles + cut_h * cut_w;
  p.by_tiles = make_divisor(p.tiles), p.by_inner_across = make_divisor(p.inner_across);
  return q;
}

int blocks_of(const Conv2dParams& p, int device) { return std::max(1, multiprocessors(device) / p.tiling.tiles); }

int chosen(const Conv2dParams& p, int device) {
  return choose(kernel_kind(p), p.config, blocks_of(p, device), [&](const TileConfig& config) -> int64_t {
    const Conv2dParams90 q = parameters(p, config);
    return q.stages < 2 ? 0 : static_cast<int64_t>(p.batch) * q.c.tiles;
  });
}

}  // namespace

int multiprocessors(int device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

const char* why_not_conv2d(const Conv2dParams& p, int device) {
  if (unfolds(p.code_channels, p.kernel_w)) return "it has so few channels that their columns are unfolded";
  if (p.tiling.width < kMinOutputs) return "it has fewer outputs in a tile than pay on wgmma";
  if (steps(p) * p.kernel_h * p.kernel_w < kMinProducts) return "it has too few products for each pixel";
  if (chosen(p, device) < 0) return "two tiles with their weights do not fit shared memory";
  return nullptr;
}

void conv2d(const Conv2dParams& p, int device, void* stream) {
  const int row = chosen(p, device), kind = kernel_kind(p);
  Conv2dParams90 q = parameters(p, configs(kind).rows[row]);
  q.blocks = std::min(q.c.batch * q.c.tiles, blocks_of(p, device));
  if (q.tensor_bytes)
    q.map = map_of_codes(p.x_q, p.batch, p.height, p.width, p.code_channels, kStripRows + p.kernel_h - 1,
                         configs(kind).rows[row].strips * kStripColumns + p.kernel_w - 1);
  const uint32_t shared = kBarrierRoom + q.stages * q.stage_bytes + kStagedBytes;
  const auto run = [&](Kernel kernel) { launch(kernel, "conv2d_sm90", dim3(q.blocks, q.c.tiling.tiles), dim3(kThreads), shared, stream, q); };
  const auto kernel = [&](Straight form) { return kind == ADABM_KERNEL_STAGED ? staged_kernel(form, row) : resident_kernel(form, row); };
  const Straight form = kind == ADABM_KERNEL_STAGED ? staged_form(p) : straight_form(p);
  if (p.by_pixel && form != Straight::kNone) q.c.region.taken = TilesTaken::kAllComputed;
  run(kernel(form));
  if (q.c.region.taken == TilesTaken::kAll) return;
  q.c.region.taken = TilesTaken::kOthers;
  run(kernel(Straight::kNone));
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
