// Implicit-GEMM convolution on mma.sync: pixels are the rows of A, outputs the columns of B, channels times taps the depth.
//
// A block of four warps computes 128 pixels times up to 64 outputs. All taps of a chunk of channels read one tile of codes with its
// halo, kept in shared memory as [channel / 16 bytes][pixel][16 bytes]: a tap is an offset, and eight neighbouring pixels are 128
// bytes in a row, which ldmatrix reads without conflict. Weights come in stages by asynchronous copies. 4-bit codes differ only in
// the matrix instruction and in how many channels 16 bytes are, so one text serves both and half the bytes make half the work.
#pragma once

#include <cstdint>

#include "adabm/adabm.h"
#include "adabm/quant_math.h"
#include "cuda/codes.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/region.cuh"

namespace adabm {
namespace cuda {

constexpr int kWarpPixels = 32, kWarps = 4, kTilePixels = kWarps * kWarpPixels, kThreads = kWarps * 32;
// Bytes behind the codes of a pixel on their way out, which keep rows of 8-byte words on different banks; what happens to the pixel
// (PixelUse) is there.
constexpr int kStagePad = 8;

struct Conv2dParams {
  const uint8_t* x_q;
  const int32_t* x_bits;
  const uint8_t* packed;
  const float *alpha, *beta, *slope, *out_grid;
  const void* residual;  // float32, or int16 where y_int16 is set, and so is y
  const int32_t* out_bits;
  void* y;
  uint8_t* y_q;
  int32_t* y_acc;
  uint8_t* y_image;
  int batch, height, width, code_channels;
  int out_channels, kernel_h, kernel_w;
  int taps_w;  // columns of the kernel that are taps: 1 where it is unfolded, else all
  int activation, shuffle, y_pitch;
  int packed_codes;  // ADABM_PACKED_*
  int config;        // conv2d_sm90.cuh alone: one more than a row of conv2d_configs.cuh, 0 for none named
  int border_kernels;
  int box;         // whether the 8-bit form needs the sum of the codes
  int four_bits;   // whether images of up to 4 bits take the 4-bit form
  float products;  // of an output
  RegionParams region;
  int by_pixel;    // whether pixels that the region leaves out must stay as they are or are passed on
  int y_pairs;     // neighbouring outputs of even and odd number lie in aligned pairs in y, residual and y_acc
  int y_int16;     // whether results become features of 16 bits, those in y and residual and those that codes are made of
  float y_units, y_unit;  // 2^fraction of them, and its inverse; 1 and 1 otherwise
  OutputTiling tiling;
  Form forms[2];     // 8 bits, 4 bits
  int column_shift;  // log2 of the columns of a tile of pixels
  int edge;          // pixels of a tile along a border with kernels of its own
  int plane_pixels;  // of shared memory for one row of 16 bytes of every pixel of the tile and its halo
  int tiles, inner_tiles, inner_across, row_edge_tiles, column_edge_tiles;  // of one image; the last two: along one row or column
};

// One tile of pixels.
struct Place {
  int row, column;    // first
  int rows, columns;  // of the tile in memory, columns being a power of two
  int end_row, end_column;  // where pixels of this tile end
  int shift;          // log2 of columns
  int kernel;         // class of kernel, with border_kernels
};

// Divides by a number that is known only to the block, without the twenty instructions of a division: exact while number times
// divisor stays below 2^20, as pixels and words of a tile do.
struct Divider {
  unsigned divisor, reciprocal;
  ADABM_DEVICE explicit Divider(int d) : divisor(d), reciprocal(((1u << 20) + d - 1) / d) {}
  ADABM_DEVICE int quotient(int number) const { return number * reciprocal >> 20; }
  ADABM_DEVICE int rest(int number) const { return number - quotient(number) * divisor; }
};

ADABM_DEVICE int border_class(int position, int size, int pad) {
  const int before = pad - position, after = position + pad - (size - 1);
  return (before > 0 ? before : 0) * (pad + 1) + (after > 0 ? after : 0);
}

ADABM_DEVICE Place place_tile(const Conv2dParams& p, int tile) {
  Place at;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2;
  // Without kernels of their own the borders are part of the inner area.
  const int top = p.border_kernels ? pad_h : 0, left = p.border_kernels ? pad_w : 0;
  int row_class = pad_h, column_class = pad_w;
  at.shift = p.column_shift, at.columns = 1 << at.shift, at.rows = kTilePixels >> at.shift;
  at.end_row = p.height - top, at.end_column = p.width - left;
  if (tile < p.inner_tiles) {
    at.row = top + tile / p.inner_across * at.rows, at.column = left + tile % p.inner_across * at.columns;
  } else {
    const int row_edges = 2 * pad_h * p.row_edge_tiles, column_edges = 2 * pad_w * p.column_edge_tiles;
    int i = tile - p.inner_tiles, row_edge = -1, column_edge = -1, along = 0;
    if (i < row_edges) {
      row_edge = i / p.row_edge_tiles, along = i % p.row_edge_tiles;
      at.rows = 1, at.columns = p.edge, at.shift = 31 - __builtin_clz(p.edge);
      at.column = left + along * p.edge;
    } else if ((i -= row_edges) < column_edges) {
      column_edge = i / p.column_edge_tiles, along = i % p.column_edge_tiles;
      at.rows = p.edge, at.columns = 1, at.shift = 0;
      at.row = top + along * p.edge;
    } else {
      i -= column_edges;
      row_edge = i / (2 * pad_w), column_edge = i % (2 * pad_w);
      at.rows = 1, at.columns = 1, at.shift = 0;
    }
    if (row_edge >= 0) {
      at.row = row_edge < pad_h ? row_edge : p.height - 2 * pad_h + row_edge, at.end_row = at.row + 1;
      row_class = row_edge < pad_h ? row_edge : row_edge + 1;
    }
    if (column_edge >= 0) {
      at.column = column_edge < pad_w ? column_edge : p.width - 2 * pad_w + column_edge, at.end_column = at.column + 1;
      column_class = column_edge < pad_w ? column_edge : column_edge + 1;
    }
  }
  at.kernel = row_class * p.kernel_w + column_class;
  return at;
}

// The pixels of a tile.
ADABM_DEVICE Rectangle pixels_of(const Place& at) {
  const int end_row = at.row + at.rows, end_column = at.column + at.columns;
  return {at.row, at.column, end_row < at.end_row ? end_row : at.end_row, end_column < at.end_column ? end_column : at.end_column};
}

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
template <int kBits>
ADABM_DEVICE void load_codes(const Conv2dParams& p, const Place& at, const Form& f, const uint8_t* image, int storage, int chunk,
                             uint32_t to) {
  const int pitch = pixel_bytes(p.code_channels, storage);
  const int halo_columns = at.columns + p.taps_w - 1, pixels = (at.rows + p.kernel_h - 1) * halo_columns;
  const int first_row = at.row - p.kernel_h / 2, first_column = at.column - p.taps_w / 2;
  const int source_row_bytes = kRowBytes * storage / kBits;
  const bool rows_aligned = (reinterpret_cast<uintptr_t>(image) | pitch) % kRowBytes == 0;
  const Divider by_columns(halo_columns);
  for (int unit = threadIdx.x; unit < pixels << f.plane_shift; unit += kThreads) {
    const int pixel = unit >> f.plane_shift, plane = unit & (f.planes - 1);
    const int row = first_row + by_columns.quotient(pixel), column = first_column + by_columns.rest(pixel);
    const uint32_t target = to + (plane * p.plane_pixels + pixel) * kRowBytes;
    const bool row_inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height);
    if (kBits == 8 && p.taps_w < p.kernel_w) {  // there is no 4-bit form of it
      unfold_row<kBits>(p, image, storage, row_inside ? row : -1, column - p.kernel_w / 2, (chunk * f.planes + plane) * 4, target);
      continue;
    }
    const bool inside = row_inside && static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
    const int from = (chunk * f.planes + plane) * source_row_bytes;
    // Bytes of this row that exist.
    const int left = inside && pitch > from ? pitch - from : 0;
    const uint8_t* source = left ? image + (row * p.width + column) * pitch + from : image;
    if (storage != kBits) {
      auto word = [&](int i) { return 4 * i < left ? ptx::load_constant(reinterpret_cast<const uint32_t*>(source) + i) : 0u; };
      ptx::store_shared(target, convert_row<kBits>(storage, word));
    } else if (rows_aligned) {
      ptx::cp_async<16>(target, source, left ? 16 : 0);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) ptx::cp_async<4>(target + 4 * i, 4 * i < left ? source + 4 * i : image, 4 * i < left ? 4 : 0);
    }
  }
}

// Bytes of shared memory of the tiles of codes; as many that the one being filled is not the one being read.
ADABM_HD inline int code_buffers(const Form& f) {
  return f.chunks == 1 ? 1 : f.slices > f.stage_slices ? 2 : 3;
}

// kGroup: steps that are taken together; 3 needs a kernel whose columns are a multiple of it.
// acc[i][j] gets the products of the warp's i-th 16 pixels and j-th 8 outputs; box[i] the sums of the codes, in every column.
template <int kBits, int kTiles, int kGroup>
ADABM_DEVICE void multiply(const Conv2dParams& p, const Place& at, const uint8_t* image, int storage, const uint8_t* weights, bool with_box,
                           int32_t (&acc)[2][kTiles][4], int32_t (&box)[2][4]) {
  constexpr int kPlaneBytes = kTiles * 8 * kRowBytes, kWeightBytes = 2 * kPlaneBytes;  // of a slice
  static_assert(kGroup == 1 || kGroup * kWeightBytes % (kThreads * 16) == 0, "");
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

  const int chunk_stages = (f.slices + f.stage_slices - 1) / f.stage_slices, stages = f.chunks * chunk_stages;
  const int buffers = code_buffers(f);
  // What is issued runs ahead of what is multiplied.
  int issued = 0, issued_chunk = 0, issued_slice = 0, issued_buffer = 0, issue_slot = 0;
  auto issue = [&] {
    if (issued < stages) {
      if (issued_slice == 0) load_codes<kBits>(p, at, f, image, storage, issued_chunk, codes + issued_buffer * code_bytes);
      const int count = f.slices - issued_slice < f.stage_slices ? f.slices - issued_slice : f.stage_slices;
      const uint32_t target = staged + issue_slot * stage_bytes + threadIdx.x * 16;
      const uint8_t* source = weights + threadIdx.x * 16;
      if constexpr (kGroup == 3) {  // every stage is full
#pragma unroll
        for (int i = 0; i < kGroup * kWeightBytes; i += kThreads * 16) ptx::cp_async<16>(target + i, source + i, 16);
      } else {
        for (int i = 0; i + static_cast<int>(threadIdx.x) * 16 < count * kWeightBytes; i += kThreads * 16) ptx::cp_async<16>(target + i, source + i, 16);
      }
      weights += count * kWeightBytes;
      issued_slice += count, issued++;
      issue_slot = issue_slot == kStages - 1 ? 0 : issue_slot + 1;
      if (issued_slice == f.slices) {
        issued_slice = 0, issued_chunk++;
        issued_buffer = issued_buffer == buffers - 1 ? 0 : issued_buffer + 1;
      }
    }
    ptx::cp_async_commit();  // an empty group too: waits count groups
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; i++) issue();

  int slice = 0, tap_row = 0, tap_column = 0, slot = 0, buffer = 0;
  uint32_t tap = 0;  // offset of the tap and the rows of channels in the tile of codes
  for (int stage = 0; stage < stages; stage++) {
    ptx::cp_async_wait<kStages - 2>();
    ptx::sync_block();
    issue();
    uint32_t from = staged + slot * stage_bytes + column;
    const int end = slice + f.stage_slices < f.slices ? slice + f.stage_slices : f.slices;
#pragma unroll 1
    for (; slice < end; slice += kGroup) {
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
#pragma unroll
        for (int i = 0; i < 2; i++) {
          if constexpr (kBits == 8)
            ptx::mma_u8s8_if(with_box, box[i], a[i], {0x01010101u, 0x01010101u});
          else
            ptx::mma_u4s4_if(with_box, box[i], a[i], {0x11111111u, 0x11111111u});
        }
      }
      from += kGroup * kWeightBytes, tap += kGroup * kRowBytes;
      if ((tap_column += kGroup) == p.taps_w) {
        tap_column = 0, tap += (halo_columns - p.taps_w) * kRowBytes;
        if (++tap_row == p.kernel_h) tap_row = 0, tap += 2 * plane_bytes - p.kernel_h * halo_columns * kRowBytes;
      }
    }
    slot = slot == kStages - 1 ? 0 : slot + 1;
    if (slice == f.slices) {
      slice = 0;
      buffer = buffer == buffers - 1 ? 0 : buffer + 1;
      tap = buffer * code_bytes;
    }
  }
  ptx::cp_async_wait<0>();
}

// The staged codes of one tile, [pixel][outputs + kStagePad], leave as packed words; the words of a pixel that this tile owns.
template <int kTiles>
ADABM_DEVICE void store_codes(const Conv2dParams& p, const Place& at, const OutputTile& outputs, int image, int bits) {
  constexpr int kPitch = kTiles * 8 + kStagePad;
  const int group = p.tiling.group, code_channels = (group + 3) / 4 * 4;
  const int storage = storage_bits(bits, p.packed_codes & ADABM_PACKED_Y), pitch = pixel_bytes(code_channels, storage);
  const int word_codes = 32 / storage;
  const int own = p.tiling.tiles_per_sub == 1 ? group : outputs.count;  // channels of a sub-pixel in this tile
  const int first_word = outputs.channel / word_codes;
  const int words = outputs.channel + own == group ? pitch / 4 - first_word : own / word_codes;
  const int row_pixels = p.width * p.shuffle;
  uint8_t* y_q = p.y_q + static_cast<int64_t>(image) * p.height * p.shuffle * row_pixels * code_channels;
  const int sub_words = outputs.subs * words;
  const Divider by_sub_words(sub_words), by_words(words);
  for (int unit = threadIdx.x; unit < kTilePixels * sub_words; unit += kThreads) {
    const int pixel = by_sub_words.quotient(unit), in_pixel = by_sub_words.rest(unit);
    const int row = at.row + (pixel >> at.shift), column = at.column + (pixel & (at.columns - 1));
    if (pixel >> at.shift >= at.rows || row >= at.end_row || column >= at.end_column) continue;
    const uint32_t from = ptx::shared_base() + pixel * kPitch;
    if (p.by_pixel && ptx::load_shared<PixelUse>(from + kTiles * 8) == PixelUse::kUntouched) continue;
    int sub = 0, word = in_pixel;
    uint32_t value;
    if (outputs.subs == 1) {  // codes behind the last channel are staged too, as zeros
      value = pack_word(storage, [&](int i) { return ptx::load_shared<uint32_t>(from + word * word_codes + 4 * i); });
    } else {
      sub = by_words.quotient(in_pixel), word = by_words.rest(in_pixel);
      value = pack_word(storage, [&](int i) {
        const int channel = word * word_codes + 4 * i;
        uint32_t codes = 0;
        for (int c = 0; c < 4 && channel + c < own; c++) codes |= static_cast<uint32_t>(ptx::load_shared<uint8_t>(from + sub * group + channel + c)) << (8 * c);
        return codes;
      });
    }
    const int sub_pixel = outputs.sub + sub;
    int64_t out = row * row_pixels + column;
    if (p.shuffle > 1) out = (row * p.shuffle + sub_pixel / p.shuffle) * row_pixels + column * p.shuffle + sub_pixel % p.shuffle;
    ptx::store_global(reinterpret_cast<uint32_t*>(y_q + out * pitch) + first_word + word, value);
  }
}

// Two neighbouring outputs of one pixel in y, residual, y_acc and y_image, where they are given.
ADABM_DEVICE void store_floats(const Conv2dParams& p, const int64_t (&at)[2], const bool (&wanted)[2], const int32_t (&sums)[2],
                               float (&values)[2]) {
  const float* residual = static_cast<const float*>(p.residual);
  float* y = static_cast<float*>(p.y);
  if (p.y_pairs && wanted[1]) {
    ptx::Words2 two;
    if (p.residual) {
      two = ptx::load_global(reinterpret_cast<const ptx::Words2*>(residual + at[0]));
      values[0] = ptx::float_of(two.w[0]) + values[0], values[1] = ptx::float_of(two.w[1]) + values[1];
    }
    two.w[0] = ptx::bits_of(values[0]), two.w[1] = ptx::bits_of(values[1]);
    if (p.y) ptx::store_global(reinterpret_cast<ptx::Words2*>(y + at[0]), two);
  } else {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      if (!wanted[e]) continue;
      if (p.residual) values[e] = ptx::load_global(residual + at[e]) + values[e];
      if (p.y) ptx::store_global(y + at[e], values[e]);
    }
  }
  if (p.y_acc)
    for (int e = 0; e < 2; e++)
      if (wanted[e]) ptx::store_global(p.y_acc + at[e], sums[e]);
  if (p.y_image)
    for (int e = 0; e < 2; e++)
      if (wanted[e]) ptx::store_global(p.y_image + at[e], static_cast<uint8_t>(quantize_low_byte(values[e], 1.0f, 0.0f, 255.0f)));
}

// Results in the order of docs/numerics.md: scale and bias, activation, residual, codes.
template <int kTiles>
ADABM_DEVICE void epilogue(const Conv2dParams& p, const Place& at, const OutputTile& outputs, int image, int bits, bool four_bits, bool with_box,
                           const int32_t (&acc)[2][kTiles][4], const int32_t (&box)[2][4]) {
  constexpr int kPitch = kTiles * 8 + kStagePad;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2, r = p.shuffle, group = p.tiling.group;
  const int row_pixels = p.width * r;
  const int64_t image_floats = static_cast<int64_t>(image) * p.height * r * row_pixels * p.y_pitch;
  const float* alpha = p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels;
  const bool one_class = p.border_kernels || (at.row >= pad_h && at.row + at.rows + pad_h <= p.height && at.column >= pad_w &&
                                              at.column + at.columns + pad_w <= p.width);
  // Whether no sum of such codes and weights (m, which k' stands for too) can reach 2^22.
  const bool small_sums = p.products * static_cast<float>(((1 << bits) - 1) * (four_bits ? 15 : 255)) < 4.0e6f;
  const bool floats = p.y || p.residual || p.y_acc || p.y_image;
  float scale = 0, offset = 0, top = 0;
  int out_bits = 8;
  if (p.y_q) {
    out_bits = image_bits(p.out_bits, image);
    scale = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2);
    offset = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2 + 1);
    top = static_cast<float>((1 << out_bits) - 1);
  }
  const uint32_t uses = ptx::shared_base() + kTiles * 8;
  if (p.by_pixel) {  // a warp's lanes find out about its pixels, each about one
    const int pixel = threadIdx.x, row = at.row + (pixel >> at.shift), column = at.column + (pixel & (at.columns - 1));
    const bool inside = pixel >> at.shift < at.rows && row < at.end_row && column < at.end_column;
    ptx::store_shared(uses + pixel * kPitch, inside ? pixel_use(p.region, image, row, column) : PixelUse::kUntouched);
    ptx::sync_warp();
  }
  // The four pixels of this thread: where they are in beta and in y, -1 where there is none or it stays as it is.
  int beta_at[4], y_at[4];
  uint32_t passed_on = 0;  // bit m
#pragma unroll
  for (int m = 0; m < 4; m++) {
    const int pixel = warp * kWarpPixels + m * 8 + lane / 4;
    const int row = at.row + (pixel >> at.shift), column = at.column + (pixel & (at.columns - 1));
    bool inside = pixel >> at.shift < at.rows && row < at.end_row && column < at.end_column;
    if (p.by_pixel) {
      const PixelUse use = ptx::load_shared<PixelUse>(uses + pixel * kPitch);
      inside = use != PixelUse::kUntouched;
      if (use == PixelUse::kPassedOn) passed_on |= 1u << m;
    }
    y_at[m] = inside ? (row * r * row_pixels + column * r) * p.y_pitch : -1;
    beta_at[m] = p.border_kernels ? at.kernel * p.out_channels
                 : one_class || !inside
                     ? 0
                     : (border_class(row, p.height, pad_h) * (pad_w + 1) * (pad_w + 1) + border_class(column, p.width, pad_w)) * p.out_channels;
  }
  const uint32_t stage = ptx::shared_base() + (warp * kWarpPixels + lane / 4) * kPitch + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
    const int in_tile = j * 8 + lane % 4 * 2, o = outputs.first + in_tile;
    const bool wanted[2] = {in_tile < outputs.count, in_tile + 1 < outputs.count};
    float alphas[2], betas[2], values[4][2];
    int32_t sums[4][2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
      alphas[e] = wanted[e] ? ptx::load_constant(alpha + o + e) : 0.0f;
      betas[e] = wanted[e] ? ptx::load_constant(p.beta + beta_at[0] + o + e) : 0.0f;
#pragma unroll
      for (int m = 0; m < 4; m++) {
        sums[m][e] = acc[m / 2][j][m % 2 * 2 + e];
        if (with_box) sums[m][e] = static_cast<int32_t>(2 * static_cast<uint32_t>(sums[m][e]) + static_cast<uint32_t>(box[m / 2][m % 2 * 2]));
      }
    }
    if (small_sums) {
#pragma unroll
      for (int i = 0; i < 8; i++) values[i / 2][i % 2] = small_float(sums[i / 2][i % 2]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) values[i / 2][i % 2] = static_cast<float>(sums[i / 2][i % 2]);
    }
    if (one_class) {
#pragma unroll
      for (int i = 0; i < 8; i++) values[i / 2][i % 2] = fmaf(values[i / 2][i % 2], alphas[i % 2], betas[i % 2]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float beta = wanted[i % 2] ? ptx::load_constant(p.beta + beta_at[i / 2] + o + i % 2) : 0.0f;
        values[i / 2][i % 2] = fmaf(values[i / 2][i % 2], alphas[i % 2], beta);
      }
    }
    if (p.activation == ADABM_ACT_RELU) {
#pragma unroll
      for (int i = 0; i < 8; i++) values[i / 2][i % 2] = fmaxf(values[i / 2][i % 2], 0.0f);
    } else if (p.activation == ADABM_ACT_PRELU) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float slope = wanted[e] ? ptx::load_constant(p.slope + o + e) : 0.0f;
#pragma unroll
        for (int m = 0; m < 4; m++) values[m][e] = values[m][e] < 0.0f ? values[m][e] * slope : values[m][e];
      }
    }
    if (passed_on) {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (passed_on >> i / 2 & 1) values[i / 2][i % 2] = p.residual ? kNothing : 0.0f;
    }
    if (floats) {
      int y_offset[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int sub = r == 1 ? 0 : (o + e) / group;
        y_offset[e] = r == 1 ? o + e : (sub / r * row_pixels + sub % r) * p.y_pitch + o + e - sub * group;
      }
#pragma unroll
      for (int m = 0; m < 4; m++)
        if (y_at[m] >= 0) store_floats(p, {image_floats + y_at[m] + y_offset[0], image_floats + y_at[m] + y_offset[1]}, wanted, sums[m], values[m]);
    }
    if (p.y_q) {
      const uint32_t kept = (wanted[0] ? 0x00ffu : 0u) | (wanted[1] ? 0xff00u : 0u);
#pragma unroll
      for (int m = 0; m < 4; m++) {
        const uint32_t low = quantize_low_byte(values[m][0], scale, offset, top), high = quantize_low_byte(values[m][1], scale, offset, top);
        ptx::store_shared(stage + m * 8 * kPitch + j * 8, static_cast<uint16_t>(ptx::byte_perm(low, high, 0x0040) & kept));
      }
    }
  }
  if (!p.y_q) return;
  ptx::sync_block();
  store_codes<kTiles>(p, at, outputs, image, out_bits);
}

// Grid: [tiles of pixels of all images][tiles of outputs].
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 4) conv2d_sm80(const __grid_constant__ Conv2dParams p) {
  const int image = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles, output = blockIdx.y;
  const int bits = image_bits(p.x_bits, image), storage = storage_bits(bits, p.packed_codes & ADABM_PACKED_X);
  const Place at = place_tile(p, tile);
  const Share share = p.region.region.depth ? share_of(p.region, image, pixels_of(at)) : Share::kAllComputed;
  if (share == Share::kNone) return;
  const uint8_t* x = p.x_q + static_cast<int64_t>(image) * p.height * p.width * p.code_channels;
  const bool four_bits = p.four_bits && bits <= 4;
  const Form& f = p.forms[four_bits];
  const bool with_box = ptx::load_constant(reinterpret_cast<const PackedHeader*>(p.packed)->box + four_bits);
  const uint8_t* weights = p.packed + f.offset + ((p.border_kernels ? at.kernel : 0) * static_cast<int64_t>(p.tiling.tiles) + output) * f.tile_bytes;
  int32_t acc[2][kTiles][4] = {}, box[2][4] = {};
  // The wide tile, which most layers take, goes through a row of a 3x3 or 9x9 kernel in one go.
  const bool threes = kTiles == kMaxTileOutputs / 8 && p.taps_w % 3 == 0;
  constexpr int kGroup = kTiles == kMaxTileOutputs / 8 ? 3 : 1;
  if (computes(share)) {
// On compute capability 9 and later a product of 4-bit numbers is a call that unpacks them: never worth it.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
    if (four_bits && threes)
      multiply<4, kTiles, kGroup>(p, at, x, storage, weights, with_box, acc, box);
    else if (four_bits)
      multiply<4, kTiles, 1>(p, at, x, storage, weights, with_box, acc, box);
    else
#endif
    if (threes)
      multiply<8, kTiles, kGroup>(p, at, x, storage, weights, with_box, acc, box);
    else
      multiply<8, kTiles, 1>(p, at, x, storage, weights, with_box, acc, box);
  }
  ptx::sync_block();  // the codes that leave take the place of those that came
  epilogue<kTiles>(p, at, output_tile(p.tiling, p.shuffle, output), image, bits, four_bits, with_box, acc, box);
}

}  // namespace cuda
}  // namespace adabm
