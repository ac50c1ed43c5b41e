// The epilogue of the kernel whose weights pass through shared memory (conv2d_sm90.cuh), for the sums of a strip.
//
// A thread's sums are two outputs, eight apart, at neighbouring pixels, and it has those of up to two strips. One instruction after the
// other for all of them, as in epilogue_sm90.cuh, would be too long a text for kernels with shuffles and borders of every kind. So they go
// through shared memory, four rows of the strip at a time, within a warp:
//
//   registers: outputs o, o + 8          shared memory, a pixel in 80 bytes          a lane: 4 outputs, the same pixel
//   at pixels 2 q, 2 q + 1       -->     | 16 outputs, 4 bytes each | 16 unused | -->  of each of the four rows
//
// A lane then has four neighbouring outputs, 16 bytes of features, at the same pixel of every row; with 80 bytes a pixel neither stores
// nor loads meet a bank twice. The code after that exists only once, in a loop over these parts, whatever registers the sums were in.
//
// There are two forms. The form in vectors: all outputs lie in fours as they do in memory, so that the four values of a pixel are read and written at once,
// a PixelShuffle included. Tiles along a border with kernels of its own, strips cut off by the image and pixels with border classes
// differ only in addresses and counts. The general form takes everything else, one value after the other: regions that leave pixels as they
// are, sums as results, and outputs that lie otherwise.
#pragma once

#include "cuda/epilogue_general_sm90.cuh"
#include "cuda/epilogue_sm90.cuh"
#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

using FourRows = Part<4>;
static_assert(kGroupThreads / 32 * FourRows::kBytes <= 8 * kStripRows * kStagedPitch, "parts of all warps lie where codes are staged");

// Returns the form that takes four outputs at a time, where results lie in fours.
inline Straight staged_form(const Conv2dParams& p) {
  const auto aligned = [](const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; };
  const int group = p.tiling.group, feature_bytes = kFour * (p.y_int16 ? 2 : 4);
  if (p.y_acc || p.shuffle * group % kFour || (group % kFour && p.tiling.tiles > 1)) return Straight::kNone;
  if (!aligned(p.alpha, 16) || !aligned(p.beta, 16) || !aligned(p.slope, 16)) return Straight::kNone;
  // Where four outputs reach from one sub-pixel into the next, their features must be adjacent.
  if ((p.y || p.residual) && (group % kFour ? p.y_pitch != group : p.y_pitch % kFour)) return Straight::kNone;
  if (!aligned(p.y, feature_bytes) || !aligned(p.residual, feature_bytes) || !aligned(p.y_image, 4)) return Straight::kNone;
  return p.y_q && group % kWarpOutputs ? Straight::kNone : Straight::kFours;  // otherwise words of packed codes would not be whole
}

// Writes the sums of one strip of this warpgroup to shared memory, for the rows of part `part`.
template <int kOwn>
ADABM_DEVICE void stage_part(const int32_t (&acc)[kOwn][4 * kStripRows], int own, int part, uint32_t to) {
#pragma unroll
  for (int i = 0; i < kOwn; i++)
    if (own == i) FourRows::stage<false>(acc[i], part, to);
}

ADABM_DEVICE void load_four(float (&to)[kFour], const float* from) {
  uint32_t words[kFour];
  ptx::load_constant_words<kFour>(words, from);
#pragma unroll
  for (int e = 0; e < kFour; e++) to[e] = ptx::float_of(words[e]);
}

// The constants of a lane: those of the layer, of its four outputs and of their codes.
struct FourValues {
  float alphas[kFour], betas[kFour];
  float units;    // the factor by which the constants above have been multiplied
  CodeGrid grid;  // grid of the codes, for values in these units
  float shrink;   // factor of values before they become codes
  int storage;    // bits of a stored code; 0 where there are none
};

ADABM_DEVICE FourValues four_values(const Conv2dParams& p, int image, int bits, int kernel, int output) {
  FourValues v;
  LayerValues layer;
  v.units = p.y_units, v.storage = 0, v.shrink = 1.0f;
  if (p.y_q) {
    const int out_bits = image_bits(p.out_bits, image);
    set_grid(layer, p.out_grid, out_bits, p.y_unit);
    v.grid = layer.grid, v.shrink = layer.shrink, v.storage = storage_bits(out_bits, p.packed_codes & ADABM_PACKED_Y);
  } else {
    v.grid = code_grid(1.0f, 0.0f, 8, p.y_unit);  // the grid of y_image
  }
  load_four(v.alphas, p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels + output);
  load_four(v.betas, p.beta + (p.border_kernels ? kernel * p.out_channels : 0) + output);
#pragma unroll
  for (int e = 0; e < kFour; e++) v.alphas[e] *= v.units, v.betas[e] *= v.units;
  return v;
}

// The residual of a part, while it is being loaded: four floats a row, or four features of 16 bits in the first two words.
struct PartResidual {
  ptx::Words4 rows[FourRows::kRows];

  // Starts to load the residual of the first `count` rows.
  ADABM_DEVICE void read(const char* from, int64_t step, int count, bool int16) {
#pragma unroll
    for (int m = 0; m < FourRows::kRows; m++, from += step) {
      if (int16)
        ptx::load_words_if<2>(m < count, from, rows[m].w);
      else
        ptx::load_global_if(m < count, reinterpret_cast<const ptx::Words4*>(from), rows[m]);
    }
  }
};

using PartValues = float[FourRows::kRows][kFour];

template <class Change>
ADABM_DEVICE void for_values(PartValues& values, Change&& change) {
#pragma unroll
  for (int k = 0; k < FourRows::kRows * kFour; k++) change(values[k / kFour][k % kFour], k / kFour, k % kFour);
}

// Returns the four codes of a row of a part in a word, a byte each.
ADABM_DEVICE uint32_t four_codes(const float (&values)[kFour], const CodeGrid& grid) {
  return ptx::byte_perm(code_pair(values[0], values[1], grid), code_pair(values[2], values[3], grid), 0x6420);
}

// Computes the results of the strips of this warpgroup in a tile, in vectors, in the order of docs/numerics.md. staged: shared memory of the
// warpgroup.
template <int kOwn>
ADABM_DEVICE void four_epilogue(const Conv2dParams& p, const Tile& at, const OutputTile& outputs, int image, int bits, int consumer,
                                const int32_t (&acc)[kOwn][4 * kStripRows], uint32_t thread, uint32_t staged) {
  const int lane = static_cast<int>(thread) % 32, in_tile = static_cast<int>(thread) / 32 * kWarpOutputs + lane / 8 * kFour;
  if (!ptx::any_lane(in_tile < outputs.count)) return;
  const bool wanted = in_tile < outputs.count;
  const int output = outputs.first + (wanted ? in_tile : 0);
  const FourValues v = four_values(p, image, bits, at.kernel, output);
  const uint32_t to = FourRows::to<false>(staged, thread), from = FourRows::from(staged, thread);
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2, feature_bytes = p.y_int16 ? 2 : 4;
  const int r = ptx::opaque(p.shuffle);  // so that no number that follows from it is kept in registers all the time
  const int64_t image_pixels = static_cast<int64_t>(p.height * r) * (p.width * r);
  const bool codes = p.y_q || p.y_image, shrunk = ptx::any_lane(v.shrink != 1.0f);
#pragma unroll 1
  for (int own = 0; own < kOwn; own++) {
    const StripPlace strip = strip_place(at, own * kConsumers + consumer);
    const int row = strip.row + lane % 8 * at.pixel_rows, column = strip.column + lane % 8 * at.pixel_columns;
    int rows = strip.inside && wanted ? pixels_inside(at, row, column) : 0;
    const OutputPlace place = output_place(p, at, r, row, column, output);
    const int64_t feature = ((image * image_pixels + place.pixel) * p.y_pitch + place.channel) * feature_bytes;
    const int64_t feature_step = static_cast<int64_t>(place.step) * p.y_pitch * feature_bytes;
    char* y = static_cast<char*>(p.y) + feature;
    const char* residual = static_cast<const char*>(p.residual) + feature;
    const int group = p.tiling.group, storage = p.y_q ? v.storage : 8, code_bytes = p.y_q ? group * storage / 8 : group;
    uint8_t* q = (p.y_q ? p.y_q : p.y_image) + image * image_pixels * group + static_cast<int64_t>(place.pixel) * code_bytes + place.channel * storage / 8;
    const int64_t code_step = static_cast<int64_t>(place.step) * code_bytes;
    const bool border = ptx::any_lane(!p.border_kernels && (strip.row < pad_h || strip.row + kStripRows + pad_h > p.height || strip.column < pad_w ||
                                                            strip.column + kStripColumns + pad_w > p.width));
#pragma unroll 1
    for (int part = 0; part < kStripRows / FourRows::kRows; part++, rows -= FourRows::kRows) {
      if (!ptx::any_lane(rows > 0)) break;
      PartResidual ahead;
      if (p.residual) {
        ahead.read(residual, feature_step, rows, p.y_int16);
        residual += FourRows::kRows * feature_step;
      }
      stage_part<kOwn>(acc, own, part, to);
      ptx::sync_warp();
      PartValues values;
#pragma unroll
      for (int m = 0; m < FourRows::kRows; m++) {
        const ptx::Words4 sums = ptx::load_shared<ptx::Words4>(from + m * 8 * kStagedPitch);
#pragma unroll
        for (int e = 0; e < kFour; e++) values[m][e] = static_cast<float>(static_cast<int32_t>(sums.w[e]));
      }
      ptx::sync_warp();  // before the next part takes the place
      if (border) {
#pragma unroll
        for (int m = 0; m < FourRows::kRows; m++) {
          const int j = part * FourRows::kRows + m, row_class = border_class(row + j, p.height, pad_h), column_class = border_class(column, p.width, pad_w);
          const bool there = m < rows;  // pixels outside the image have no class
          float betas[kFour];
          load_four(betas, p.beta + ((there ? row_class : 0) * (pad_w + 1) * (pad_w + 1) + (there ? column_class : 0)) * p.out_channels + output);
#pragma unroll
          for (int e = 0; e < kFour; e++) values[m][e] = fmaf(values[m][e], v.alphas[e], betas[e] * v.units);
        }
      } else {
        for_values(values, [&](float& value, int, int e) { value = fmaf(value, v.alphas[e], v.betas[e]); });
      }
      if (p.activation == ADABM_ACT_RELU) {
        for_values(values, [](float& value, int, int) { value = fmaxf(value, 0.0f); });
      } else if (p.activation == ADABM_ACT_PRELU) {
        float slopes[kFour];
        load_four(slopes, p.slope + output);
        for_values(values, [&](float& value, int, int e) { value = ptx::multiply_negative(value, slopes[e]); });
      }
      if (p.residual) {
        if (p.y_int16) {
#pragma unroll
          for (int k = 0; k < 2 * FourRows::kRows; k++) add_features(ahead.rows[k / 2].w[k % 2], values[k / 2][k % 2 * 2], values[k / 2][k % 2 * 2 + 1]);
        } else {
          for_values(values, [&](float& value, int m, int e) { value = ptx::float_of(ahead.rows[m].w[e]) + value; });
        }
      }
      if (p.y_int16) {
        for_values(values, [](float& value, int, int) { value = round_feature(value); });
        if (p.y) {
#pragma unroll
          for (int m = 0; m < FourRows::kRows; m++, y += feature_step)
            if (m < rows)
              ptx::store_global(reinterpret_cast<ptx::Words2*>(y),
                                ptx::Words2{{pack_features(values[m][0], values[m][1]), pack_features(values[m][2], values[m][3])}});
        }
        for_values(values, [](float& value, int, int) { value = stored_value(value); });
      } else if (p.y) {
#pragma unroll
        for (int m = 0; m < FourRows::kRows; m++, y += feature_step)
          if (m < rows)
            ptx::store_global(reinterpret_cast<ptx::Words4*>(y),
                              ptx::Words4{{ptx::bits_of(values[m][0]), ptx::bits_of(values[m][1]), ptx::bits_of(values[m][2]), ptx::bits_of(values[m][3])}});
      }
      if (!codes) continue;
      if (shrunk) for_values(values, [&](float& value, int, int) { value *= v.shrink; });
      uint32_t words[FourRows::kRows];
#pragma unroll
      for (int m = 0; m < FourRows::kRows; m++) words[m] = four_codes(values[m], v.grid);
      if (storage == 8) {
#pragma unroll
        for (int m = 0; m < FourRows::kRows; m++, q += code_step)
          if (m < rows) ptx::store_global(reinterpret_cast<uint32_t*>(q), words[m]);
      } else {
#pragma unroll
        for (int m = 0; m < FourRows::kRows; m++, q += code_step) {
          const uint32_t nibbles = nibbles_of_bytes(words[m]);
          if (m < rows && storage == 4) ptx::store_global(reinterpret_cast<uint16_t*>(q), static_cast<uint16_t>(nibbles));
          if (m < rows && storage == 2) ptx::store_global(q, static_cast<uint8_t>(pairs_of_nibbles(nibbles)));
        }
      }
    }
  }
}

// Computes the results of the strips of this warpgroup in a tile in the general form. The named barrier `barrier` belongs to the warpgroup.
// computed: whether there are sums; by_pixel: whether some pixels stay as they are or are passed on.
template <int kOwn>
ADABM_DEVICE void general_strips(const Conv2dParams& p, bool computed, bool by_pixel, const Tile& at, const OutputTile& outputs, int image, int bits,
                                 int consumer, const int32_t (&acc)[kOwn][4 * kStripRows], uint32_t thread, uint32_t staged, int barrier) {
#pragma unroll 1
  for (int own = 0; own < kOwn; own++) {
    const int strip = own * kConsumers + consumer;
    if (strip >= at.strips || at.column + strip * at.strip_columns >= at.end_column) break;
    general_epilogue<FourRows::kRows>(p, computed, by_pixel, at, strip, kStripRows / FourRows::kRows, outputs, image, bits, thread, staged, barrier,
                                      [&](int part) { stage_part<kOwn>(acc, own, part, FourRows::to<false>(staged, thread)); });
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
