// Implicit-GEMM convolution on wgmma (sm_90a): weights are the rows of A; pixels the columns of B, in shared memory.
//
// Weights are A because A has 64 rows, and B up to 256 columns: 64 outputs are a usual layer, and there are always pixels enough. The tile
// of codes and its strips are described in tile_sm90.cuh.
//
// A block has three warpgroups and stays on the chip, taking tile after tile of all images:
//
//   producer     | tile 0 | tile 1 | tile 2 | tile 3 ...     brings codes (and weights) into a ring of stages (producer_sm90.cuh)
//   consumer 0            | products | results | products ...
//   consumer 1                | products | results | ...
//
// A stage is handed over by two barriers in shared memory, "full" and "empty" (Ring), and nothing else is waited for: there is no barrier
// of the whole block after the start. The producer gives its registers to the consumers, who need them for sums and weights.
//
// Two forms, by where the weights are:
//   resident: 3x3 and up to 64 channels. The weights of 64 outputs are 72 registers of each thread, loaded once for all tiles. A stage is a
//     whole tile; each consumer takes every second strip of it, so that one stores results while the other multiplies.
//   staged: everything else. A stage is 32 channels of the tile and their weights, which all strips read while they are there; a consumer
//     keeps the sums of all its strips until the last stage. With a box (weights k' of m = 2k' + 1) the products are made twice and once
//     more with ones, which adds up to 2k' + 1 without wider weights.
//
// Branches around products are taken on votes: on a condition that the compiler does not know to be the same for a warp it would wait for
// every product by itself. Counts and what was tried are in docs/notes_hopper.md.
#pragma once

#include <type_traits>

#include "cuda/epilogue_sm90.cuh"
#include "cuda/epilogue_staged_sm90.cuh"
#include "cuda/producer_sm90.cuh"
#include "cuda/products_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

// Grid: [blocks that share the tiles of pixels of all images][tiles of outputs]. kForm: the form of all epilogues.
template <bool kResident, int kStrips, Straight kForm>
__global__ void __launch_bounds__(kThreads, 1) conv2d_sm90(const __grid_constant__ Conv2dParams90 q) {
  const Conv2dParams& p = q.c;
  const int items = p.batch * p.tiles, group = threadIdx.x / kGroupThreads;
  const uint32_t barriers = ptx::shared_base(), stages = barriers + kBarrierRoom, plane_bytes = p.plane_pixels * kRowBytes;
  const int taps = p.kernel_h * p.kernel_w, slice_bytes = p.tiling.width * kStepBytes;
  const Form& f = p.forms[0];
  const uint8_t* packed = p.packed + f.offset + blockIdx.y * f.tile_bytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < q.stages; i++) {
      ptx::mbarrier_init(barriers + 2 * i * ptx::kBarrierBytes, kGroupThreads + 1);  // one more arrival announces bytes
      ptx::mbarrier_init(barriers + (2 * i + 1) * ptx::kBarrierBytes, kConsumers * 4);
    }
  }
  // Writes ones, the rows of A that add up codes, and the bytes that the last product of a stage reads behind its weights where a tile has
  // fewer than 64 outputs.
  const uint32_t ones = barriers + kBarrierBytes;
  static_assert(kOnesBytes / 16 <= kThreads && kWeightRoom / 16 <= kThreads, "a thread for every 16 bytes");
  if (!kResident) {
    if (threadIdx.x < kOnesBytes / 16) ptx::store_shared(ones + 16 * threadIdx.x, ptx::Words4{{0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u}});
    if (threadIdx.x < kWeightRoom / 16)
      for (int i = 0; i < q.stages; i++) ptx::store_shared(stages + (i + 1) * q.stage_bytes - kWeightRoom + 16 * threadIdx.x, ptx::Words4{{0, 0, 0, 0}});
  }
  ptx::fence_async();
  ptx::sync_block();
  Ring ring(barriers, q.stages);

  if (group == 0) {
    ptx::give_registers<kProducerRegisters>();
    if constexpr (kResident)
      produce_tiles<kStrips, kStripRows, kStrips * kStripColumns, 1>(p, p.region, ring, stages, q.stage_bytes, q.blocks, q.map, q.tensor_bytes);
    else
      produce_stages<kStrips>(q, ring, stages, packed);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    // This is a vote, so that the compiler knows that numbers which follow from it, and which products read, are the same for a warp.
    const int consumer = kResident ? group - 1 : static_cast<int>(ptx::any_lane(group == kConsumers));
    static_assert(kConsumers == 2, "");
    const uint32_t staged = stages + q.stages * q.stage_bytes + consumer * (8 * kStripRows * kStagedPitch);
    const OutputTile outputs = output_tile(p.tiling, p.shuffle, blockIdx.y);
    const bool releases = threadIdx.x % 32 == 0;
    if constexpr (kResident) {
      uint32_t a[kResidentSteps][kResidentTaps][4];
#pragma unroll
      for (int step = 0; step < kResidentSteps; step++)
#pragma unroll
        for (int tap = 0; tap < kResidentTaps; tap++)
          fragment(a[step][tap], p.tiling.width, [&](int half, int output, int quarter) {
            const int at = (step * kResidentTaps + tap) * slice_bytes + (half * p.tiling.width + output) * kRowBytes + 4 * quarter;
            return ptx::load_constant(reinterpret_cast<const uint32_t*>(packed + at));
          });
      for (int item = blockIdx.x; item < items; item += q.blocks) {
        const int image = p.by_tiles.quotient(item), bits = image_bits(p.x_bits, image);
        const Tile at = place<kStrips, false>(p, item - image * p.tiles);
        const Share share = share_of(p.region, image, pixels_of(p, at));
        if (share == Share::kNone) continue;
        const bool by_pixel = p.by_pixel && share != Share::kAllComputed;
        const int strips = (at.end_column - at.column + kStripColumns - 1) / kStripColumns, here = strips < kStrips ? strips : kStrips;
        const uint32_t codes = stages + ring.stage * q.stage_bytes;
        const auto [with_work, computed] = strips_with_work(p, at, image, share, consumer, here);
        if (computes(share)) ring.wait_full();
        if (computes(share) && !computed) {
          ptx::sync_warp();  // all lanes have seen the stage full
          if (releases) ptx::mbarrier_arrive(ring.empty());
        }
#pragma unroll 1
        for (int strip = consumer; with_work >> strip; strip += kConsumers) {
          if (!(with_work >> strip & 1)) continue;
          int32_t acc[4 * kStripRows];  // the sums of one strip alone: sums carried from strip to strip would be copied
          const uint32_t thread = ptx::thread_index() % kGroupThreads;
          if constexpr (kForm != Straight::kNone) {
            const StripPixels pixels = strip_pixels<kStripRows>(p, at, strip);
            Ahead<kForm, kStripRows> ahead;
            multiply_resident<8 * kStripRows>(acc, a, strip_descriptor(at, codes, plane_bytes, strip), plane_bytes, at.row_step);
            read_ahead<kForm, kStripRows>(p, pixels, outputs, image, thread, ahead);
            const LayerValues values = layer_values<kForm>(p, image, bits, outputs.first + first_in_tile(thread));
            ptx::wgmma_wait<0>();
            if (!(computed >> strip >> kConsumers) && releases) ptx::mbarrier_arrive(ring.empty());  // before the results are stored
            straight_epilogue<kForm, kStripRows>(p, values, pixels, outputs, image, acc, ahead, thread, staged, 1 + consumer);
          } else {
            if (computed >> strip & 1) {
              multiply_resident<8 * kStripRows>(acc, a, strip_descriptor(at, codes, plane_bytes, strip), plane_bytes, at.row_step);
              ptx::wgmma_wait<0>();
              if (!(computed >> strip >> kConsumers) && releases) ptx::mbarrier_arrive(ring.empty());
            }
            general_epilogue<FourRows::kRows>(p, computed >> strip & 1, by_pixel, at, strip, kStripRows / FourRows::kRows, outputs, image, bits, thread, staged,
                                              1 + consumer, [&](int part) { FourRows::stage<true>(acc, part, FourRows::to<true>(staged, thread)); });
          }
        }
        if (computes(share)) ring.next();
      }
    } else {
      constexpr int kOwn = kStrips / kConsumers;  // strips of this warpgroup
      int32_t acc[kOwn][4 * kStripRows] = {};
      for (int item = blockIdx.x; item < items; item += q.blocks) {
        const int image = p.by_tiles.quotient(item), bits = image_bits(p.x_bits, image);
        const Tile at = place<kStrips>(p, item - image * p.tiles);
        const Share share = share_of(p.region, image, pixels_of(p, at));
        if (share == Share::kNone) continue;
        const int steps = computes(share) ? q.steps : 0;
        const int across = (at.end_column - at.column + kStripColumns - 1) / kStripColumns, here = across < at.strips ? across : at.strips;
        const int strips = (here - consumer + kConsumers - 1) / kConsumers;  // strips of this warpgroup inside the image
        for (int step = 0; step < steps; step++) {
          const uint32_t codes = stages + ring.stage * q.stage_bytes;
          ring.wait_full();
          // Multiplies only the strips of this warpgroup that lie inside the image. The compiler knows that all lanes take a branch on a vote alike.
          const auto multiply = [&](auto strips) {
            constexpr int kNow = decltype(strips)::value;
            uint64_t strip[kNow];
#pragma unroll
            for (int i = 0; i < kNow; i++) strip[i] = strip_descriptor(at, codes, plane_bytes, i * kConsumers + consumer);
            ptx::wgmma_fence();
            // With a box the weights are k' of m = 2k' + 1: products with them count twice, and products with ones once.
            for (int pass = 0; pass < (p.box ? 3 : 1); pass++) {
              const bool by_ones = pass == 2;
              const uint64_t weights = by_ones ? ptx::matrix_descriptor(ones, kMaxTileOutputs * kRowBytes, kGroupBytes)
                                               : ptx::matrix_descriptor(codes + q.code_bytes, p.tiling.width * kRowBytes, kGroupBytes);
              const uint32_t slice = by_ones ? 0 : slice_bytes / 16;
              uint32_t offset = 0, weight_offset = 0;
              int tap_column = 0;
              for (int tap = 0; tap < taps; tap++) {
#pragma unroll
                for (int i = 0; i < kNow; i++)
                  ptx::wgmma_s8u8<8 * kStripRows>(acc[i], moved(weights, weight_offset), moved(strip[i], offset), step | tap | pass);
                weight_offset += slice, offset += at.column_step;
                if (++tap_column == p.kernel_w) tap_column = 0, offset += at.row_step - p.kernel_w * at.column_step;
              }
            }
          };
          if (ptx::any_lane(strips == kOwn))
            multiply(std::integral_constant<int, kOwn>());
          else if (kOwn > 1 && ptx::any_lane(strips > 0))
            multiply(std::integral_constant<int, 1>());
          ptx::wgmma_commit();
          ptx::wgmma_wait<0>();
          if (releases) ptx::mbarrier_arrive(ring.empty());
          ring.next();
        }
        const uint32_t thread = ptx::thread_index() % kGroupThreads;
        if constexpr (kForm == Straight::kFours)
          four_epilogue(p, at, outputs, image, bits, consumer, acc, thread, staged);
        else
          general_strips(p, computes(share), p.by_pixel && share != Share::kAllComputed, at, outputs, image, bits, consumer, acc, thread, staged, 1 + consumer);
      }
    }
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
