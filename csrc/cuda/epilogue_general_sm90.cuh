// The general form of the epilogues of compute capability 9.0, which takes everything that the straight forms do not take
// (epilogue_sm90.cuh, epilogue_staged_sm90.cuh).
//
// Sums go through shared memory, some rows of a strip at a time, within a warp: loops can count through them there, while registers have
// no index. A lane then has four neighbouring outputs at the same pixel of every row. The code after that exists only once.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

constexpr int kFour = 4, kWarpOutputs = 16;  // outputs of a lane, and of a warp

// A part: some rows of a strip whose sums a warp has in shared memory at once, the 16 outputs of a pixel one after the other.
template <int kRowsAtOnce>
struct Part {
  static constexpr int kRows = kRowsAtOnce, kPixels = 8 * kRows, kBytes = kPixels * kStagedPitch;

  // The addresses where a thread of the warpgroup writes its sums, and where it reads the sums of four outputs of pixel thread % 8 of the first
  // row. kPairs: the two outputs of the sums of a thread are neighbours, else they are eight apart.
  template <bool kPairs>
  ADABM_DEVICE static uint32_t to(uint32_t staged, uint32_t thread) {
    return staged + thread / 32 * kBytes + thread % 4 * 2 * kStagedPitch + thread % 32 / 4 * (kPairs ? 8 : 4);
  }
  ADABM_DEVICE static uint32_t from(uint32_t staged, uint32_t thread) {
    return staged + thread / 32 * kBytes + thread % 8 * kStagedPitch + thread % 32 / 8 * kRowBytes;
  }
  // Returns the address of a code, which takes the place of the sum of an output of the tile.
  ADABM_DEVICE static uint32_t code(uint32_t staged, int pixel, int output) {
    return staged + output / kWarpOutputs * kBytes + pixel * kStagedPitch + output % kWarpOutputs * 4;
  }

  // Writes the sums of a thread for this part to shared memory, from those of the first row on.
  template <bool kPairs>
  ADABM_DEVICE static void stage(const int32_t* acc, uint32_t to) {
#pragma unroll
    for (int k = 0; k < 2 * kRows; k++) {
      const uint32_t pixel = to + (k / 2 * 8 + k % 2) * kStagedPitch;
      const uint32_t first = acc[k / 2 * 4 + k % 2], second = acc[k / 2 * 4 + 2 + k % 2];
      if (kPairs)
        ptx::store_shared(pixel, ptx::Words2{{first, second}});
      else
        ptx::store_shared(pixel, first), ptx::store_shared(pixel + 8 * 4, second);
    }
  }
  // Does the same for the number-th part of a strip.
  template <bool kPairs, int kSums>
  ADABM_DEVICE static void stage(const int32_t (&acc)[kSums], int number, uint32_t to) {
#pragma unroll
    for (int k = 0; k < kSums / (4 * kRows); k++)
      if (number == k) stage<kPairs>(acc + 4 * kRows * k, to);
  }
};

// A strip of a tile: its first pixel, and the distances to its other pixels.
struct StripPlace {
  int row, column;
  bool inside;  // true where the tile has this strip
};

ADABM_DEVICE StripPlace strip_place(const Tile& at, int strip) { return {at.row, at.column + strip * at.strip_columns, strip < at.strips}; }

// Returns the pixel of a strip with this number; a group has eight.
struct PixelPlace {
  int row, column;
  bool inside;
};

ADABM_DEVICE PixelPlace pixel_place(const Tile& at, const StripPlace& strip, int pixel) {
  const int row = strip.row + pixel / 8 * at.group_rows + pixel % 8 * at.pixel_rows;
  const int column = strip.column + pixel / 8 * at.group_columns + pixel % 8 * at.pixel_columns;
  return {row, column, row < at.end_row && column < at.end_column};
}

// Returns how many of the pixels (row0 + j group_rows, column0 + j group_columns) lie before the end of the tile. j counts rows in a tile inside
// the image, and groups of eight along a border.
ADABM_DEVICE int pixels_inside(const Tile& at, int row, int column) {
  const int rows = at.end_row - row, columns = at.end_column - column;
  if (rows <= 0 || columns <= 0) return 0;
  const int along = at.group_rows ? rows : columns;
  return at.group_rows == 1 ? along : (along + 7) / 8;
}

// The place of an output of a pixel and of the outputs behind it; with a PixelShuffle the place is in one of the sub-pixels.
struct OutputPlace {
  int pixel, channel;  // the pixel in an image of results, and the channel in that pixel
  int step;            // pixels to the same place in the next group of eight
};

ADABM_DEVICE OutputPlace output_place(const Conv2dParams& p, const Tile& at, int r, int row, int column, int output) {
  const int sub = r == 1 ? 0 : p.by_group.quotient(output), sub_row = r == 1 ? 0 : p.by_shuffle.quotient(sub), row_pixels = p.width * r;
  OutputPlace f;
  f.pixel = (row * r + sub_row) * row_pixels + column * r + sub - sub_row * r;
  f.channel = output - sub * p.tiling.group;
  f.step = at.group_rows * r * row_pixels + at.group_columns * r;
  return f;
}

// Stores y_image for one tile of outputs and the pixels of a part, which begins with pixel `first` of the strip. written: bit i says whether
// pixel i of the part is written.
template <int kRows>
ADABM_DEVICE void store_part_image(const Conv2dParams& p, const Tile& at, const StripPlace& strip, int first, uint32_t written, const OutputTile& outputs,
                                   int image, uint32_t thread, uint32_t staged) {
  const int r = ptx::opaque(p.shuffle), row_pixels = p.width * r, count = ptx::opaque(outputs.count);
  uint8_t* y = p.y_image + static_cast<int64_t>(image) * p.height * r * row_pixels * p.tiling.group;
  const BlockDivisor by_count(count);
#pragma unroll 1
  for (int unit = static_cast<int>(thread); unit < Part<kRows>::kPixels * count; unit += kGroupThreads) {
    const int pixel = by_count.quotient(unit), output = by_count.rest(unit);
    const PixelPlace at_pixel = pixel_place(at, strip, first + pixel);
    if (!at_pixel.inside || !(written >> pixel & 1)) continue;
    const int o = outputs.first + output, sub = p.by_group.quotient(o), sub_row = p.by_shuffle.quotient(sub);
    const int out = (at_pixel.row * r + sub_row) * row_pixels + at_pixel.column * r + sub - sub_row * r;
    ptx::store_global(y + static_cast<int64_t>(out) * p.tiling.group + o - sub * p.tiling.group,
                      ptx::load_shared<uint8_t>(Part<kRows>::code(staged, pixel, output)));
  }
}

// Does the same for codes, as tensors hold them.
template <int kRows>
ADABM_DEVICE void store_part_codes(const Conv2dParams& p, const Tile& at, const StripPlace& strip, int first, uint32_t written, const OutputTile& outputs,
                                   int image, int out_bits, uint32_t thread, uint32_t staged) {
  const int r = ptx::opaque(p.shuffle), group = ptx::opaque(p.tiling.group), row_pixels = p.width * r, padded = (group + 3) / 4 * 4;
  const int storage = storage_bits(out_bits, p.packed_codes & ADABM_PACKED_Y), pitch = pixel_bytes(padded, storage);
  uint8_t* y_q = p.y_q + static_cast<int64_t>(image) * p.height * r * row_pixels * padded;
  const int own = outputs.subs > 1 || outputs.count > group ? group : outputs.count, word_codes = 32 / storage;
  const int first_word = outputs.channel / word_codes, words = (own + word_codes - 1) / word_codes;
  const int pixel_words = outputs.subs * words;
  const BlockDivisor by_pixel_words(pixel_words), by_words(words);
#pragma unroll 1
  for (int unit = static_cast<int>(thread); unit < Part<kRows>::kPixels * pixel_words; unit += kGroupThreads) {
    const int pixel = by_pixel_words.quotient(unit), in_pixel = by_pixel_words.rest(unit), sub = by_words.quotient(in_pixel), word = by_words.rest(in_pixel);
    const PixelPlace at_pixel = pixel_place(at, strip, first + pixel);
    if (!at_pixel.inside || !(written >> pixel & 1)) continue;
    uint32_t value = 0;
    const int end = own - word * word_codes < word_codes ? own - word * word_codes : word_codes;
#pragma unroll 1
    for (int c = 0; c < end; c++)
      value |= static_cast<uint32_t>(ptx::load_shared<uint8_t>(Part<kRows>::code(staged, pixel, sub * group + word * word_codes + c))) << (c * storage);
    const int sub_pixel = outputs.sub + sub, sub_row = p.by_shuffle.quotient(sub_pixel);
    const int out = (at_pixel.row * r + sub_row) * row_pixels + at_pixel.column * r + sub_pixel - sub_row * r;
    ptx::store_global(reinterpret_cast<uint32_t*>(y_q + static_cast<int64_t>(out) * pitch) + first_word + word, value);
  }
}

// Computes the results of a strip in the order of docs/numerics.md. `staged` and the named barrier `barrier` belong to this warpgroup.
// computed: whether there are sums, which stage(part) writes to the place where this warp reads them (Part). by_pixel: whether some pixels
// stay as they are or are passed on.
template <int kRows, class Stage>
ADABM_DEVICE void general_epilogue(const Conv2dParams& p, bool computed, bool by_pixel, const Tile& at, int number, int parts, const OutputTile& outputs,
                                   int image, int bits, uint32_t thread, uint32_t staged, int barrier, Stage&& stage) {
  constexpr int kPixels = Part<kRows>::kPixels;
  const int lane = static_cast<int>(thread) % 32, in_tile = static_cast<int>(thread) / 32 * kWarpOutputs + lane / 8 * kFour;
  const uint32_t from = Part<kRows>::from(staged, thread);
  const StripPlace strip = strip_place(at, number);
  const int row = strip.row + lane % 8 * at.pixel_rows, column = strip.column + lane % 8 * at.pixel_columns;
  const int count = pixels_inside(at, row, column);  // how many pixels of this lane in the strip exist
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2, r = ptx::opaque(p.shuffle), row_pixels = p.width * r;
  const int64_t image_floats = static_cast<int64_t>(image) * p.height * r * row_pixels * p.y_pitch;
  const bool codes = p.y_q || p.y_image;
  // True where all pixels of the strip have the same constants: no border class, or a kernel of their own.
  const bool one_class = p.border_kernels || (strip.row >= pad_h && strip.row + kStripRows + pad_h <= p.height && strip.column >= pad_w &&
                                              strip.column + kStripColumns + pad_w <= p.width);
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
#pragma unroll 1
  for (int part = 0; part < parts; part++) {
    uint32_t written = ~0u, passed_on = 0;  // bit i for pixel i of the part
    if (by_pixel) {
      const PixelPlace mine = pixel_place(at, strip, part * kPixels + lane % kPixels);
      const PixelUse use = mine.inside ? pixel_use(p.region, image, mine.row, mine.column) : PixelUse::kUntouched;
      written = ptx::lanes_where(use != PixelUse::kUntouched), passed_on = ptx::lanes_where(use == PixelUse::kPassedOn);
    }
    const uint32_t here = written >> lane % 8, passed = passed_on >> lane % 8;  // bit 8 m for the lane's pixel of row m
    if (computed) stage(part);
    ptx::sync_warp();
#pragma unroll 1
    for (int e = 0; e < kFour && in_tile + e < outputs.count; e++) {
      const int o = outputs.first + in_tile + e;
      const OutputPlace output = output_place(p, at, r, row, column, o);
      const int64_t step = static_cast<int64_t>(output.step) * p.y_pitch;
      const int64_t feature = image_floats + static_cast<int64_t>(output.pixel) * p.y_pitch + output.channel + part * kRows * step;
      const float alpha = ptx::load_constant(p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels + o);
      const float slope = p.activation == ADABM_ACT_PRELU ? ptx::load_constant(p.slope + o) : 0.0f;
      const float beta = one_class ? ptx::load_constant(p.beta + (p.border_kernels ? at.kernel * p.out_channels : 0) + o) : 0.0f;
      const uint32_t place = from + 4 * e;
      // Conditions that depend on the launch alone are tested once for all rows of a part.
      int32_t sums[kRows];
      float values[kRows];
      const auto for_rows = [&](auto&& change) {
#pragma unroll
        for (int m = 0; m < kRows; m++) change(m, values[m]);
      };
      const auto there = [&](int m) { return part * kRows + m < count && (here >> 8 * m & 1); };
#pragma unroll
      for (int m = 0; m < kRows; m++) sums[m] = computed ? ptx::load_shared<int32_t>(place + 8 * m * kStagedPitch) : 0;
      if (one_class) {
        for_rows([&](int m, float& value) { value = fmaf(static_cast<float>(sums[m]), alpha, beta); });
      } else {
        for_rows([&](int m, float& value) {
          const int border = border_class(row + part * kRows + m, p.height, pad_h) * (pad_w + 1) * (pad_w + 1) + border_class(column, p.width, pad_w);
          value = fmaf(static_cast<float>(sums[m]), alpha, ptx::load_constant(p.beta + (there(m) ? border : 0) * p.out_channels + o));
        });
      }
      for_rows([&](int, float& value) { value = activate(p.activation, value, slope); });
      if (by_pixel)
        for_rows([&](int m, float& value) {
          if (passed >> 8 * m & 1) value = p.residual ? kNothing : 0.0f;
        });
      if (p.residual && p.y_int16) {
        for_rows([&](int m, float& value) {
          if (there(m)) value = value_of(ptx::load_global(static_cast<const int16_t*>(p.residual) + feature + m * step), p.y_unit) + value;
        });
      } else if (p.residual) {
        for_rows([&](int m, float& value) {
          if (there(m)) value = ptx::load_global(static_cast<const float*>(p.residual) + feature + m * step) + value;
        });
      }
      if (p.y_int16) {
        for_rows([&](int m, float& value) {
          const int16_t rounded = feature_of(value, p.y_units);
          if (p.y && there(m)) ptx::store_global(static_cast<int16_t*>(p.y) + feature + m * step, rounded);
          value = value_of(rounded, p.y_unit);
        });
      } else if (p.y) {
        for_rows([&](int m, float& value) {
          if (there(m)) ptx::store_global(static_cast<float*>(p.y) + feature + m * step, value);
        });
      }
      if (p.y_acc)
        for_rows([&](int m, float&) {
          if (there(m)) ptx::store_global(p.y_acc + feature + m * step, sums[m]);
        });
      if (codes) for_rows([&](int m, float& value) { ptx::store_shared(place + 8 * m * kStagedPitch, quantize_low_byte(value, scale, offset, top)); });
    }
    if (!codes) {
      ptx::sync_warp();  // before the next part takes the place
      continue;
    }
    ptx::sync_threads(barrier, kGroupThreads);
    if (p.y_q)
      store_part_codes<kRows>(p, at, strip, part * kPixels, written, outputs, image, out_bits, thread, staged);
    else
      store_part_image<kRows>(p, at, strip, part * kPixels, written, outputs, image, thread, staged);
    ptx::sync_threads(barrier, kGroupThreads);
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
