// Implicit-GEMM convolution on mma.sync: pixels are the rows of A, outputs the columns of B, channels times taps the depth.
//
// A block of four warps computes 128 pixels times up to 64 outputs. All taps of a chunk of channels read one tile of codes with its
// halo, kept in shared memory as [channel / 16 bytes][pixel][16 bytes]: a tap is an offset, and eight neighbouring pixels are 128
// bytes in a row, which ldmatrix reads without conflict. Weights come in stages by asynchronous copies. 4-bit codes differ only in
// the matrix instruction and in how many channels 16 bytes are, so one text serves both and half the bytes make half the work.
#pragma once

#include <cstdint>

#include "cuda/epilogue_sm80.cuh"

namespace adabm {
namespace cuda {

// 16 bytes of a pixel of an unfolded image: four columns of the kernel from `tap` on, four bytes each; row -1 lies outside the
// image.
template <int kBits>
ADABM_DEVICE void unfold_row(const Conv2dParams& p, const uint8_t* image, int storage, int row, int first_column, int tap, uint32_t target) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int column = first_column + tap + i;
    const bool inside = row >= 0 && tap + i < p.kernel_w && static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
    const uint8_t* source = inside ? image + (row * p.width + column) * 4 : image;
    if (storage == kBits) {
      ptx::cp_async<4>(target + 4 * i, source, inside ? 4 : 0);
    } else {
      const uint32_t word = inside ? ptx::load_constant(reinterpret_cast<const uint32_t*>(source)) : 0u;
      ptx::store_shared(target + 4 * i, bytes_of_nibbles(storage == 4 ? word : nibbles_of_pairs(word)));
    }
  }
}

// Brings one chunk of channels of the tile and its halo into shared memory, as codes of kBits; zeros outside the image.
template <int kBits, bool kUnfolds>
ADABM_DEVICE void load_codes(const Conv2dParams& p, const Place& at, const Form& f, const uint8_t* image, int storage, int chunk,
                             uint32_t to) {
  const int pitch = pixel_bytes(p.code_channels, storage), source_row_bytes = kRowBytes * storage / kBits;
  const int halo_columns = at.columns + p.taps_w - 1, first_row = at.row - p.kernel_h / 2, first_column = at.column - p.taps_w / 2;
  // Units of 16 bytes, [pixel][plane]; a thread takes every kThreads-th and stays on its plane.
  const int units = (at.rows + p.kernel_h - 1) * halo_columns << f.plane_shift, plane = threadIdx.x & (f.planes - 1);
  const Divisor& by_halo = p.by_halo[at.shape];
  to += plane * p.plane_pixels * kRowBytes;
  if constexpr (kUnfolds) {
    if (p.taps_w < p.kernel_w) {
      for (int unit = threadIdx.x; unit < units; unit += kThreads) {
        const int pixel = unit >> f.plane_shift, tile_row = by_halo.quotient(pixel), row = first_row + tile_row;
        const int column = first_column + pixel - tile_row * halo_columns - p.kernel_w / 2;
        const bool row_inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height);
        unfold_row<kBits>(p, image, storage, row_inside ? row : -1, column, (chunk * f.planes + plane) * 4, to + pixel * kRowBytes);
      }
      return;
    }
  }
  const int from = (chunk * f.planes + plane) * source_row_bytes;
  const uint8_t* first = image + from;
  struct Source {
    int pixel;        // in the tile
    uint32_t offset;  // in bytes from `first`; only of those inside the image does it mean anything
    bool inside;
  };
  // Offsets count from the image's first pixel, not from the halo's: the halo may begin several long rows above the image, and a
  // pixel then lies farther than 2^31 bytes behind its first one. An image has less than 2^31 codes.
  const auto source_of = [&](int unit) {
    const int pixel = unit >> f.plane_shift, tile_row = by_halo.quotient(pixel);
    const uint32_t row = first_row + tile_row, column = first_column + pixel - tile_row * halo_columns;
    const bool inside = (row < static_cast<uint32_t>(p.height)) & (column < static_cast<uint32_t>(p.width)) & (from < pitch);
    return Source{pixel, (row * static_cast<uint32_t>(p.width) + column) * static_cast<uint32_t>(pitch), inside};
  };
  if (storage != kBits) {
    // Some sources on their way together: words of each, at most.
    constexpr int kWords = kBits == 8 ? 2 : 8, kBatch = kBits == 8 ? 3 : 2;
    const int source_bytes = pitch - from < source_row_bytes ? pitch - from : source_row_bytes;
#pragma unroll 1
    for (int unit = threadIdx.x; unit < units; unit += kBatch * kThreads) {
      uint32_t words[kBatch][kWords];
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        const Source source = source_of(unit + b * kThreads);
        const int here = source.inside & (unit + b * kThreads < units) ? source_bytes : 0;
#pragma unroll
        for (int w = 0; w < kWords; w++)
          words[b][w] = ptx::load_constant_if(4 * w < here, reinterpret_cast<const uint32_t*>(first + source.offset) + w);
      }
#pragma unroll
      for (int b = 0; b < kBatch; b++)
        if (unit + b * kThreads < units)
          ptx::store_shared(to + ((unit + b * kThreads) >> f.plane_shift) * kRowBytes, convert_row<kBits>(storage, [&](int w) { return words[b][w]; }));
    }
  } else if ((reinterpret_cast<uintptr_t>(image) | pitch) % kRowBytes == 0) {
#pragma unroll 1
    for (int unit = threadIdx.x; unit < units; unit += kThreads) {
      const Source source = source_of(unit);
      ptx::cp_async<16>(to + source.pixel * kRowBytes, first + source.offset, source.inside ? 16 : 0);
    }
  } else {
#pragma unroll 1
    for (int unit = threadIdx.x; unit < units; unit += kThreads) {
      const Source source = source_of(unit);
      const int here = source.inside ? pitch - from : 0;
#pragma unroll
      for (int w = 0; w < 4; w++) ptx::cp_async<4>(to + source.pixel * kRowBytes + 4 * w, first + source.offset + 4 * w, 4 * w < here ? 4 : 0);
    }
  }
}

// Bytes of shared memory of the tiles of codes; as many that the one being filled is not the one being read.
ADABM_HD inline int code_buffers(const Form& f) {
  return f.chunks == 1 ? 1 : f.slices > f.stage_slices ? 2 : 3;
}

// Where the i-th 16 bytes of a stage's weights come from, in bytes: within a slice [2][outputs][16 bytes], outputs in the order in
// which columns of products take them.
template <int kTiles>
ADABM_DEVICE uint32_t weight_source(uint32_t i, int run_shift) {
  constexpr uint32_t kOutputs = kTiles * 8;
  const uint32_t output = i % kOutputs;
  return (i - output + output_of(run_shift, output / 8, output % 8)) * kRowBytes;
}

template <int kTiles>
ADABM_DEVICE void begin_sums(int32_t (&acc)[2][kTiles][4], int32_t (&box)[2][4]) {
  const int32_t first = ptx::opaque(kFirstSum);  // else every way to here sets them
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int r = 0; r < 4; r++) {
      box[i][r] = 0;
#pragma unroll
      for (int j = 0; j < kTiles; j++) acc[i][j][r] = first;
    }
}

// kGroup: steps that are taken together; 3 needs a kernel whose columns are a multiple of it. kBox: whether the sums of the codes may be
// wanted, which with_box says.
// acc[i][j] gets the products of the warp's i-th 16 pixels and j-th 8 columns of outputs, from kFirstSum on; box[i] the sums of the codes,
// in every column.
template <int kBits, int kTiles, int kGroup, bool kBox>
ADABM_DEVICE void multiply(const Conv2dParams& p, const Place& at, const uint8_t* image, int storage, const uint8_t* weights, int run_shift,
                           bool with_box, int32_t (&acc)[2][kTiles][4], int32_t (&box)[2][4]) {
  constexpr int kPlaneBytes = kTiles * 8 * kRowBytes, kWeightBytes = 2 * kPlaneBytes;  // of a slice
  static_assert(kGroup == 1 || kWeightBytes == kThreads * kRowBytes, "");
  const Form& f = p.forms[kBits == 4];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t plane_bytes = p.plane_pixels * kRowBytes, code_bytes = plane_bytes * f.planes;
  const uint32_t codes = ptx::shared_base(), staged = codes + code_buffers(f) * code_bytes, stage_bytes = f.stage_slices * kWeightBytes;
  const int halo_columns = at.columns + p.taps_w - 1;

  uint32_t rows[2];  // of A that this lane names
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int pixel = warp * kWarpPixels + i * 16 + lane % 16;
    if (pixel >> at.shift >= at.rows) pixel = 0;  // computed, never stored
    rows[i] = codes + ((pixel >> at.shift) * halo_columns + (pixel & (at.columns - 1))) * kRowBytes + lane / 16 * plane_bytes;
  }
  const uint32_t column = (lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * kPlaneBytes;  // of B

  // What is issued runs ahead of what is multiplied. Both go round in the tiles of codes and in the stages of weights.
  const uint32_t codes_end = staged, staged_end = staged + kStages * stage_bytes;
  int issued_chunk = 0, issued_slice = 0;
  uint32_t issued_codes = codes, issued_stage = staged;
  if constexpr (kGroup == 3) weights += weight_source<kTiles>(threadIdx.x, run_shift);
  const auto issue = [&] {
    if (issued_chunk < f.chunks) {
      if (issued_slice == 0) load_codes<kBits, kBits == 8 && kGroup == 1>(p, at, f, image, storage, issued_chunk, issued_codes);
      const uint32_t target = issued_stage + threadIdx.x * kRowBytes;
      if constexpr (kGroup == 3) {  // every stage is full
#pragma unroll
        for (int g = 0; g < kGroup; g++) ptx::cp_async<16>(target + g * kWeightBytes, weights + g * kWeightBytes, 16);
        weights += kGroup * kWeightBytes, issued_slice += kGroup;
      } else {
        const int count = f.slices - issued_slice < f.stage_slices ? f.slices - issued_slice : f.stage_slices;
        for (int i = threadIdx.x; i * kRowBytes < count * kWeightBytes; i += kThreads)
          ptx::cp_async<16>(target + (i - threadIdx.x) * kRowBytes, weights + weight_source<kTiles>(i, run_shift), 16);
        weights += count * kWeightBytes, issued_slice += count;
      }
      if ((issued_stage += stage_bytes) == staged_end) issued_stage = staged;
      if (issued_slice == f.slices) {
        issued_slice = 0, issued_chunk++;
        if ((issued_codes += code_bytes) == codes_end) issued_codes = codes;
      }
    }
    ptx::cp_async_commit();  // an empty group too: waits count groups
  };

  begin_sums<kTiles>(acc, box);
  int chunk = 0, slice = 0, tap_row = 0, tap_column = 0, ahead = 0;
  uint32_t stage = staged, chunk_codes = 0, tap = 0;  // the latter two from the first tile of codes; the last of the tap and the rows of channels
#pragma unroll 1
  do {
    if (ahead == kStages - 1) {
      ptx::cp_async_wait<kStages - 2>();
      ptx::sync_block();
    }
    issue();
    if (ahead < kStages - 1) {
      ahead++;
      continue;
    }
    uint32_t from = stage + column;
    const int end = kGroup == 3 ? slice + kGroup : slice + f.stage_slices < f.slices ? slice + f.stage_slices : f.slices;
#pragma unroll 1
    do {
#pragma unroll
      for (int g = 0; g < kGroup; g++) {
        uint32_t a[2][4], b[kTiles / 2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) ptx::ldmatrix_x4(a[i], rows[i] + tap + g * kRowBytes);
#pragma unroll
        for (int j = 0; j < kTiles / 2; j++) ptx::ldmatrix_x4(b[j], from + g * kWeightBytes + j * 16 * kRowBytes);
#pragma unroll
        for (int j = 0; j < kTiles; j++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            if constexpr (kBits == 8)
              ptx::mma_u8s8(acc[i][j], a[i], {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]});
            else
              ptx::mma_u4s4(acc[i][j], a[i], {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]});
          }
        if constexpr (kBox) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            if constexpr (kBits == 8)
              ptx::mma_u8s8_if(with_box, box[i], a[i], {0x01010101u, 0x01010101u});
            else
              ptx::mma_u4s4_if(with_box, box[i], a[i], {0x11111111u, 0x11111111u});
          }
        }
      }
      from += kGroup * kWeightBytes, tap += kGroup * kRowBytes, slice += kGroup;
      if ((tap_column += kGroup) == p.taps_w) {
        tap_column = 0, tap += (halo_columns - p.taps_w) * kRowBytes;
        if (++tap_row == p.kernel_h) tap_row = 0, tap += 2 * plane_bytes - p.kernel_h * halo_columns * kRowBytes;
      }
    } while (kGroup == 1 && slice < end);
    if ((stage += stage_bytes) == staged_end) stage = staged;
    if (slice == f.slices) {
      slice = 0, chunk++;
      if ((chunk_codes += code_bytes) == codes_end - codes) chunk_codes = 0;
      tap = chunk_codes;
    }
  } while (chunk < f.chunks);
  ptx::cp_async_wait<0>();
}

// What the bits of an image's codes decide.
struct ImageForm {
  int bits;
  bool four_bits, with_box;  // whether products take 4 bits; whether the sums of the codes belong to the results
};

ADABM_DEVICE const PackedHeader* header_of(const Conv2dParams& p) { return reinterpret_cast<const PackedHeader*>(p.packed); }

ADABM_DEVICE ImageForm form_of(const Conv2dParams& p, int image) {
  ImageForm form;
  form.bits = image_bits(p.x_bits, image);
  form.four_bits = p.four_bits && form.bits <= 4;
  form.with_box = ptx::load_constant(header_of(p)->box + form.four_bits);
  return form;
}

// Results of the sums of a tile that has straight lines.
ADABM_DEVICE void straight_results(const Conv2dParams& p, Lines lines, const Place& at, const OutputTile& outputs, int image, const ImageForm& form,
                                   int32_t (&acc)[2][8][4], const int32_t (&box)[2][4]) {
  const Pixels pixels = own_pixels(p, at, outputs);
  // No sum exceeds what the weights of one sign make of the highest code. A reach of 0, which is unknown, becomes the largest number.
  const uint32_t reach = ptx::load_constant(&header_of(p)->reach);
  const bool small = reach - 1 < (1u << (22 - form.bits)) - 1;
  Residuals residuals = {};
  if (lines != Lines::kCodes) residuals = first_residuals(p, own_features(p, outputs, image), pixels);
  make_floats<8>(form.with_box, small, acc, box);
  if (lines == Lines::kCodes)
    straight_lines<Lines::kCodes>(p, outputs, image, form.bits, pixels, residuals, acc);
  else if (lines == Lines::kFloats)
    straight_lines<Lines::kFloats>(p, outputs, image, form.bits, pixels, residuals, acc);
  else
    straight_lines<Lines::kInt16>(p, outputs, image, form.bits, pixels, residuals, acc);
}

// Blocks whose registers fit a multiprocessor. The compiler for compute capability 9.0, where few layers come here, needs more than the
// 128 registers of a thread that four leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kBlocks = 3;
#else
constexpr int kBlocks = 4;
#endif

// Grid: [tiles of pixels of all images][tiles of outputs].
template <int kTiles>
__global__ void __launch_bounds__(kThreads, kBlocks) conv2d_sm80(const __grid_constant__ Conv2dParams p) {
  constexpr bool kWide = kTiles == kMaxTileOutputs / 8;
  const int image = p.by_tiles.quotient(blockIdx.x), tile = blockIdx.x - image * p.tiles, output = blockIdx.y;
  ImageForm form = form_of(p, image);
  const int storage = storage_bits(form.bits, p.packed_codes & ADABM_PACKED_X);
  const Place at = place_tile(p, tile);
  const Share share = p.region.region.depth ? share_of(p.region, image, pixels_of(at)) : Share::kAllComputed;
  if (share == Share::kNone) return;
  const uint8_t* x = behind(p.x_q, p.x_image, image);
  const Form& f = p.forms[form.four_bits];
  const uint8_t* weights = p.packed + f.offset + ((p.border_kernels ? at.kernel : 0) * static_cast<int64_t>(p.tiling.tiles) + output) * f.tile_bytes;
  const bool by_pixel = p.by_pixel && share != Share::kAllComputed;
  Lines lines = Lines::kGeneral;
  if (kWide && p.straight && at.shape == kInner && !by_pixel) lines = straight_form(p, image);
  int32_t acc[2][kTiles][4], box[2][4];
  const int order = kWide ? run_shift(lines) : 2;
  // The wide tile, which most layers take, goes through a row of a 3x3 or 9x9 kernel in one go.
  const bool threes = kWide && p.taps_w % 3 == 0;
  constexpr int kGroup = kWide ? 3 : 1;
  if (computes(share)) {
// On compute capability 9 and later a product of 4-bit numbers is a call that unpacks them: never worth it.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
    if (form.four_bits && threes && !form.with_box)
      multiply<4, kTiles, kGroup, false>(p, at, x, storage, weights, order, false, acc, box);
    else if (form.four_bits && threes)
      multiply<4, kTiles, kGroup, true>(p, at, x, storage, weights, order, true, acc, box);
    else if (form.four_bits)
      multiply<4, kTiles, 1, true>(p, at, x, storage, weights, order, form.with_box, acc, box);
    else
#endif
    if (threes && !form.with_box)
      multiply<8, kTiles, kGroup, false>(p, at, x, storage, weights, order, false, acc, box);
    else
      multiply<8, kTiles, 1, true>(p, at, x, storage, weights, order, form.with_box, acc, box);
  } else {
    begin_sums<kTiles>(acc, box);
  }
  // Known again in place of kept: registers are short where products are made.
  const int same_image = ptx::opaque(image);
  form = form_of(p, same_image);
  const OutputTile outputs = output_tile(p.tiling, p.shuffle, output);
  if constexpr (kWide) {
    if (lines != Lines::kGeneral) return straight_results(p, lines, at, outputs, image, form, acc, box);
  }
  ptx::sync_block();  // what is made of the sums takes the place of the codes
  general_form<kTiles>(p, by_pixel, at, outputs, image, form.bits, form.with_box, acc, box);
}

}  // namespace cuda
}  // namespace adabm
