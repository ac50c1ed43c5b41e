// A whole residual block in one kernel (sm_90a): convolution, activation, codes, convolution, residual, next codes. The codes in
// the middle never leave the chip.
//
// Both convolutions are 64 to 64 channels, 3x3, with their weights in registers. Each of the three warpgroups has one task:
//
//   producer   | tile 0 | tile 1 | tile 2 ...              codes from memory into a ring of stages
//   first               | tile 0 | tile 1 | tile 2 ...     products, then middle codes into a second ring
//   second                       | tile 0 | tile 1 ...     products of the middle codes, then residual, features and codes
//
// A tile of four strips (other widths: conv2d_configs.cuh):
//
//   input 34 x 18  ->  middle 32 x 16  ->  results 30 x 14       columns x rows; each convolution loses a pixel on every side
//
// The first writes the middle codes where the products of the second read them, in planes of 16 channels as tile_sm90.cuh describes. Pixels
// that neighbouring tiles share are computed by both: 512 + 448 products for 420 pixels instead of 420 + 420. That is the price for not
// writing the middle codes to memory and reading them again.
//
// Where the second has a region, the middle codes of pixels that it does not compute are those of 0, as if the first had had the same
// region and passed zeros on (docs/gpu_cuda.md, "Regions").
#pragma once

#include "cuda/epilogue_general_sm90.cuh"
#include "cuda/epilogue_sm90.cuh"
#include "cuda/producer_sm90.cuh"
#include "cuda/products_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

constexpr int kOutRows = kStripRows - 2, kMiddlePlanes = 2 * kResidentSteps;

// Sizes of a tile of `strips` strips of the first convolution, and so of the codes in the middle.
struct BlockTile {
  int columns, out_columns, middle_pixels, middle_plane_bytes, middle_bytes;
  ADABM_HD constexpr explicit BlockTile(int strips)
      : columns(strips * kStripColumns), out_columns(columns - 2), middle_pixels(columns * kStripRows),
        // The last strip of the second convolution reads two pixels past the last row. Two more are 2 modulo 8: neighbouring
        // planes, other banks.
        middle_plane_bytes((middle_pixels + 2) * kRowBytes), middle_bytes(kMiddlePlanes * middle_plane_bytes) {}
};

struct ResblockParams {
  Conv2dParams first, second;  // both are cut into the same tiles; only the places where they read and write differ
  int stages, stage_bytes, middles, blocks;
  int tensor_bytes;  // bytes of a box of codes; 0 where threads copy
  ptx::TensorMap map;
};

// Returns the pixels that the first convolution computes for a tile: one more on each side than the second.
template <int kStrips>
ADABM_DEVICE Tile middle_tile(const Conv2dParams& p, int tile) {
  constexpr BlockTile kTile(kStrips);
  Tile at = {};
  at.row = p.by_inner_across.quotient(tile) * kOutRows - 1, at.column = p.by_inner_across.rest(tile) * kTile.out_columns - 1;
  at.end_row = p.height, at.end_column = p.width;
  at.halo_rows = kStripRows + 2, at.halo_columns = kTile.columns + 2, at.row_step = at.halo_columns, at.column_step = 1;
  at.group_rows = 1, at.pixel_columns = 1, at.strips = kStrips, at.strip_columns = kStripColumns;
  return at;
}

// Returns the pixels of the second convolution: their halo is the middle tile, whose rows have no other pixels.
template <int kStrips>
ADABM_DEVICE Tile result_tile(const Conv2dParams& p, int tile) {
  constexpr BlockTile kTile(kStrips);
  Tile at = middle_tile<kStrips>(p, tile);
  at.row++, at.column++;
  at.end_row = at.row + kOutRows < p.height ? at.row + kOutRows : p.height;
  at.end_column = at.column + kTile.out_columns < p.width ? at.column + kTile.out_columns : p.width;
  at.halo_rows = kStripRows, at.halo_columns = at.row_step = kTile.columns;
  return at;
}

ADABM_DEVICE void load_weights(uint32_t (&a)[kResidentSteps][kResidentTaps][4], const Conv2dParams& p) {
  const uint8_t* packed = p.packed + p.forms[0].offset;
#pragma unroll
  for (int step = 0; step < kResidentSteps; step++)
#pragma unroll
    for (int tap = 0; tap < kResidentTaps; tap++)
      fragment(a[step][tap], p.tiling.width, [&](int half, int output, int quarter) {
        const int at = ((step * kResidentTaps + tap) * 2 + half) * p.tiling.width + output;
        return ptx::load_constant(reinterpret_cast<const uint32_t*>(packed + at * kRowBytes + 4 * quarter));
      });
}

// The constants of one thread for the first convolution; `channels` is a mask of the codes of a unit that exist, for two pixels. The codes in
// the middle are stored as bytes.
ADABM_DEVICE LayerValues middle_values(const Conv2dParams& p, int image, int bits, uint32_t thread, uint32_t& channels) {
  const int first = static_cast<int>(first_in_tile(thread));
  const float* alpha = p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels;
  LayerValues v = {};
  v.output = first < p.out_channels ? first : p.out_channels - 1, v.second = v.output + 1 < p.out_channels;
  set_grid(v, p.out_grid, image_bits(p.out_bits, image), 1.0f);
  v.units = v.shrink, v.activation = p.activation == ADABM_ACT_RELU && codes_need_no_relu(v.grid) ? ADABM_ACT_NONE : p.activation;
  channels = 0;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    v.alphas[e] = ptx::load_constant(alpha + v.output + e * v.second) * v.units;
    v.betas[e] = ptx::load_constant(p.beta + v.output + e * v.second) * v.units;
    channels |= first + e < p.out_channels ? 0x00ff00ffu << (8 * e) : 0u;
  }
  return v;
}

// Writes the codes of one strip of the middle where the products of the second convolution read them; 0 outside the image.
template <int kStrips>
ADABM_DEVICE void middle_codes(const Conv2dParams& p, const Tile& at, int strip, const LayerValues& v, uint32_t channels, const int32_t (&acc)[4 * kStripRows],
                               uint32_t thread, uint32_t middle) {
  constexpr BlockTile kTile(kStrips);
  const uint32_t plane = thread / 32;
  const int first_column = at.column + strip * kStripColumns, column = first_column + static_cast<int>(thread % 4 * 2);
  const bool border = ptx::any_lane(at.row < 1 || at.row + kStripRows >= p.height || first_column < 1 || first_column + kStripColumns >= p.width);
  const auto inside = [](int position, int size) { return static_cast<unsigned>(position) < static_cast<unsigned>(size); };
  const uint32_t kept = ((inside(column, p.width) ? 0xffffu : 0u) | (inside(column + 1, p.width) ? 0xffff0000u : 0u)) & channels;
  Betas betas(p, v, border, at.row, column);
  const uint32_t to = middle + plane * kTile.middle_plane_bytes + strip * kStripColumns * kRowBytes;
#pragma unroll
  for (int first = 0; first < kStripRows; first += 4) {
    uint32_t units[2][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Values values;
      straight_values<true>(p, v, acc, betas, first + 2 * half, values);
      units_of_values(values, v.grid, 1u << 8, units[half]);
      if (border || p.out_channels < kMaxTileOutputs) {
#pragma unroll
        for (int m = 0; m < 2; m++) units[half][m] &= inside(at.row + first + 2 * half + m, p.height) ? kept : 0u;
      }
    }
    stage_units<4>(thread, to + first * kTile.columns * kRowBytes, kTile.columns * kRowBytes, kRowBytes, {units[0][0], units[0][1], units[1][0], units[1][1]});
  }
}

// The codes of one strip of the middle at pixels that the second convolution's region does not compute: those of 0, and 0 outside the
// image. The warps that stage_units stores for are those of the threads here.
template <int kStrips>
ADABM_DEVICE void middle_zeros(const Conv2dParams& p, const RegionParams& region, const Tile& at, int strip, int image, uint32_t middle) {
  constexpr BlockTile kTile(kStrips);
  const int lane = threadIdx.x % 32, plane = threadIdx.x / 32 % 4, output = plane * 16 + lane / 4 * 2;
  const int out_bits = image_bits(p.out_bits, image), first_column = at.column + strip * kStripColumns;
  const float scale = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2);
  const float offset = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2 + 1), top = static_cast<float>((1 << out_bits) - 1);
  const uint32_t zero = quantize_value(0.0f, scale, offset, top);
  const uint32_t codes = (output < p.out_channels ? zero : 0) | (output + 1 < p.out_channels ? zero << 8 : 0);
  const auto inside = [&](int row, int column) {
    return static_cast<unsigned>(row) < static_cast<unsigned>(p.height) && static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
  };
#pragma unroll 1
  for (int first_row = 0; first_row < kStripRows; first_row += 4) {  // 32 pixels, of which each lane looks at one
    const int row = at.row + first_row + lane / 8, column = first_column + lane % 8;
    const uint32_t computed = ptx::lanes_where(inside(row, column) && computes(region, image, row, column));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int j = first_row + i / 2, in_strip = lane % 4 * 2 + i % 2;
      if (computed >> (i / 2 * 8 + in_strip) & 1) continue;
      const uint32_t pixel = j * kTile.columns + strip * kStripColumns + in_strip;
      ptx::store_shared(middle + plane * kTile.middle_plane_bytes + pixel * kRowBytes + lane / 4 * 2,
                        static_cast<uint16_t>(inside(at.row + j, first_column + in_strip) ? codes : 0u));
    }
  }
}

// Returns how many results of a tile are asked for: all three warpgroups skip tiles with none, and skip products where none is computed.
template <int kStrips>
ADABM_DEVICE Share share_of_tile(const Conv2dParams& second, int image, int tile) {
  return share_of(second.region, image, pixels_of(second, result_tile<kStrips>(second, tile)));
}

// Returns how many of the pixels in the middle that lie inside the image the region of the second convolution has.
ADABM_DEVICE Share share_of_middle(const Conv2dParams& second, int image, Rectangle pixels) {
  pixels.row = pixels.row > 0 ? pixels.row : 0, pixels.column = pixels.column > 0 ? pixels.column : 0;
  return share_inside(second.region, image, pixels);
}

// Grid: [blocks that share the tiles of all images].
// kForm: the form of the epilogues of the second convolution.
template <int kStrips, Straight kForm>
__global__ void __launch_bounds__(kThreads, 1) resblock_sm90(const __grid_constant__ ResblockParams q) {
  constexpr BlockTile kTile(kStrips);
  const Conv2dParams &first = q.first, &second = q.second;
  const int items = first.batch * first.tiles, group = threadIdx.x / kGroupThreads;
  const uint32_t in_barriers = ptx::shared_base(), middle_barriers = in_barriers + kBarrierBytes;
  const uint32_t middle = in_barriers + 2 * kBarrierBytes, stages = middle + q.middles * kTile.middle_bytes;
  const uint32_t plane_bytes = first.plane_pixels * kRowBytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < q.stages; i++) {
      ptx::mbarrier_init(in_barriers + 2 * i * ptx::kBarrierBytes, kGroupThreads + 1);  // one more arrival announces bytes
      ptx::mbarrier_init(in_barriers + (2 * i + 1) * ptx::kBarrierBytes, 4);
    }
    for (int i = 0; i < q.middles; i++) {
      ptx::mbarrier_init(middle_barriers + 2 * i * ptx::kBarrierBytes, kGroupThreads);
      ptx::mbarrier_init(middle_barriers + (2 * i + 1) * ptx::kBarrierBytes, 4);
    }
  }
  // Sets the two pixels behind each plane to 0.
  if (threadIdx.x < static_cast<unsigned>(q.middles * kMiddlePlanes * 2))
    ptx::store_shared(middle + threadIdx.x / 2 * kTile.middle_plane_bytes + (kTile.middle_pixels + threadIdx.x % 2) * kRowBytes, ptx::Words4{{0, 0, 0, 0}});
  ptx::fence_async();
  ptx::sync_block();
  Ring in(in_barriers, q.stages), between(middle_barriers, q.middles);
  const bool releases = threadIdx.x % 32 == 0;

  if (group == 0) {
    ptx::give_registers<kProducerRegisters>();
    produce_tiles<kStrips, kOutRows, kTile.out_columns, 2>(first, second.region, in, stages, q.stage_bytes, q.blocks, q.map, q.tensor_bytes);
  } else if (group == 1) {
    ptx::take_registers<kConsumerRegisters>();
    uint32_t a[kResidentSteps][kResidentTaps][4];
    load_weights(a, first);
    for (int item = blockIdx.x; item < items; item += q.blocks) {
      const int image = first.by_tiles.quotient(item), tile = item - image * first.tiles, bits = image_bits(first.x_bits, image);
      const Tile at = middle_tile<kStrips>(first, tile);
      const Share share = share_of_middle(second, image, pixels_of(first, at));
      // Where the whole middle is computed, all results are computed too.
      const bool taken = share == Share::kAllComputed && second.region.taken == TilesTaken::kAll;
      if (!taken && !computes(share_of_tile<kStrips>(second, image, tile))) continue;
      const uint32_t codes = stages + in.stage * q.stage_bytes, to = middle + between.stage * kTile.middle_bytes;
      in.wait_full();
      between.wait_empty();
      for (int strip = 0; strip < kStrips; strip++) {
        int32_t acc[4 * kStripRows];
        LayerValues values;
        uint32_t channels;
        const uint32_t thread = ptx::thread_index() % kGroupThreads;
        Share here = share;
        if (share != Share::kAllComputed)
          here = at.column + strip * kStripColumns < first.width ? share_of_middle(second, image, pixels_of_strip(first, at, strip)) : Share::kNone;
        if (computes(here)) {
          multiply_resident<8 * kStripRows>(acc, a, strip_descriptor(at, codes, plane_bytes, strip), plane_bytes, at.row_step);
          values = middle_values(first, image, bits, thread, channels);
          ptx::wgmma_wait<0>();
        } else {
          ptx::sync_warp();  // all lanes have seen the stage full
        }
        if (strip == kStrips - 1 && releases) ptx::mbarrier_arrive(in.empty());
        if (computes(here)) middle_codes<kStrips>(first, at, strip, values, channels, acc, thread, to);
        if (here != Share::kAllComputed) {
          ptx::sync_warp();  // the codes that other lanes have written there must be complete
          middle_zeros<kStrips>(first, second.region, at, strip, image, to);
        }
      }
      ptx::fence_async();
      ptx::mbarrier_arrive(between.full());
      in.next(), between.next();
    }
  } else {
    ptx::take_registers<kConsumerRegisters>();
    const uint32_t staged = stages + q.stages * q.stage_bytes;
    uint32_t a[kResidentSteps][kResidentTaps][4];
    load_weights(a, second);
    const OutputTile outputs = output_tile(second.tiling, 1, 0);
    for (int item = blockIdx.x; item < items; item += q.blocks) {
      const int image = second.by_tiles.quotient(item), tile = item - image * second.tiles, bits = image_bits(second.x_bits, image);
      const Share share = share_of_tile<kStrips>(second, image, tile);
      if (share == Share::kNone) continue;
      const Tile at = result_tile<kStrips>(second, tile);
      const bool by_pixel = second.by_pixel && share != Share::kAllComputed;
      const int here = (at.end_column - at.column + kStripColumns - 1) / kStripColumns;
      const uint32_t codes = middle + between.stage * kTile.middle_bytes;
      if (computes(share)) between.wait_full();
      for (int strip = 0; strip < here; strip++) {
        int32_t acc[4 * kOutRows];
        const uint32_t thread = ptx::thread_index() % kGroupThreads;
        const bool last = strip == here - 1;
        if constexpr (kForm != Straight::kNone) {  // for tiles that are computed everywhere
          const StripPixels pixels = strip_pixels<kOutRows>(second, at, strip);
          Ahead<kForm, kOutRows> ahead;
          multiply_resident<8 * kOutRows>(acc, a, strip_descriptor(at, codes, kTile.middle_plane_bytes, strip), kTile.middle_plane_bytes, at.row_step);
          read_ahead<kForm, kOutRows>(second, pixels, outputs, image, thread, ahead);
          const LayerValues values = layer_values<kForm>(second, image, bits, first_in_tile(thread));
          ptx::wgmma_wait<0>();
          if (last && releases) ptx::mbarrier_arrive(between.empty());
          straight_epilogue<kForm, kOutRows>(second, values, pixels, outputs, image, acc, ahead, thread, staged, 1);
        } else {
          const Share strip_share = share_of_strip(second, at, image, share, strip);
          if (computes(strip_share)) {
            multiply_resident<8 * kOutRows>(acc, a, strip_descriptor(at, codes, kTile.middle_plane_bytes, strip), kTile.middle_plane_bytes, at.row_step);
            ptx::wgmma_wait<0>();
          } else {
            ptx::sync_warp();  // all lanes have seen the codes
          }
          if (computes(share) && last && releases) ptx::mbarrier_arrive(between.empty());
          if (strip_share != Share::kNone)
            general_epilogue<2>(second, computes(strip_share), by_pixel, at, strip, kOutRows / 2, outputs, image, bits, thread, staged, 1,
                                [&](int part) { Part<2>::stage<true>(acc, part, Part<2>::to<true>(staged, thread)); });
        }
      }
      if (computes(share)) between.next();
    }
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
