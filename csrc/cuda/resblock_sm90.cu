// Cuts images into tiles for resblock_sm90.cuh and launches.
#include <algorithm>
#include <array>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/resblock_sm90.cuh"
#include "cuda/sm90.h"
#include "cuda/tensor_map.h"

namespace adabm {
namespace cuda {
namespace sm90 {
namespace {

constexpr int kOtherBytes = 2 * kBarrierBytes + 8 * kOutRows * kStagedPitch;

using Kernel = void (*)(ResblockParams);

constexpr int halo_pixels(const TileConfig& config) { return (kStripRows + 2) * (config.strips * kStripColumns + 2); }

// See parameters in conv2d_sm90.cu.
constexpr int plane_pixels(const TileConfig& config, bool tensor) { return (halo_pixels(config) + 7) / 8 * 8 + (tensor ? 0 : 2); }

constexpr int shared_bytes(const TileConfig& config) {
  return kOtherBytes + config.middles * BlockTile(config.strips).middle_bytes + config.stages * kMiddlePlanes * plane_pixels(config, false) * kRowBytes;
}

template <Straight kForm, size_t... kRow>
Kernel kernel_of(int row, std::index_sequence<kRow...>) {
  static_assert(((shared_bytes(kResblockConfigs[kRow]) <= kSharedBytes) && ...), "a row that does not fit shared memory");
  const std::array<Kernel, sizeof...(kRow)> kernels = {resblock_sm90<kResblockConfigs[kRow].strips, kForm>...};
  return kernels[row];
}

bool resident(const Conv2dParams& p) {
  return (p.code_channels + kStepBytes - 1) / kStepBytes == kResidentSteps && p.tiling.tiles == 1 && p.kernel_h == 3 && p.kernel_w == 3 && p.shuffle == 1 &&
         !p.border_kernels;
}

void cut(Conv2dParams& p, const TileConfig& config) {
  const int columns = BlockTile(config.strips).out_columns;
  p.inner_across = (p.width + columns - 1) / columns;
  p.tiles = p.inner_tiles = p.inner_across * ((p.height + kOutRows - 1) / kOutRows);
  p.by_tiles = make_divisor(p.tiles), p.by_inner_across = make_divisor(p.inner_across);
}

}  // namespace

const char* why_not_resblock(const Conv2dParams& first, const Conv2dParams& second) {
  if (!resident(first) || !resident(second)) return "its convolutions are not 3x3 with 33 to 64 channels";
  if (first.box || second.box) return "its weights need the sum of the codes";
  return nullptr;
}

void resblock(const Conv2dParams& first, const Conv2dParams& second, int device, void* stream) {
  const int blocks = multiprocessors(device);
  ResblockParams q = {};
  q.first = first, q.second = second;
  const int row = choose(ADABM_KERNEL_RESBLOCK, first.config, blocks, [&](const TileConfig& config) -> int64_t {
    cut(q.first, config);
    return static_cast<int64_t>(first.batch) * q.first.tiles;
  });
  const TileConfig& config = kResblockConfigs[row];
  const bool tensor = config.tensor_copies && first.code_channels % kRowBytes == 0;
  cut(q.first, config), cut(q.second, config);
  q.first.plane_pixels = plane_pixels(config, tensor);
  q.stages = config.stages, q.stage_bytes = kMiddlePlanes * q.first.plane_pixels * kRowBytes;
  q.middles = config.middles, q.blocks = std::min(first.batch * q.first.tiles, blocks);
  if (tensor) {
    q.tensor_bytes = halo_pixels(config) * kRowBytes;
    q.map = map_of_codes(first.x_q, first.batch, first.height, first.width, first.code_channels, kStripRows + 2, config.strips * kStripColumns + 2);
  }
  const uint32_t shared = shared_bytes(config);
  const auto run = [&](Kernel kernel) { launch(kernel, "resblock_sm90", dim3(q.blocks), dim3(kThreads), shared, stream, q); };
  constexpr auto rows = std::make_index_sequence<std::size(kResblockConfigs)>();
  // Where all pixels of tiles with a computed one may be written, the straight form takes them all. Blocks without features run the kernel
  // of float features, which has no PReLU: that of the second convolution is left to the general form.
  const Straight straight = straight_form(second);
  const bool general = second.activation == ADABM_ACT_PRELU || straight == Straight::kFloat32Apart;
  const Straight form = general ? Straight::kNone : straight;
  if (second.by_pixel && form != Straight::kNone) q.second.region.taken = TilesTaken::kAllComputed;
  if (form == Straight::kInt16)
    run(kernel_of<Straight::kInt16>(row, rows));
  else if (form != Straight::kNone)
    run(kernel_of<Straight::kFloat32>(row, rows));
  if (form != Straight::kNone && q.second.region.taken == TilesTaken::kAll) return;
  if (form != Straight::kNone) q.second.region.taken = TilesTaken::kOthers;
  run(kernel_of<Straight::kNone>(row, rows));
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
