// The configurations of the kernels of compute capability 9.0, as data. Each row is compiled; the first is taken unless another needs less
// time by the count in `choose`, or adabm_conv2d_args.config names one.
//
// Provenance: no row has been timed. Rows and their order follow from the arithmetic of docs/notes_hopper.md and from the registers that
// nvcc 13.0 reports; benchmarks/gpu/bench_gpu_hopper.py times every row on a card, and its figures belong here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "adabm/adabm.h"
#include "common/status.h"

namespace adabm {
namespace cuda {
namespace sm90 {

// A strip has the pixels that one product takes as columns: 8 by 16, which are 128, so that 64 sums and the 72 registers of weights fit
// into 224. The second convolution of a residual block makes 14 rows of it (112 pixels).
constexpr int kStripColumns = 8, kStripRows = 16;
// A multiprocessor has registers for 384 threads with 168 each at entry. Producers spill with 40 registers (112 bytes), but not with 56; that
// leaves 224 for consumers.
constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;
constexpr int kMaxStages = 6;
constexpr int kMinOutputs = 48;  // fewest outputs of a tile: the product always has 64 rows, and rows without an output are wasted
constexpr int kMinProducts = 9;  // fewest products of one strip: fewer are not worth the copy of the tile

struct TileConfig {
  int strips;   // strips side by side in a tile, each 8 columns of 16 rows; of a residual block those of its first convolution
  int stages;   // tiles in shared memory at most, where they fit
  int middles;  // tiles of codes between the convolutions of a residual block
  // True: the copy engine brings tiles in, a box of 16 channels at a time, where codes are stored as bytes, pixels are multiples of 16 bytes
  // and there are no kernels by border class. Otherwise 128 threads bring tiles in, 16 bytes each.
  bool tensor_copies;
};

// Weights in registers. 64 channels take 39.6 KB a stage for four strips, 21 KB for two, 76.4 KB for eight; the halo that is copied
// with a tile is 20, 27 and 16 % of it. A row with tensor copies comes after the row that is otherwise equal: it runs only where it
// is named.
constexpr TileConfig kResidentConfigs[] = {{4, 4, 0, false}, {2, 6, 0, false}, {8, 2, 0, false}, {4, 4, 0, true}};

// Weights through shared memory: two warpgroups keep the sums of all their strips, so four at most (128 registers). A stage of
// weights serves a whole tile: with two strips they are read twice as often.
constexpr TileConfig kStagedConfigs[] = {{4, 4, 0, false}, {2, 4, 0, false}, {4, 4, 0, true}};

// Residual blocks compute the pixels that neighbouring tiles share in both tiles: 14 % more products than needed with four strips, 31 % with two,
// 12 % with six, which leave room for two stages.
constexpr TileConfig kResblockConfigs[] = {{4, 3, 2, false}, {2, 4, 2, false}, {6, 2, 2, false}, {4, 3, 2, true}};

struct Configs {
  const TileConfig* rows;
  int count;
};

inline Configs configs(int kernel) {
  switch (kernel) {
    case ADABM_KERNEL_RESIDENT: return {kResidentConfigs, static_cast<int>(std::size(kResidentConfigs))};
    case ADABM_KERNEL_STAGED: return {kStagedConfigs, static_cast<int>(std::size(kStagedConfigs))};
    default: return {kResblockConfigs, static_cast<int>(std::size(kResblockConfigs))};
  }
}

// Returns the row to take; -1 where none fits. wanted: adabm_conv2d_args.config. tiles(row): number of tiles of all images, or 0 where the
// row does not fit shared memory. Where no row is named, the fewest rounds of `blocks` tiles times strips win, as products take most of the
// time; among equals the first row.
template <class Tiles>
int choose(int kernel, int wanted, int blocks, Tiles&& tiles) {
  const Configs all = configs(kernel);
  ADABM_REQUIRE(wanted >= 0 && wanted <= all.count, "config must be 0..%d for this kernel, got %d", all.count, wanted);
  int best = -1;
  int64_t least = INT64_MAX;
  for (int i = 0; i < all.count; i++) {
    if (wanted && i != wanted - 1) continue;
    const int64_t count = tiles(all.rows[i]), time = (count + blocks - 1) / blocks * all.rows[i].strips;
    if (count && time < least) best = i, least = time;
  }
  return best;
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
