// Implicit-GEMM convolution on mma.sync: pixels are the rows of A, outputs the columns of B, channels times taps the depth.
//
// A block of four warps computes 128 pixels times up to 64 outputs; a warp has 32 of the pixels and all outputs.
//
//   shared memory:  codes, one or more tiles with their halo        weights, three stages
//                   plane 0: |pixel 0: 16 bytes|pixel 1|...         stage: |slice|slice|slice|
//                   plane 1: |pixel 0: 16 bytes|pixel 1|...         slice: [2][outputs][16 bytes] (layout.h)
//
// All taps of a chunk of channels read one tile of codes. A tap is an offset there, and eight neighbouring pixels are 128 bytes in a row,
// which ldmatrix reads without a bank conflict for any tap. This is why codes lie by planes and not by pixels: with pixels of 64 bytes,
// eight rows of 16 bytes would meet some banks four times.
//
// Copies run two stages ahead of products:
//
//   issue     s0  s1  s2  s3  s4  ...         cp.async: codes when a chunk begins, weights for every stage
//   multiply          s0  s1  s2  ...         one wait and one barrier a stage
//
// 4-bit codes differ only in the matrix instruction and in how many channels 16 bytes are, so one text serves both widths, and half the
// bytes make half the work of every kind. Which width an image takes is decided here, by its bits in device memory, and never on the
// host. Weights that are odd are packed as k' with m = 2k' + 1; one more column of products, with ones, adds the sum of the codes.
//
// Two loops: multiply_rows for the usual 3 columns of taps and 64 outputs, a row of the kernel a stage, all addresses sums; multiply for
// everything else. The epilogue of the sums is in epilogue_sm80.cuh; counts and reasons are in docs/gpu_cuda.md, "One block".
#pragma once

#include <cstdint>

#include "cuda/epilogue_sm80.cuh"

namespace adabm {
namespace cuda {

// Returns 16 bytes of a pixel of an unfolded image: four columns of the kernel from `tap` on, four bytes each. A row of -1 stands for a row
// outside the image.
ADABM_DEVICE void unfold_row(const Conv2dParams& p, const uint8_t* image, int storage, int row, int first_column, int tap, uint32_t target) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int column = first_column + tap + i;
    const bool inside = row >= 0 && tap + i < p.kernel_w && static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
    const uint8_t* source = inside ? image + (row * p.width + column) * 4 : image;
    if (storage == 8) {
      ptx::cp_async<4>(target + 4 * i, source, inside ? 4 : 0);
    } else {
      const uint32_t word = inside ? ptx::load_constant(reinterpret_cast<const uint32_t*>(source)) : 0u;
      ptx::store_shared(target + 4 * i, bytes_of_nibbles(storage == 4 ? word : nibbles_of_pairs(word)));
    }
  }
}

// The pixels of a tile and its halo that a thread brings in: every `step`-th one in the order of shared memory, so that the next place is
// found by sums.
struct Walk {
  int row, column;  // in the image; may lie outside it
  int step_rows, step_columns, halo_columns, end_column;

  ADABM_DEVICE Walk(const Divisor& by_halo, int first_row, int first_column, int halo, int pixel, int step) {
    const int tile_row = by_halo.quotient(pixel);
    step_rows = by_halo.quotient(step), step_columns = step - step_rows * halo;
    halo_columns = halo, end_column = first_column + halo;
    row = first_row + tile_row, column = first_column + pixel - tile_row * halo;
  }
  ADABM_DEVICE void next() {
    row += step_rows, column += step_columns;
    if (column >= end_column) column -= halo_columns, row++;
  }
  // Returns the offset of the pixel in bytes from the first pixel of the image; it is valid only for pixels inside. It does not count from
  // the first pixel of the halo: the halo may begin several long rows above the image, and a pixel then lies farther than 2^31 bytes behind it.
  // An image has less than 2^31 codes.
  ADABM_DEVICE uint32_t offset(uint32_t width, uint32_t pitch) const { return (static_cast<uint32_t>(row) * width + static_cast<uint32_t>(column)) * pitch; }
};

// Returns whether a pixel lies inside the image.
ADABM_DEVICE bool inside_image(const Conv2dParams& p, int row, int column) {
  return (static_cast<uint32_t>(row) < static_cast<uint32_t>(p.height)) & (static_cast<uint32_t>(column) < static_cast<uint32_t>(p.width));
}

// Returns 16 bytes of codes of 8 or 4 bits, made of up to two words of narrower codes.
ADABM_DEVICE ptx::Words4 widen_codes(int bits, int storage, const ptx::Words2& words) {
  const auto word = [&](int i) { return words.w[i]; };
  return bits == 4 ? convert_row<4>(2, word) : storage == 4 ? convert_row<8>(4, word) : convert_row<8>(2, word);
}

// Brings one chunk of channels of the tile and its halo into shared memory, as codes of `bits`, 8 or 4; zeros outside the image.
template <bool kUnfolds>
ADABM_DEVICE void load_codes(const Conv2dParams& p, const Place& at, const Form& f, int bits, const uint8_t* image, int storage, int chunk, uint32_t to) {
  const int thread = ptx::thread_index();
  const int pitch = pixel_bytes(p.code_channels, storage), source_row_bytes = kRowBytes * storage / bits;
  const int halo_columns = at.columns + p.taps_w - 1, first_row = at.row - p.kernel_h / 2, first_column = at.column - p.taps_w / 2;
  // Units of 16 bytes, [pixel][plane]; a thread takes every kThreads-th and stays on its plane.
  const int units = (at.rows + p.kernel_h - 1) * halo_columns << f.plane_shift, plane = thread & (f.planes - 1);
  const Divisor& by_halo = p.by_halo[at.shape];
  to += plane * p.plane_pixels * kRowBytes;
  if constexpr (kUnfolds) {
    if (p.taps_w < p.kernel_w) {
#pragma unroll 1
      for (int unit = thread; unit < units; unit += kThreads) {
        const int pixel = unit >> f.plane_shift, tile_row = by_halo.quotient(pixel), row = first_row + tile_row;
        const int column = first_column + pixel - tile_row * halo_columns - p.kernel_w / 2;
        const bool row_inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height);
        unfold_row(p, image, storage, row_inside ? row : -1, column, (chunk * f.planes + plane) * 4, to + pixel * kRowBytes);
      }
      return;
    }
  }
  const int from = (chunk * f.planes + plane) * source_row_bytes, left = pitch - from;  // bytes of a pixel before and from here on
  const uint8_t* first = image + from;
  to += (thread >> f.plane_shift) * kRowBytes;
  const uint32_t step_bytes = (kThreads >> f.plane_shift) * kRowBytes;
  Walk walk(by_halo, first_row, first_column, halo_columns, thread >> f.plane_shift, kThreads >> f.plane_shift);
  if (storage < bits) {
    constexpr int kBatch = 3;  // how many loads are on their way at once
#pragma unroll 1
    for (int unit = thread; unit < units;) {
      ptx::Words2 words[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; b++) {
        const bool wanted = inside_image(p, walk.row, walk.column) & (unit + b * kThreads < units);
        const uint32_t offset = walk.offset(p.width, pitch);
#pragma unroll
        for (int w = 0; w < 2; w++)
          words[b].w[w] = ptx::load_constant_if(wanted & (4 * w < left) & (4 * w < source_row_bytes), reinterpret_cast<const uint32_t*>(first + offset) + w);
        walk.next();
      }
      // The same code serves all sources: each is moved to the first place in its turn.
#pragma unroll 1
      for (int b = 0; b < kBatch && unit < units; b++, unit += kThreads) {
        ptx::store_shared(to, widen_codes(bits, storage, words[0]));
        to += step_bytes;
#pragma unroll
        for (int i = 1; i < kBatch; i++) words[i - 1] = words[i];
      }
    }
    return;
  }
  const bool whole_rows = (reinterpret_cast<uintptr_t>(image) | pitch) % kRowBytes == 0;
  const auto each = [&](auto&& bring) {  // bytes of the pixel from here on, 0 outside the image
#pragma unroll 1
    for (int unit = thread; unit < units; unit += kThreads, to += step_bytes, walk.next())
      bring(first + walk.offset(p.width, pitch), inside_image(p, walk.row, walk.column) ? left : 0);
  };
  if (storage > bits)
    each([&](const uint8_t* source, int here) {
      ptx::store_shared(to, convert_row<4>(8, [&](int i) { return ptx::load_constant_if(4 * i < here, reinterpret_cast<const uint32_t*>(source) + i); }));
    });
  else if (whole_rows)
    each([&](const uint8_t* source, int here) { ptx::cp_async<16>(to, source, here > 0 ? 16 : 0); });
  else
    each([&](const uint8_t* source, int here) {
#pragma unroll
      for (int w = 0; w < 4; w++) ptx::cp_async<4>(to + 4 * w, source + 4 * w, 4 * w < here ? 4 : 0);
    });
}

// Bytes of shared memory for the tiles of codes: so many tiles that the one being filled is never the one being read.
ADABM_HD inline int code_buffers(const Form& f) { return f.chunks == 1 ? 1 : f.slices > f.stage_slices ? 2 : 3; }

// Returns the offset in bytes from which the i-th 16 bytes of the weights of a stage come: slices are [2][outputs][16 bytes], and outputs are
// in the order in which the columns of products take them.
template <int kTiles>
ADABM_DEVICE uint32_t weight_source(uint32_t i, int run_shift) {
  constexpr uint32_t kOutputs = kTiles * 8;
  const uint32_t output = i % kOutputs;
  return (i - output + output_of(run_shift, output / 8, output % 8)) * kRowBytes;
}

template <int kTiles>
ADABM_DEVICE void begin_sums(bool with_box, int32_t (&acc)[2][kTiles][4], int32_t (&box)[2][4]) {
  const int32_t first = ptx::opaque(first_sum(with_box));  // otherwise every path to here would set the registers
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int r = 0; r < 4; r++) {
      box[i][r] = 0;
#pragma unroll
      for (int j = 0; j < kTiles; j++) acc[i][j][r] = first;
    }
}

// The decisions that depend on the bits of the codes of an image.
struct ImageForm {
  int bits;
  bool four_bits, with_box;  // true where products take 4 bits; true where the sums of the codes are added to the results
};

// On compute capability 9 and later a product of 4-bit numbers is a call that unpacks them, which is never worth it.
ADABM_DEVICE bool takes_four_bits(const ImageForm& form) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return false;
#else
  return form.four_bits;
#endif
}

// Multiplies by steps of 32 bytes of every pixel and output, which lie side by side in the tile (`rows`: the rows of A that this lane names)
// and in the weights (`columns`: the columns of B). acc[i][j] gets the products of the i-th 16 pixels of the warp and the j-th 8 columns of
// outputs; box[i] gets the sums of the codes, in every column, where they are wanted. kBegins: the first step begins the sums, which takes a
// copy of this code and saves a move for each sum.
template <int kSteps, int kBits, bool kBox, bool kBegins, int kTiles>
ADABM_DEVICE void take_steps(const uint32_t (&rows)[2], uint32_t tap, uint32_t columns, bool with_box, int32_t (&acc)[2][kTiles][4], int32_t (&box)[2][4]) {
#pragma unroll
  for (int g = 0; g < kSteps; g++) {
    uint32_t a[2][4], b[kTiles / 2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) ptx::ldmatrix_x4(a[i], rows[i] + tap + g * kRowBytes);
#pragma unroll
    for (int j = 0; j < kTiles / 2; j++) ptx::ldmatrix_x4(b[j], columns + (g * kTiles * 8 * 2 + j * 16) * kRowBytes);
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        if (kBegins && g == 0)
          ptx::mma_from<kBits>(acc[i][j], a[i], column, first_sum(kBox));
        else
          ptx::mma<kBits>(acc[i][j], a[i], column);
      }
    if constexpr (kBox) {
      constexpr uint32_t kOne = kBits == 8 ? 0x01010101u : 0x11111111u, kOnes[2] = {kOne, kOne};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (kBegins && g == 0)
          ptx::mma_from<kBits>(box[i], a[i], kOnes, 0);
        else
          ptx::mma_if<kBits>(with_box, box[i], a[i], kOnes);
      }
    }
  }
}

// Where the matrices of a warp lie in shared memory.
struct Matrices {
  uint32_t rows[2];  // the rows of A that this lane names, in the first tile of codes and for the first tap
  uint32_t column;   // the column of B that this lane names, in a slice of weights

  ADABM_DEVICE Matrices(const Place& at, uint32_t codes, int halo_columns, uint32_t code_plane_bytes, uint32_t weight_plane_bytes) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int pixel = warp * kWarpPixels + i * 16 + lane % 16;
      if (pixel >> at.shift >= at.rows) pixel = 0;  // it is computed but never stored
      rows[i] = codes + ((pixel >> at.shift) * halo_columns + (pixel & (at.columns - 1))) * kRowBytes + lane / 16 * code_plane_bytes;
    }
    column = (lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * weight_plane_bytes;
  }
};

// The products of an inner tile, which is the widest, for kernels of three columns and more than one row: one kernel row at a time, whose
// weights are one stage. Products of 4 bits may come with the sums of the codes.
template <int kBits>
ADABM_DEVICE void multiply_rows(const Conv2dParams& p, const Place& at, bool with_box, const uint8_t* image, int storage, uint32_t weights, int run_shift,
                                int32_t (&acc)[2][8][4], int32_t (&box)[2][4]) {
  constexpr int kSteps = 3, kWeightBytes = kMaxTileOutputs * kSliceBytes, kStageBytes = kSteps * kWeightBytes;
  static_assert(kWeightBytes == kThreads * kRowBytes && kStages == 3, "");
  Form f = p.forms[kBits == 4];
  f.planes = 2, f.plane_shift = 1, f.stage_slices = kSteps;  // constants for such kernels
  const uint32_t plane_bytes = p.plane_pixels * kRowBytes, code_bytes = 2 * plane_bytes;
  const uint32_t codes = ptx::shared_base(), codes_end = codes + code_buffers(f) * code_bytes, stages_end = codes_end + kStages * kStageBytes;
  const int halo_columns = at.columns + kSteps - 1, stages = f.chunks * p.kernel_h;
  const Matrices matrices(at, codes, halo_columns, plane_bytes, kWeightBytes / 2);
  const uint32_t sixteen_bytes = (16 >> at.shift) * halo_columns * kRowBytes;  // from the first 16 pixels of a warp to its other 16, in an inner tile
  weights += weight_source<8>(threadIdx.x, run_shift);

  // Copies run two stages ahead of products. Both go round in one or two tiles of codes and in three stages of weights. Registers are
  // scarce: numbers that follow from these counters get no registers of their own.
  int chunk = 0, row = 0;                // of the copies that are issued next
  uint32_t stage = codes_end, tap = 0;  // `tap` counts from the first tile of codes
#pragma unroll 1
  for (int i = 0; i < stages + kStages - 1; i++) {
    if (i >= kStages - 1) {
      ptx::cp_async_wait<kStages - 2>();
      ptx::sync_block();
    }
    if (i < stages) {
      if (row == 0) {
        load_codes<false>(p, at, f, kBits, image, storage, chunk, codes + (chunk & 1) * code_bytes);
        chunk++;
      }
      const uint32_t target = stage + ptx::thread_index() * kRowBytes;
#pragma unroll
      for (int g = 0; g < kSteps; g++) ptx::cp_async<16>(target + g * kWeightBytes, p.packed + weights + g * kWeightBytes, 16);
      weights += kStageBytes;
    }
    ptx::cp_async_commit();  // an empty group too: waits count groups
    if ((stage += kStageBytes) == stages_end) stage = codes_end;
    if (i >= kStages - 1) {
      // Three stages take turns, so the one behind the stage that was issued last is the oldest.
      const uint32_t columns = stage + matrices.column, rows[2] = {matrices.rows[0], matrices.rows[0] + sixteen_bytes};
      if (kBits == 8 && i == kStages - 1) {
        take_steps<kSteps, kBits, false, true>(rows, tap, columns, false, acc, box);
      } else {
        if (i == kStages - 1) begin_sums<8>(with_box, acc, box);
        if (kBits == 4 && with_box)
          take_steps<kSteps, kBits, kBits == 4, false>(rows, tap, columns, true, acc, box);
        else
          take_steps<kSteps, kBits, false, false>(rows, tap, columns, false, acc, box);
      }
      tap += halo_columns * kRowBytes;
      // This was the last row of a chunk, as products are two rows behind the copies: go on to the other tile of codes.
      if (row == 1) tap = code_bytes + p.kernel_h * halo_columns * kRowBytes - tap;
    }
    if (++row == p.kernel_h) row = 0;
  }
  ptx::cp_async_wait<0>();
}

// Computes the same for any kernel and any tile, a step at a time. kBits: 8, 4, or 0 for either in one loop, which has less code and more
// branches.
template <int kTiles, int kBits>
ADABM_DEVICE void multiply(const Conv2dParams& p, const Place& at, const ImageForm& form, const uint8_t* image, int storage, uint32_t weights, int run_shift,
                           int32_t (&acc)[2][kTiles][4], int32_t (&box)[2][4]) {
  constexpr int kPlaneBytes = kTiles * 8 * kRowBytes, kWeightBytes = 2 * kPlaneBytes;  // bytes of half a slice, and of a slice
  const bool four_bits = kBits == 0 ? takes_four_bits(form) : kBits == 4;
  const Form& f = p.forms[four_bits];
  const uint32_t plane_bytes = p.plane_pixels * kRowBytes, code_bytes = plane_bytes * f.planes;
  const uint32_t codes = ptx::shared_base(), staged = codes + code_buffers(f) * code_bytes, stage_bytes = f.stage_slices * kWeightBytes;
  const int halo_columns = at.columns + p.taps_w - 1;
  const Matrices matrices(at, codes, halo_columns, plane_bytes, kPlaneBytes);

  // Copies run ahead of products. Both go round in the tiles of codes and in the stages of weights.
  const uint32_t codes_end = staged, staged_end = staged + kStages * stage_bytes;
  int issued_chunk = 0, issued_slice = 0;
  uint32_t issued_codes = codes, issued_stage = staged;
  const auto issue = [&] {
    if (issued_chunk < f.chunks) {
      if (issued_slice == 0) load_codes<kBits != 4>(p, at, f, four_bits ? 4 : 8, image, storage, issued_chunk, issued_codes);
      const uint32_t target = issued_stage + threadIdx.x * kRowBytes;
      const int count = f.slices - issued_slice < f.stage_slices ? f.slices - issued_slice : f.stage_slices;
      for (int i = threadIdx.x; i * kRowBytes < count * kWeightBytes; i += kThreads)
        ptx::cp_async<16>(target + (i - threadIdx.x) * kRowBytes, p.packed + weights + weight_source<kTiles>(i, run_shift), 16);
      weights += count * kWeightBytes, issued_slice += count;
      if ((issued_stage += stage_bytes) == staged_end) issued_stage = staged;
      if (issued_slice == f.slices) {
        issued_slice = 0, issued_chunk++;
        if ((issued_codes += code_bytes) == codes_end) issued_codes = codes;
      }
    }
    ptx::cp_async_commit();  // an empty group too: waits count groups
  };

  begin_sums<kTiles>(form.with_box, acc, box);
  int chunk = 0, slice = 0, tap_row = 0, tap_column = 0, ahead = 0;
  uint32_t stage = staged, chunk_codes = 0, tap = 0;  // the last two count from the first tile of codes; `tap` includes the rows of channels
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
    uint32_t from = stage + matrices.column;
    const int end = slice + f.stage_slices < f.slices ? slice + f.stage_slices : f.slices;
#pragma unroll 1
    do {
      if (four_bits)
        take_steps<1, 4, true, false>(matrices.rows, tap, from, form.with_box, acc, box);
      else
        take_steps<1, 8, true, false>(matrices.rows, tap, from, form.with_box, acc, box);
      from += kWeightBytes, tap += kRowBytes, slice++;
      if (++tap_column == p.taps_w) {
        tap_column = 0, tap += (halo_columns - p.taps_w) * kRowBytes;
        if (++tap_row == p.kernel_h) tap_row = 0, tap += 2 * plane_bytes - p.kernel_h * halo_columns * kRowBytes;
      }
    } while (slice < end);
    if ((stage += stage_bytes) == staged_end) stage = staged;
    if (slice == f.slices) {
      slice = 0, chunk++;
      if ((chunk_codes += code_bytes) == codes_end - codes) chunk_codes = 0;
      tap = chunk_codes;
    }
  } while (chunk < f.chunks);
  ptx::cp_async_wait<0>();
}

ADABM_DEVICE const PackedHeader* header_of(const Conv2dParams& p) { return reinterpret_cast<const PackedHeader*>(p.packed); }

ADABM_DEVICE ImageForm form_of(const Conv2dParams& p, int image) {
  ImageForm form;
  form.bits = image_bits(p.x_bits, image);
  form.four_bits = p.four_bits && form.bits <= 4;
  form.with_box = ptx::load_constant(header_of(p)->box + form.four_bits);
  return form;
}

// Finds the outputs of a tile by subtractions: most layers need none, and a division would cost moves of registers around it.
ADABM_DEVICE OutputTile outputs_of(const Conv2dParams& p, int tile) {
  int whole = 0, part = tile;
  if (p.tiling.tiles_per_sub == 1) {
    whole = tile, part = 0;
  } else {
#pragma unroll 1
    for (; part >= p.tiling.tiles_per_sub; part -= p.tiling.tiles_per_sub) whole++;
  }
  return output_tile(p.tiling, p.shuffle, whole, part);
}

// The epilogue of a tile that takes a straight form.
ADABM_DEVICE void straight_results(const Conv2dParams& p, Straight lines, const Place& at, const OutputTile& outputs, int image, const ImageForm& form,
                                   int32_t (&acc)[2][8][4], const int32_t (&box)[2][4]) {
  const Pixels pixels = own_pixels(p, at, outputs);
  // No sum exceeds the highest code times the sum of all weights of one sign. A reach of 0 stands for unknown and becomes the largest number.
  const uint32_t reach = ptx::load_constant(&header_of(p)->reach);
  const bool small = reach - 1 < (1u << (22 - form.bits)) - 1;
  Residuals residuals = {};
  if (lines != Straight::kCodes) residuals = first_residuals(p, own_features(p, outputs, image), pixels);
  make_floats<8>(form.with_box, small, acc, box);
  if (lines == Straight::kCodes)
    straight_lines<Straight::kCodes>(p, outputs, image, form.bits, pixels, residuals, acc);
  else if (lines == Straight::kFloat32)
    straight_lines<Straight::kFloat32>(p, outputs, image, form.bits, pixels, residuals, acc);
  else
    straight_lines<Straight::kInt16>(p, outputs, image, form.bits, pixels, residuals, acc);
}

// How many blocks have their registers on a multiprocessor at once. For compute capability 9.0, where few layers take this kernel, the compiler
// needs more than the 128 registers for each thread that four blocks would leave.
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
  // An offset in `packed`, which is smaller than 4 GB.
  const uint32_t weights =
      static_cast<uint32_t>(f.offset) + ((p.border_kernels ? at.kernel : 0) * p.tiling.tiles + output) * static_cast<uint32_t>(f.tile_bytes);
  const bool by_pixel = p.by_pixel && share != Share::kAllComputed;
  Straight lines = Straight::kNone;
  if (kWide && p.straight && at.shape == kInner && !by_pixel) lines = straight_form(p, image);
  int32_t acc[2][kTiles][4], box[2][4];
  const int order = kWide ? run_shift(lines) : 2;
  if (computes(share)) {
    if constexpr (kWide) {
      const bool by_rows = p.taps_w == 3 && p.kernel_h > 1 && at.shape == kInner && (form.four_bits || !form.with_box);  // most layers
      if (!by_rows)
        multiply<kTiles, 0>(p, at, form, x, storage, weights, order, acc, box);
      else if (takes_four_bits(form))
        multiply_rows<4>(p, at, form.with_box, x, storage, weights, order, acc, box);
      else
        multiply_rows<8>(p, at, false, x, storage, weights, order, acc, box);
    } else if (takes_four_bits(form)) {
      multiply<kTiles, 4>(p, at, form, x, storage, weights, order, acc, box);
    } else {
      multiply<kTiles, 8>(p, at, form, x, storage, weights, order, acc, box);
    }
  } else {
    begin_sums<kTiles>(form.with_box, acc, box);
  }
  // Computed again instead of kept: registers are scarce where products are made.
  const int same_image = ptx::opaque(image);
  form = form_of(p, same_image);
  const OutputTile outputs = outputs_of(p, output);
  if constexpr (kWide) {
    if (lines != Straight::kNone) return straight_results(p, lines, at, outputs, image, form, acc, box);
  }
  ptx::sync_block();  // the epilogue writes where the codes were
  general_form<kTiles>(p, by_pixel, at, outputs, image, form.bits, form.with_box, acc, box);
}

}  // namespace cuda
}  // namespace adabm
