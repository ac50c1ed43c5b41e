// Implicit-GEMM convolution on wgmma (sm_90a): weights are the rows of A; pixels the columns of B, in shared memory.
//
// A strip is 8 columns by 16 rows of pixels, 128 columns of one product. Tiles of some strips (conv2d_configs.cuh) lie in shared
// memory with their halo as [channel / 16][pixel][16 bytes], where a tap is an offset of the descriptor. One warpgroup produces: it
// brings tiles in, ahead of two that multiply. A block stays on the chip and takes tile after tile.
//
// Two forms. Up to 64 channels and 3x3: all weights of 64 outputs are 72 registers of each thread, loaded once; each warpgroup
// takes every second strip of a tile, so that one stores results while the other multiplies. Otherwise a stage is 32 channels of
// the tile and their weights, which all strips read from shared memory while they are there: a warpgroup keeps the sums of both its
// strips.
#pragma once

#include "cuda/conv2d_configs.cuh"
#include "cuda/conv2d_sm80.cuh"
#include "cuda/ptx_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

constexpr int kGroupThreads = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kStepBytes = 32;           // of every pixel and output: the depth of one product
constexpr int kSharedBytes = 227 << 10;
constexpr int kOnesBytes = 8 * kRowBytes, kBarrierBytes = (2 * kMaxStages * ptx::kBarrierBytes + 127) / 128 * 128, kBarrierRoom = kBarrierBytes + kOnesBytes;
constexpr int kWeightRoom = 2 * kOnesBytes;  // behind the weights of a stage
// Bytes of a pixel's codes on their way out: stores and loads then meet no bank twice. What happens to the pixel (PixelUse) lies behind
// its codes.
constexpr int kStagedPitch = 80, kUseOffset = kMaxTileOutputs;
constexpr int kResidentTaps = 9, kResidentSteps = 2;

struct Conv2dParams90 {
  Conv2dParams c;    // forms[0], and the tiles as cut here
  int steps;         // of 32 channels, all
  int stages, stage_bytes, code_bytes;  // of shared memory; the latter for the codes of a stage, whose weights follow
  int stage_steps;   // steps in a stage
  int blocks;        // along x
  int image_words;   // y_image can be written four bytes at a time
  int tensor_bytes;  // of a box of codes; 0 where threads copy
  ptx::TensorMap map;
};

// One tile of pixels: how its pixels lie in shared memory, and which pixel of a strip lies where. Inner tiles are rows of the
// image; a border of one pixel with a kernel of its own is one strip along it.
struct Tile {
  int row, column, end_row, end_column, kernel;
  int halo_rows, halo_columns, row_step, column_step;          // steps in pixels of shared memory
  int group_rows, group_columns, pixel_rows, pixel_columns;    // from one group of 8 to the next, from one pixel to the next
  int strips, strip_columns;
};

template <int kStrips>
ADABM_DEVICE Tile place(const Conv2dParams& p, int tile) {
  Tile at;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2;
  const int top = p.border_kernels ? pad_h : 0, left = p.border_kernels ? pad_w : 0;
  int row_class = pad_h, column_class = pad_w, rows = kStripRows, columns = kStrips * kStripColumns;
  bool upright = false;
  at.end_row = p.height - top, at.end_column = p.width - left;
  at.group_rows = 1, at.group_columns = 0, at.pixel_rows = 0, at.pixel_columns = 1, at.strips = kStrips, at.strip_columns = kStripColumns;
  if (tile < p.inner_tiles) {
    at.row = top + tile / p.inner_across * kStripRows, at.column = left + tile % p.inner_across * columns;
  } else {
    const int row_edges = 2 * pad_h * p.row_edge_tiles, column_edges = 2 * pad_w * p.column_edge_tiles;
    int i = tile - p.inner_tiles, row_edge = -1, column_edge = -1;
    at.strips = 1, at.strip_columns = 0;
    if (i < row_edges) {
      row_edge = i / p.row_edge_tiles;
      at.column = left + i % p.row_edge_tiles * p.edge;
      at.group_rows = 0, at.group_columns = 8, rows = 1, columns = p.edge;
    } else if ((i -= row_edges) < column_edges) {
      column_edge = i / p.column_edge_tiles;
      at.row = top + i % p.column_edge_tiles * p.edge;
      at.group_rows = 8, at.pixel_rows = 1, at.pixel_columns = 0, rows = p.edge, columns = 1, upright = true;
    } else {
      i -= column_edges;
      row_edge = i / (2 * pad_w), column_edge = i % (2 * pad_w);
      at.group_rows = 0, at.group_columns = 8, rows = 1, columns = p.edge;
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
  at.halo_rows = rows + 2 * pad_h, at.halo_columns = columns + 2 * pad_w;
  at.row_step = upright ? 1 : at.halo_columns, at.column_step = upright ? at.halo_rows : 1;
  return at;
}

// The pixels of a tile.
ADABM_DEVICE Rectangle pixels_of(const Conv2dParams& p, const Tile& at) {
  const int end_row = at.row + at.halo_rows - p.kernel_h / 2 * 2, end_column = at.column + at.halo_columns - p.kernel_w / 2 * 2;
  return {at.row, at.column, end_row < at.end_row ? end_row : at.end_row, end_column < at.end_column ? end_column : at.end_column};
}

// Those of them in a strip that begins inside the image, of an inner tile.
ADABM_DEVICE Rectangle pixels_of_strip(const Conv2dParams& p, const Tile& at, int strip) {
  Rectangle pixels = pixels_of(p, at);
  pixels.column += strip * kStripColumns;
  if (pixels.column + kStripColumns < pixels.end_column) pixels.end_column = pixels.column + kStripColumns;
  return pixels;
}

// The descriptor of a strip's pixels in the first 32 channels at `codes`, for the first tap.
ADABM_DEVICE uint64_t strip_descriptor(const Tile& at, uint32_t codes, uint32_t plane_bytes, int strip) {
  const int group = at.group_rows * at.row_step + at.group_columns * at.column_step;
  return ptx::matrix_descriptor(codes + strip * at.strip_columns * at.column_step * kRowBytes, plane_bytes, group * kRowBytes);
}

// ---- producer

// Brings `planes` rows of 16 channels, from the first_plane-th on, of a tile and its halo into shared memory; zeros outside the
// image.
ADABM_DEVICE void load_tile(const Conv2dParams& p, const Tile& at, const uint8_t* image, int storage, int first_plane, int planes, uint32_t to) {
  const int pitch = pixel_bytes(p.code_channels, storage), row_bytes = kRowBytes * storage / 8;
  const int across = at.row_step == 1 ? at.halo_rows : at.halo_columns, pixels = at.halo_rows * at.halo_columns;
  const int top = at.row - p.kernel_h / 2, left = at.column - p.kernel_w / 2;
  for (int unit = threadIdx.x % kGroupThreads; unit < pixels * planes; unit += kGroupThreads) {
    const int pixel = unit / planes, plane = unit % planes;
    const int outer = pixel / across, inner = pixel % across;
    const int row = top + (at.row_step == 1 ? inner : outer), column = left + (at.row_step == 1 ? outer : inner);
    const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(p.height) && static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
    const int from = (first_plane + plane) * row_bytes;
    const int there = inside && pitch > from ? pitch - from : 0;  // bytes of this row that exist
    const uint8_t* source = there ? image + (row * p.width + column) * pitch + from : image;
    const uint32_t target = to + (plane * p.plane_pixels + pixel) * kRowBytes;
    if (storage != 8) {
      auto word = [&](int i) { return 4 * i < there ? ptx::load_constant(reinterpret_cast<const uint32_t*>(source) + i) : 0u; };
      ptx::store_shared(target, convert_row<8>(storage, word));
    } else if (pitch % kRowBytes == 0) {
      ptx::cp_async<16>(target, source, there ? 16 : 0);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) ptx::cp_async<4>(target + 4 * i, 4 * i < there ? source + 4 * i : image, 4 * i < there ? 4 : 0);
    }
  }
}

// The same by the copy engine, started by one thread: a box for each row of 16 channels. For codes stored as bytes.
ADABM_DEVICE void copy_tile(const Conv2dParams& p, const ptx::TensorMap& map, const Tile& at, int image, int first_plane, int planes, uint32_t to,
                            uint32_t barrier) {
  for (int plane = 0; plane < planes; plane++)
    ptx::tensor_copy(to + plane * p.plane_pixels * kRowBytes, map, (first_plane + plane) * kRowBytes, at.column - p.kernel_w / 2,
                     at.row - p.kernel_h / 2, image, barrier);
}

// A ring of stages in shared memory: barrier 2 i says that stage i is full, barrier 2 i + 1 that it is empty again.
struct Ring {
  uint32_t barriers;
  int stages, stage = 0;
  uint32_t parity = 0;

  ADABM_DEVICE Ring(uint32_t barriers, int stages) : barriers(barriers), stages(stages) {}
  ADABM_DEVICE uint32_t full() const { return barriers + stage * 2 * ptx::kBarrierBytes; }
  ADABM_DEVICE uint32_t empty() const { return full() + ptx::kBarrierBytes; }
  ADABM_DEVICE void wait_full() const { ptx::mbarrier_wait(full(), parity); }
  // The first round finds everything empty.
  ADABM_DEVICE void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  ADABM_DEVICE void next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Stages of ordinary copies, which become full one stage late: then the next stage's are already on their way.
struct Producer {
  Ring ring;
  uint32_t before = 0;
  bool any = false;

  ADABM_DEVICE void issued() {
    ptx::cp_async_commit();
    if (any) ptx::cp_async_wait<1>(), ptx::fence_async(), ptx::mbarrier_arrive(before);
    before = ring.full(), any = true;
    ring.next();
  }
  ADABM_DEVICE void finish() {
    if (any) ptx::cp_async_wait<0>(), ptx::fence_async(), ptx::mbarrier_arrive(before);
    any = false;
  }
  // A stage whose copies arrive by themselves.
  ADABM_DEVICE void handed_over() {
    ptx::mbarrier_arrive(ring.full());
    ring.next();
  }
};

// ---- consumers

// Weights of one product: row r of this warp's 16 is output 2 (r % 8) + r / 8 of 16, so that a thread's two outputs are neighbours.
// read(half, output, quarter) gives four bytes.
template <class Read>
ADABM_DEVICE void fragment(uint32_t (&a)[4], int width, Read&& read) {
  const int lane = threadIdx.x % 32, output = threadIdx.x / 32 % 4 * 16 + lane / 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = output + i % 2 < width ? read(i / 2, output + i % 2, lane % 4) : 0u;
}

// acc = the products of one strip with all weights.
template <int kColumns>
ADABM_DEVICE void multiply_resident(int32_t (&acc)[kColumns / 2], const uint32_t (&a)[kResidentSteps][kResidentTaps][4], uint64_t strip,
                                    uint32_t plane_bytes, int row_pixels) {
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kResidentSteps; step++)
#pragma unroll
    for (int tap = 0; tap < kResidentTaps; tap++)
      ptx::wgmma_s8u8<kColumns>(acc, a[step][tap], strip + step * 2 * (plane_bytes >> 4) + tap / 3 * row_pixels + tap % 3, step | tap);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
}

// Of a strip that begins inside the image, of an inner tile whose share is `tile`.
ADABM_DEVICE Share share_of_strip(const Conv2dParams& p, const Tile& at, int image, Share tile, int strip) {
  return tile == Share::kAllComputed ? tile : share_of(p.region, image, pixels_of_strip(p, at, strip));
}

// Of this warpgroup's strips, every second of the first `strips`, those with a pixel to compute or pass on, and those with one to compute:
// bit i for strip i. `share` is that of the whole tile.
struct Strips {
  uint32_t with_work, computed;
};

ADABM_DEVICE Strips strips_with_work(const Conv2dParams& p, const Tile& at, int image, Share share, int consumer, int strips) {
  Strips found = {0, 0};
#pragma unroll 1
  for (int strip = consumer; strip < strips; strip += kConsumers) {
    const Share here = share_of_strip(p, at, image, share, strip);
    found.with_work |= static_cast<uint32_t>(here != Share::kNone) << strip, found.computed |= static_cast<uint32_t>(computes(here)) << strip;
  }
  return found;
}

ADABM_DEVICE float activate(int activation, float value, float slope) {
  if (activation == ADABM_ACT_RELU) return value > 0.0f ? value : 0.0f;
  if (activation == ADABM_ACT_PRELU) return value < 0.0f ? value * slope : value;
  return value;
}

// The image of one tile of outputs that a strip has left at `staged`, as bytes of pixels.
ADABM_DEVICE void store_image(const Conv2dParams& p, bool by_pixel, bool words, const Tile& at, int strip, int groups, const OutputTile& outputs, int image,
                              uint32_t staged) {
  const int r = p.shuffle, group = p.tiling.group, row_bytes = p.width * r * group;
  uint8_t* y = p.y_image + static_cast<int64_t>(image) * p.height * r * row_bytes;
  const int size = words ? 4 : 1, run = words ? r * group : outputs.count;  // consecutive bytes of a pixel
  const int units = outputs.count / size;
  for (int unit = threadIdx.x % kGroupThreads; unit < groups * 8 * units; unit += kGroupThreads) {
    const int pixel = unit / units, byte = unit % units * size;
    const int row = at.row + pixel / 8 * at.group_rows + pixel % 8 * at.pixel_rows;
    const int column = at.column + strip * at.strip_columns + pixel / 8 * at.group_columns + pixel % 8 * at.pixel_columns;
    if (row >= at.end_row || column >= at.end_column) continue;
    if (by_pixel && ptx::load_shared<PixelUse>(staged + pixel * kStagedPitch + kUseOffset) == PixelUse::kUntouched) continue;
    const uint32_t from = staged + pixel * kStagedPitch + byte;
    if (words) {
      uint8_t* to = y + static_cast<int64_t>(row * r + byte / run) * row_bytes + column * run + byte % run;
      ptx::store_global(reinterpret_cast<uint32_t*>(to), ptx::load_shared<uint32_t>(from));
    } else {
      const int o = outputs.first + byte, sub = o / group;
      uint8_t* to = y + static_cast<int64_t>(row * r + sub / r) * row_bytes + (column * r + sub % r) * group + o - sub * group;
      ptx::store_global(to, ptx::load_shared<uint8_t>(from));
    }
  }
}

// Codes that a strip has left at `staged`, as tensors hold them.
ADABM_DEVICE void store_strip_codes(const Conv2dParams& p, bool by_pixel, const Tile& at, int strip, int groups, const OutputTile& outputs, int image,
                                    int out_bits, uint32_t staged) {
  const int r = p.shuffle, group = p.tiling.group, row_pixels = p.width * r, padded = (group + 3) / 4 * 4;
  const int storage = storage_bits(out_bits, p.packed_codes & ADABM_PACKED_Y), pitch = pixel_bytes(padded, storage);
  uint8_t* y_q = p.y_q + static_cast<int64_t>(image) * p.height * r * row_pixels * padded;
  const int own = outputs.subs > 1 || outputs.count > group ? group : outputs.count, word_codes = 32 / storage;
  const int first_word = outputs.channel / word_codes, words = (own + word_codes - 1) / word_codes;
  const int pixel_words = outputs.subs * words;
  for (int unit = threadIdx.x % kGroupThreads; unit < groups * 8 * pixel_words; unit += kGroupThreads) {
    const int pixel = unit / pixel_words, sub = unit % pixel_words / words, word = unit % words;
    const int row = at.row + pixel / 8 * at.group_rows + pixel % 8 * at.pixel_rows;
    const int column = at.column + strip * at.strip_columns + pixel / 8 * at.group_columns + pixel % 8 * at.pixel_columns;
    if (row >= at.end_row || column >= at.end_column) continue;
    const uint32_t from = staged + pixel * kStagedPitch;
    if (by_pixel && ptx::load_shared<PixelUse>(from + kUseOffset) == PixelUse::kUntouched) continue;
    const uint32_t value = pack_word(storage, [&](int i) -> uint32_t {
      const int channel = word * word_codes + 4 * i, at_byte = sub * group + channel;
      if (channel >= own) return 0;
      if (channel + 4 <= own && at_byte % 4 == 0) return ptx::load_shared<uint32_t>(from + at_byte);
      uint32_t codes = 0;
      for (int c = 0; c < 4 && channel + c < own; c++) codes |= static_cast<uint32_t>(ptx::load_shared<uint8_t>(from + at_byte + c)) << (8 * c);
      return codes;
    });
    const int sub_pixel = outputs.sub + sub;
    const int out = (row * r + sub_pixel / r) * row_pixels + column * r + sub_pixel % r;
    ptx::store_global(reinterpret_cast<uint32_t*>(y_q + static_cast<int64_t>(out) * pitch) + first_word + word, value);
  }
}

// Results of one strip in the order of docs/numerics.md: scale and bias, activation, residual, codes. `staged`, 80 bytes a pixel,
// and named barrier `barrier` are this warpgroup's own. A thread has two outputs: neighbours (kPairs) or eight apart.
// by_pixel: whether some pixels stay as they are or are passed on.
template <int kGroups, bool kPairs>
ADABM_DEVICE void epilogue(const Conv2dParams& p, bool by_pixel, bool image_words, const Tile& at, int strip, const OutputTile& outputs, int image, int bits,
                           const int32_t (&acc)[4 * kGroups], uint32_t staged, int barrier) {
  const int lane = threadIdx.x % 32, in_tile = threadIdx.x / 32 % 4 * 16 + lane / 4 * (kPairs ? 2 : 1), apart = kPairs ? 1 : 8;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2, r = p.shuffle, group = p.tiling.group, row_pixels = p.width * r;
  const int64_t image_floats = static_cast<int64_t>(image) * p.height * r * row_pixels * p.y_pitch;
  const int first_column = at.column + strip * at.strip_columns;
  const bool one_class = p.border_kernels || (at.row >= pad_h && at.row + kStripRows + pad_h <= p.height && first_column >= pad_w &&
                                              first_column + kStripColumns + pad_w <= p.width);
  float scale = 0, offset = 0, top = 0;
  int out_bits = 8;
  if (p.y_q) {
    out_bits = image_bits(p.out_bits, image);
    scale = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2);
    offset = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2 + 1);
    top = static_cast<float>((1 << out_bits) - 1);
  } else if (p.y_image) {
    scale = 1, top = 255;
  }
  const bool stage = p.y_q || p.y_image;
  float alphas[2], slopes[2], betas[2];
  int y_offset[2];
  bool wanted[2];
  uint32_t written = ~0u, passed_on = 0;  // bit 2 j + i for the i-th pixel of group j of this thread
  if (by_pixel) {
    const int pixel = threadIdx.x % kGroupThreads;
    if (pixel < 8 * kGroups) {
      const int row = at.row + pixel / 8 * at.group_rows + pixel % 8 * at.pixel_rows;
      const int column = first_column + pixel / 8 * at.group_columns + pixel % 8 * at.pixel_columns;
      const bool inside = row < at.end_row && column < at.end_column;
      ptx::store_shared(staged + pixel * kStagedPitch + kUseOffset, inside ? pixel_use(p.region, image, row, column) : PixelUse::kUntouched);
    }
    ptx::sync_threads(barrier, kGroupThreads);
    written = 0;
#pragma unroll 1
    for (int bit = 0; bit < 2 * kGroups; bit++) {
      const PixelUse use = ptx::load_shared<PixelUse>(staged + (bit / 2 * 8 + lane % 4 * 2 + bit % 2) * kStagedPitch + kUseOffset);
      written |= static_cast<uint32_t>(use != PixelUse::kUntouched) << bit, passed_on |= static_cast<uint32_t>(use == PixelUse::kPassedOn) << bit;
    }
  }
  const float* beta = p.beta + (p.border_kernels ? at.kernel * p.out_channels : 0);
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const int o = outputs.first + in_tile + e * apart, sub = r == 1 ? 0 : o / group;
    wanted[e] = in_tile + e * apart < outputs.count;
    alphas[e] = wanted[e] ? ptx::load_constant(p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels + o) : 0.0f;
    slopes[e] = wanted[e] && p.activation == ADABM_ACT_PRELU ? ptx::load_constant(p.slope + o) : 0.0f;
    betas[e] = wanted[e] ? ptx::load_constant(beta + o) : 0.0f;
    y_offset[e] = r == 1 ? o : (sub / r * row_pixels + sub % r) * p.y_pitch + o - sub * group;
  }
#pragma unroll
  for (int j = 0; j < kGroups; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int pixel = lane % 4 * 2 + i;
      const int row = at.row + j * at.group_rows + pixel * at.pixel_rows, column = first_column + j * at.group_columns + pixel * at.pixel_columns;
      const bool inside = row < at.end_row && column < at.end_column && (written >> (2 * j + i) & 1);
      float values[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float b = betas[e];
        if (!one_class && inside && wanted[e])
          b = ptx::load_constant(
              p.beta + (border_class(row, p.height, pad_h) * (pad_w + 1) * (pad_w + 1) + border_class(column, p.width, pad_w)) * p.out_channels +
              outputs.first + in_tile + e * apart);
        values[e] = activate(p.activation, fmaf(static_cast<float>(acc[4 * j + 2 * e + i]), alphas[e], b), slopes[e]);
      }
      const int64_t y = image_floats + static_cast<int64_t>(row * r * row_pixels + column * r) * p.y_pitch;
      const int64_t first = y + y_offset[0], second = y + y_offset[1];
      const bool pair = kPairs && p.y_pairs && wanted[1];
      if (p.residual && inside) {
        if (passed_on >> (2 * j + i) & 1) values[0] = values[1] = kNothing;
        if (pair) {
          const ptx::Words2 two = ptx::load_global(reinterpret_cast<const ptx::Words2*>(p.residual + first));
          float residual[2];
          memcpy(residual, &two, sizeof two);
          values[0] = residual[0] + values[0], values[1] = residual[1] + values[1];
        } else {
          if (wanted[0]) values[0] = ptx::load_global(p.residual + first) + values[0];
          if (wanted[1]) values[1] = ptx::load_global(p.residual + second) + values[1];
        }
      } else if (passed_on >> (2 * j + i) & 1) {
        values[0] = values[1] = 0.0f;
      }
      if (p.y && inside) {
        if (pair) {
          ptx::Words2 two;
          memcpy(&two, values, sizeof two);
          ptx::store_global(reinterpret_cast<ptx::Words2*>(p.y + first), two);
        } else {
          if (wanted[0]) ptx::store_global(p.y + first, values[0]);
          if (wanted[1]) ptx::store_global(p.y + second, values[1]);
        }
      }
      if (p.y_acc && inside) {
        if (wanted[0]) ptx::store_global(p.y_acc + first, acc[4 * j + i]);
        if (wanted[1]) ptx::store_global(p.y_acc + second, acc[4 * j + 2 + i]);
      }
      if (stage) {
        const uint32_t to = staged + (8 * j + pixel) * kStagedPitch + in_tile;
        const uint8_t codes[2] = {quantize_value(values[0], scale, offset, top), quantize_value(values[1], scale, offset, top)};
        if (kPairs)
          ptx::store_shared(to, static_cast<uint16_t>(codes[0] | codes[1] << 8));
        else
          ptx::store_shared(to, codes[0]), ptx::store_shared(to + apart, codes[1]);
      }
    }
  if (!stage && !by_pixel) return;
  ptx::sync_threads(barrier, kGroupThreads);
  if (!stage) return;
  if (p.y_q)
    store_strip_codes(p, by_pixel, at, strip, kGroups, outputs, image, out_bits, staged);
  else
    store_image(p, by_pixel, image_words, at, strip, kGroups, outputs, image, staged);
  ptx::sync_threads(barrier, kGroupThreads);  // before the next strip takes the place
}

// ---- kernel

// Grid: [blocks that share the tiles of pixels of all images][tiles of outputs].
template <bool kResident, int kStrips>
__global__ void __launch_bounds__(kThreads, 1) conv2d_sm90(const __grid_constant__ Conv2dParams90 q) {
  const Conv2dParams& p = q.c;
  const int items = p.batch * p.tiles, group = threadIdx.x / kGroupThreads;
  const uint32_t barriers = ptx::shared_base(), stages = barriers + kBarrierRoom, plane_bytes = p.plane_pixels * kRowBytes;
  const int taps = p.kernel_h * p.kernel_w, slice_bytes = p.tiling.width * kStepBytes, weight_bytes = taps * slice_bytes;  // of a step
  const Form& f = p.forms[0];
  const uint8_t* packed = p.packed + f.offset + blockIdx.y * f.tile_bytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < q.stages; i++) {
      ptx::mbarrier_init(barriers + 2 * i * ptx::kBarrierBytes, kGroupThreads + 1);  // one more announces bytes
      ptx::mbarrier_init(barriers + (2 * i + 1) * ptx::kBarrierBytes, kConsumers * 4);
    }
  }
  // Ones, the rows of A that add up codes; and what the last product of a stage reads behind its weights where a tile has less than
  // 64 outputs.
  const uint32_t ones = barriers + kBarrierBytes;
  if (!kResident && threadIdx.x < kOnesBytes / 4) {
    ptx::store_shared(ones + 4 * threadIdx.x, 0x01010101u);
    for (int i = 0; i < q.stages; i++)
      for (int half = 0; half < 2; half++) ptx::store_shared(stages + (i + 1) * q.stage_bytes - kWeightRoom + half * kOnesBytes + 4 * threadIdx.x, 0u);
  }
  ptx::fence_async();
  ptx::sync_block();
  Ring ring(barriers, q.stages);

  if (group == 0) {
    ptx::give_registers<kProducerRegisters>();
    Producer producer{ring};
    for (int item = blockIdx.x; item < items; item += q.blocks) {
      const int image = item / p.tiles;
      const Tile at = place<kStrips>(p, item % p.tiles);
      if (!computes(share_of(p.region, image, pixels_of(p, at)))) continue;
      const int storage = storage_bits(image_bits(p.x_bits, image), p.packed_codes & ADABM_PACKED_X);
      const bool tensor = q.tensor_bytes && storage == 8;
      const uint8_t* x = p.x_q + static_cast<int64_t>(image) * p.height * p.width * p.code_channels;
      const uint8_t* weights = packed + (p.border_kernels ? at.kernel : 0) * static_cast<int64_t>(p.tiling.tiles) * f.tile_bytes;
      for (int step = 0; step < q.steps; step += q.stage_steps) {
        if (tensor) producer.finish();
        producer.ring.wait_empty();
        const uint32_t to = stages + producer.ring.stage * q.stage_bytes;
        if (threadIdx.x == 0) {
          ptx::mbarrier_arrive_expect(producer.ring.full(), (kResident ? 0 : weight_bytes) + (tensor ? 2 * q.stage_steps * q.tensor_bytes : 0));
          if (!kResident) ptx::bulk_copy(to + q.code_bytes, weights + static_cast<int64_t>(step) * weight_bytes, weight_bytes, producer.ring.full());
        }
        if (tensor) {
          if (threadIdx.x == 0) copy_tile(p, q.map, at, image, 2 * step, 2 * q.stage_steps, to, producer.ring.full());
          producer.handed_over();
        } else {
          load_tile(p, at, x, storage, 2 * step, 2 * q.stage_steps, to);
          producer.issued();
        }
      }
    }
    producer.finish();
  } else {
    ptx::take_registers<kConsumerRegisters>();
    const int consumer = group - 1;
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
      int32_t acc[4 * kStripRows];
      for (int item = blockIdx.x; item < items; item += q.blocks) {
        const int image = item / p.tiles, bits = image_bits(p.x_bits, image);
        const Tile at = place<kStrips>(p, item % p.tiles);
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
        for (int strip = consumer; with_work >> strip; strip += kConsumers) {
          if (!(with_work >> strip & 1)) continue;
          if (computed >> strip & 1) {
            multiply_resident<8 * kStripRows>(acc, a, strip_descriptor(at, codes, plane_bytes, strip), plane_bytes, at.row_step);
            if (!(computed >> strip >> kConsumers) && releases) ptx::mbarrier_arrive(ring.empty());  // before the results are stored
          } else {
#pragma unroll
            for (int32_t& sum : acc) sum = 0;  // else registers would keep older sums from strip to strip
          }
          epilogue<kStripRows, true>(p, by_pixel, q.image_words, at, strip, outputs, image, bits, acc, staged, 1 + consumer);
        }
        if (computes(share)) ring.next();
      }
    } else {
      int32_t acc[kStrips / kConsumers][4 * kStripRows] = {};
      for (int item = blockIdx.x; item < items; item += q.blocks) {
        const int image = item / p.tiles, bits = image_bits(p.x_bits, image);
        const Tile at = place<kStrips>(p, item % p.tiles);
        const Share share = share_of(p.region, image, pixels_of(p, at));
        if (share == Share::kNone) continue;
        const bool by_pixel = p.by_pixel && share != Share::kAllComputed;
        const int steps = computes(share) ? q.steps : 0;
        for (int step = 0; step < steps; step++) {
          const uint32_t codes = stages + ring.stage * q.stage_bytes;
          ring.wait_full();
          uint64_t strip[kStrips / kConsumers];
#pragma unroll
          for (int i = 0; i < kStrips / kConsumers; i++) strip[i] = strip_descriptor(at, codes, plane_bytes, i * kConsumers + consumer);
          ptx::wgmma_fence();
          // With a box the weights are k' of m = 2k' + 1: they count twice, and ones once.
          for (int pass = 0; pass < (p.box ? 3 : 1); pass++) {
            const bool by_ones = pass == 2;
            uint64_t weights = by_ones ? ptx::matrix_descriptor(ones, 0, 0) : ptx::matrix_descriptor(codes + q.code_bytes, p.tiling.width * kRowBytes, kOnesBytes);
            int offset = 0, tap_column = 0;
            for (int tap = 0; tap < taps; tap++) {
#pragma unroll
              for (int i = 0; i < kStrips / kConsumers; i++)
                ptx::wgmma_s8u8<8 * kStripRows>(acc[i], weights, strip[i] + offset, step | tap | pass);
              weights += by_ones ? 0 : slice_bytes / 16, offset += at.column_step;
              if (++tap_column == p.kernel_w) tap_column = 0, offset += at.row_step - p.kernel_w * at.column_step;
            }
          }
          ptx::wgmma_commit();
          ptx::wgmma_wait<0>();
          if (releases) ptx::mbarrier_arrive(ring.empty());
          ring.next();
        }
#pragma unroll
        for (int i = 0; i < kStrips / kConsumers; i++) {
          const int strip = i * kConsumers + consumer;
          if (strip < at.strips && at.column + strip * kStripColumns < at.end_column)
            epilogue<kStripRows, false>(p, by_pixel, q.image_words, at, strip, outputs, image, bits, acc[i], staged, 1 + consumer);
        }
      }
    }
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
