// What the kernels of compute capability 9.0 make of the sums of a strip: activation, residual, floats, codes, pixels.
#pragma once

#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

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
  const float* floats_in = static_cast<const float*>(p.residual);
  float* y_floats = static_cast<float*>(p.y);
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
          const ptx::Words2 two = ptx::load_global(reinterpret_cast<const ptx::Words2*>(floats_in + first));
          float residual[2];
          memcpy(residual, &two, sizeof two);
          values[0] = residual[0] + values[0], values[1] = residual[1] + values[1];
        } else {
          if (wanted[0]) values[0] = ptx::load_global(floats_in + first) + values[0];
          if (wanted[1]) values[1] = ptx::load_global(floats_in + second) + values[1];
        }
      } else if (passed_on >> (2 * j + i) & 1) {
        values[0] = values[1] = 0.0f;
      }
      if (p.y && inside) {
        if (pair) {
          ptx::Words2 two;
          memcpy(&two, values, sizeof two);
          ptx::store_global(reinterpret_cast<ptx::Words2*>(y_floats + first), two);
        } else {
          if (wanted[0]) ptx::store_global(y_floats + first, values[0]);
          if (wanted[1]) ptx::store_global(y_floats + second, values[1]);
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

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
