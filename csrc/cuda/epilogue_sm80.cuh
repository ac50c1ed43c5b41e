// The epilogue of the kernels on mma.sync, for the sums of a tile: scale and bias, activation, residual, features, codes, in the order of
// docs/numerics.md.
//
// A matrix product leaves its sums where it likes: a thread has columns 2 q and 2 q + 1 of every eight, for four pixels. Stored as they
// are, two bytes would go here and two there. But which output a column is can be chosen freely, when the weights are copied to shared
// memory (output_of), at no cost:
//
//   column of the product          0  1 | 2  3 | 4  5 | 6  7 | 8  9 | 10 11 | ...
//   thread of a group of four      0      1      2      3      0      1
//   output, taken in order         0  1 | 2  3 | 4  5 | 6  7 | 8  9 | ...     two neighbours a thread
//   output, with runs of 16        0  1 | 16 17| 32 33| 48 49| 2  3 | ...     sixteen neighbours a thread: a 16-byte store of codes
//
// There are two forms. The straight form takes tiles with 64 whole outputs where nothing rare is asked for: results go from registers to
// memory 16 bytes at a time, with no branch on pixels or outputs; codes alone take runs of 16, features runs of 8, which are 16 bytes of
// int16. The general form takes everything else: sums go to shared memory, 16 outputs at a time, since only there a loop can count
// through them, and it is short instead of fast.
//
// Sums begin at the bits of kAnchor, so that one subtraction makes a float of them; the packed weights say whether they can be so large
// that it must be a conversion. docs/gpu_cuda.md, "Straight lines", counts what each of these saves.
#pragma once

#include <cstdint>

#include "cuda/codes.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/tile_sm80.cuh"

namespace adabm {
namespace cuda {

// Unused bytes behind the staged codes of a pixel, which keep rows of 8-byte words on different banks.
constexpr int kStagePad = 8;

// The straight forms, named after what is read and written besides codes; kNone where a tile takes the general form.
enum class Straight { kNone, kCodes, kFloat32, kInt16 };

// Returns log2 of the number of neighbouring outputs of a thread: where only codes are stored as many as have 16 bytes of codes, with features
// as many as have 16 bytes of int16.
ADABM_DEVICE int run_shift(Straight lines) { return lines == Straight::kNone ? 2 : lines == Straight::kCodes ? 4 : 3; }

// Returns which output of a tile stands in column `column` of the j-th eight columns of a product, where threads have runs of 2^run_shift. A
// thread has columns 2 q and 2 q + 1 of every eight, q being its number in a group of four: taken in order they are its runs, which
// lie four runs apart.
ADABM_DEVICE uint32_t output_of(int run_shift, uint32_t j, uint32_t column) {
  return (2 * j >> run_shift << (run_shift + 2)) + (column / 2 << run_shift) + (2 * j & ((1u << run_shift) - 1)) + column % 2;
}

// Returns an address `count` times `bytes` further on; with unsigned factors this is one instruction.
template <class T>
ADABM_DEVICE T* behind(T* first, uint32_t bytes, uint32_t count) {
  return first + static_cast<uint64_t>(count) * bytes;
}

// A sum begins at the bits of kAnchor: where it is small, its bits are those of a float, from which one subtraction makes its value.
constexpr uint32_t kFirstSum = 0x4b400000;

// Returns the number at which accumulators begin: they are doubled where the sums of the codes are added.
ADABM_DEVICE int32_t first_sum(bool with_box) { return static_cast<int32_t>(with_box ? kFirstSum / 2 : kFirstSum); }
ADABM_DEVICE uint32_t whole_sum(bool with_box, int32_t acc, int32_t box) {
  return with_box ? 2 * static_cast<uint32_t>(acc) + static_cast<uint32_t>(box) : static_cast<uint32_t>(acc);
}

// Returns the straight form of a tile for which the launch allows one.
ADABM_DEVICE Straight straight_form(const Conv2dParams& p, int image) {
  bool relu_of_codes = p.activation == ADABM_ACT_NONE;  // true where no activation is needed, or where ReLU can be applied to codes
  if (p.y_q) {
    const CodeGrid grid = code_grid(p.out_grid, image_bits(p.out_bits, image), p.y_unit);
    if (!grid.exact) return Straight::kNone;
    relu_of_codes |= grid.scale > 0.0f;
  }
  return p.y_int16 ? Straight::kInt16 : p.y || p.residual || !relu_of_codes ? Straight::kFloat32 : Straight::kCodes;
}

// ---- the straight form

// Larger kernels have more classes of constants than a byte can tell apart.
constexpr int kStraightKernel = 7;

// The four pixels of a thread in an inner tile: the m-th lies 8 m pixels behind the first one of the thread.
struct Pixels {
  int first;                // place of the first sub-pixel of the tile of outputs in y, in pixels
  int step, double_step;    // pixels from one to the next, and to the next but one; the same for all threads
  uint32_t inside;          // bit m: whether the image has pixel m; bit 4: whether the tile has several classes of constants
  uint32_t classes;         // classes of constants in beta, a byte for each pixel

  ADABM_DEVICE bool has(int m) const { return inside >> m & 1; }
  ADABM_DEVICE int at(int m) const { return first + m % 2 * step + m / 2 * double_step; }
  ADABM_DEVICE bool several_classes() const { return inside & 16; }
  ADABM_DEVICE int class_of(int m) const { return ptx::byte_perm(classes, 0, 0x4440 + m); }
};

// Returns the m-th pixel of this thread within the tile.
ADABM_DEVICE int pixel_of(int m) { return threadIdx.x / 32 * kWarpPixels + m * 8 + threadIdx.x % 32 / 4; }

ADABM_DEVICE Pixels own_pixels(const Conv2dParams& p, const Place& at, const OutputTile& outputs) {
  const int r = p.shuffle, row_pixels = p.width * r, sub_row = p.by_shuffle.quotient(outputs.sub), pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2;
  Pixels pixels;
  // 8 pixels are half a row of the tile or one.
  pixels.step = at.shift == 3 ? r * row_pixels : 8 * r, pixels.double_step = at.shift == 3 ? 2 * r * row_pixels : r * row_pixels;
  const int first = pixel_of(0), first_row = at.row + (first >> at.shift), first_column = at.column + (first & (at.columns - 1));
  pixels.first = (first_row * r + sub_row) * row_pixels + first_column * r + outputs.sub - sub_row * r;
  pixels.inside = 0xf, pixels.classes = p.border_kernels ? static_cast<uint32_t>(at.kernel) * 0x01010101u : 0u;
  const bool one_class =
      p.border_kernels || (at.row >= pad_h && at.row + at.rows + pad_h <= p.height && at.column >= pad_w && at.column + at.columns + pad_w <= p.width);
  if (!one_class || at.row + at.rows > at.end_row || at.column + at.columns > at.end_column) {
    pixels.inside = one_class ? 0 : 16;
#pragma unroll 1
    for (int m = 0; m < 4; m++) {
      const int pixel = pixel_of(m), row = at.row + (pixel >> at.shift), column = at.column + (pixel & (at.columns - 1));
      const bool inside = row < at.end_row && column < at.end_column;
      pixels.inside |= static_cast<uint32_t>(inside) << m;
      if (one_class || !inside) continue;
      const uint32_t border = border_class(row, p.height, pad_h) * (pad_w + 1) * (pad_w + 1) + border_class(column, p.width, pad_w);
      pixels.classes |= border << (8 * m);
    }
  }
  return pixels;
}

// The places of the residuals and features of a thread: the first outputs of its first pixel, bytes from one pixel to the next, and bytes of a
// feature.
struct FeaturePlace {
  int64_t first;
  int pitch, size;
};

ADABM_DEVICE FeaturePlace own_features(const Conv2dParams& p, const OutputTile& outputs, int image) {
  FeaturePlace place;
  place.size = p.y_int16 ? 2 : 4, place.pitch = p.y_pitch * place.size;
  place.first = (static_cast<uint64_t>(static_cast<uint32_t>(image)) * p.y_image_features + outputs.channel + threadIdx.x % 4 * 8) * place.size;
  return place;
}

// Residuals on their way to this thread: eight outputs of each of its pixels as int16, or of two of its pixels as float32.
struct Residuals {
  ptx::Words4 words[4];
};

// Starts to load 16 bytes of the residuals of the m-th pixel, `offset` bytes behind the first, where there are any.
ADABM_DEVICE void load_residual(const Conv2dParams& p, const FeaturePlace& place, const Pixels& pixels, int m, int offset, ptx::Words4& to) {
  const uint8_t* from = behind(static_cast<const uint8_t*>(p.residual) + place.first + offset, place.pitch, pixels.at(m));
  ptx::load_global_if(p.residual && pixels.has(m), reinterpret_cast<const ptx::Words4*>(from), to);
}

// Starts to load the first residuals; where there are none, sets them to the number that changes nothing.
ADABM_DEVICE Residuals first_residuals(const Conv2dParams& p, const FeaturePlace& place, const Pixels& pixels) {
  const uint32_t nothing = p.y_int16 ? 0u : ptx::bits_of(kNothing);
  Residuals out;
#pragma unroll
  for (int i = 0; i < 4; i++) out.words[i] = {{nothing, nothing, nothing, nothing}};
  if (p.y_int16) {
#pragma unroll
    for (int m = 0; m < 4; m++) load_residual(p, place, pixels, m, 0, out.words[m]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) load_residual(p, place, pixels, i / 2, i % 2 * 16, out.words[i]);
  }
  return out;
}

// Turns the sums of a tile into the bits of floats, in place. small: whether all are less than 2^22 in magnitude.
template <int kTiles>
ADABM_DEVICE void make_floats(bool with_box, bool small, int32_t (&acc)[2][kTiles][4], const int32_t (&box)[2][4]) {
  if (with_box) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < kTiles; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) acc[i][j][r] = static_cast<int32_t>(whole_sum(true, acc[i][j][r], box[i][r / 2 * 2]));
  }
  if (small) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < kTiles; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) acc[i][j][r] = static_cast<int32_t>(ptx::bits_of(ptx::float_of(acc[i][j][r]) - kAnchor));
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < kTiles; j++)
#pragma unroll
        for (int r = 0; r < 4; r++)
          acc[i][j][r] = static_cast<int32_t>(ptx::bits_of(static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(acc[i][j][r]) - kFirstSum))));
  }
}

// Loads kCount numbers from an address that is a multiple of 16 bytes.
template <int kCount>
ADABM_DEVICE void load_row(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const ptx::Words4 four = ptx::load_constant(reinterpret_cast<const ptx::Words4*>(from + i));
#pragma unroll
    for (int e = 0; e < 4; e++) to[i + e] = ptx::float_of(four.w[e]);
  }
}

// Joins codes as code_pair gives them, so that each half has two neighbouring ones; a product with a power of two and a sum are one instruction.
ADABM_DEVICE uint32_t join_codes(uint32_t first, uint32_t second, uint32_t factor) { return second * factor + first; }

// Returns eight neighbouring codes of a pixel in their stored form: pairs[k] has codes k and k + 4 in its halves.
ADABM_DEVICE void store_eight(uint8_t* to, int storage, const uint32_t (&pairs)[4]) {
  const auto join = [&](uint32_t factor, uint32_t& first, uint32_t& last) {
    first = join_codes(pairs[0], pairs[1], factor), last = join_codes(pairs[2], pairs[3], factor);
  };
  uint32_t first, last;
  if (storage == 8) {
    join(256, first, last);
    ptx::store_global(reinterpret_cast<ptx::Words2*>(to), {{ptx::byte_perm(first, last, 0x5410), ptx::byte_perm(first, last, 0x7632)}});
  } else if (storage == 4) {
    join(16, first, last);
    ptx::store_global(reinterpret_cast<uint32_t*>(to), join_codes(first, last, 256));
  } else {
    join(4, first, last);
    ptx::store_global(reinterpret_cast<uint16_t*>(to), static_cast<uint16_t>(ptx::byte_perm(join_codes(first, last, 16), 0, 0x4420)));
  }
}

// Numbers by which eight such codes become one or two words without a branch on the storage for each: they depend on the storage alone, are
// computed once, and are operands of the same instructions for every storage.
struct Packing {
  uint32_t next, next_two;  // factors that move one code, and two codes, behind others
  uint32_t low;             // selector of the bytes of the first word, from the first and the last four codes

  ADABM_DEVICE explicit Packing(int storage)
      // clang-format off: one choice a line would stand far to the right
      : next(ptx::opaque(1u << storage)), next_two(ptx::opaque(storage == 2 ? 16u : 0u)),
        low(ptx::opaque(storage == 8 ? 0x5410u : storage == 4 ? 0x6240u : 0x7720u)) {}
  // clang-format on

  // The second word is for codes of 8 bits; those of 2 bits are in the low half of the first.
  ADABM_DEVICE ptx::Words2 pack(const uint32_t (&pairs)[4]) const {
    const uint32_t first = join_codes(pairs[0], pairs[1], next), last = join_codes(pairs[2], pairs[3], next);
    return {{ptx::byte_perm(join_codes(first, last, next_two), last, low), ptx::byte_perm(first, last, 0x7632)}};
  }
};

// Stores sixteen codes of each pixel of a thread: codes[0] and codes[1] have the first and the last eight. `to` is the place in y_q of the first
// codes of the first pixel.
ADABM_DEVICE void store_sixteens(uint8_t* to, int pitch, int storage, const Pixels& pixels, const ptx::Words2 (&codes)[2][4]) {
  const auto each = [&](auto&& store) {
#pragma unroll
    for (int m = 0; m < 4; m++)
      if (pixels.has(m)) store(behind(to, pitch, pixels.at(m)), codes[0][m], codes[1][m]);
  };
  if (storage == 8)
    each([](uint8_t* pixel, const ptx::Words2& low, const ptx::Words2& high) {
      ptx::store_global(reinterpret_cast<ptx::Words4*>(pixel), {{low.w[0], low.w[1], high.w[0], high.w[1]}});
    });
  else if (storage == 4)
    each([](uint8_t* pixel, const ptx::Words2& low, const ptx::Words2& high) {
      ptx::store_global(reinterpret_cast<ptx::Words2*>(pixel), {{low.w[0], high.w[0]}});
    });
  else
    each([](uint8_t* pixel, const ptx::Words2& low, const ptx::Words2& high) {
      ptx::store_global(reinterpret_cast<uint32_t*>(pixel), ptx::byte_perm(low.w[0], high.w[0], 0x5410));
    });
}

// Takes the results of a tile from registers to memory; its sums are floats. residuals: the first ones, in the forms with features.
template <Straight kForm>
ADABM_DEVICE void straight_lines(const Conv2dParams& p, const OutputTile& outputs, int image, int bits, Pixels pixels, Residuals residuals,
                                 const int32_t (&acc)[2][8][4]) {
  constexpr bool kFeatures = kForm != Straight::kCodes, kInt16 = kForm == Straight::kInt16;
  // Outputs are taken eight at a time; the next eight are beside them, or behind those of the other threads.
  constexpr int kRun = 8, kNext = kFeatures ? 32 : 8;
  const int first_output = threadIdx.x % 4 * (kFeatures ? 8 : 16);
  int o = outputs.first + first_output;
  const FeaturePlace place = own_features(p, outputs, image);
  CodeGrid grid = {};
  uint8_t* y_q = nullptr;
  int storage = 8, code_pitch = 0;
  if (p.y_q) {
    const int out_bits = image_bits(p.out_bits, image);
    grid = code_grid(p.out_grid, out_bits, kInt16 ? p.y_unit : 1.0f);
    storage = storage_bits(out_bits, p.packed_codes & ADABM_PACKED_Y), code_pitch = p.tiling.group * storage / 8;
    y_q = behind(p.y_q, p.y_q_image, image) + (outputs.channel + first_output) / 8 * storage;
  }
  const bool relu = kFeatures && p.activation == ADABM_ACT_RELU;
  // Codes rise with values, so the code of max(v, 0) is the code of v, but no less than the code of 0.
  const uint32_t lowest = !kFeatures && p.activation == ADABM_ACT_RELU ? code_pair(0.0f, 0.0f, grid) : 0u;
  const Packing packing(storage);
  ptx::Words2 codes[2][4];  // used in the form without features
#pragma unroll
  for (int run = 0; run < 2; run++) {
    float alphas[kRun], betas[kRun];
    pixels.first = ptx::opaque(pixels.first), o = ptx::opaque(o);
    load_row(p.alpha + ((bits - ADABM_MIN_BITS) * p.out_channels + o), alphas);
    if constexpr (kInt16) {
#pragma unroll
      for (int k = 0; k < kRun; k++) alphas[k] *= p.y_units;
    }
#pragma unroll
    for (int m = 0; m < 4; m++) {
      float values[kRun];
      // With features there are no registers left for constants that all pixels of a tile inside the image share.
      if (kFeatures || m == 0 || pixels.several_classes()) load_row(p.beta + (pixels.class_of(m) * p.out_channels + o), betas);
#pragma unroll
      for (int k = 0; k < kRun; k++) {
        if constexpr (kInt16) betas[k] *= p.y_units;
        values[k] = fmaf(ptx::float_of(acc[m / 2][(run * kRun + k) / 2][m % 2 * 2 + k % 2]), alphas[k], betas[k]);
      }
      if (relu) {
#pragma unroll
        for (int k = 0; k < kRun; k++) values[k] = fmaxf(values[k], 0.0f);
      }
      // Where residuals have been used, loads of the next ones start here: the compiler could not move them before stores, as y may be residual.
      if constexpr (kInt16) {
#pragma unroll
        for (int k = 0; k < kRun; k += 2) add_features(residuals.words[m].w[k / 2], values[k], values[k + 1]);
        ptx::Words4 stored;
#pragma unroll
        for (int k = 0; k < kRun; k += 2) {
          values[k] = round_feature(values[k]), values[k + 1] = round_feature(values[k + 1]);
          stored.w[k / 2] = pack_features(values[k], values[k + 1]);
        }
        uint8_t* to = behind(static_cast<uint8_t*>(p.y) + place.first + run * kNext * 2, place.pitch, pixels.at(m));
        if (p.y && pixels.has(m)) ptx::store_global(reinterpret_cast<ptx::Words4*>(to), stored);
        if (run == 0) load_residual(p, place, pixels, m, kNext * 2, residuals.words[m]);
        if (p.y_q) {
#pragma unroll
          for (int k = 0; k < kRun; k++) values[k] = stored_value(values[k]);
        }
      } else if constexpr (kFeatures) {
        ptx::Words4 stored[2];
#pragma unroll
        for (int k = 0; k < kRun; k++) {
          values[k] = ptx::float_of(residuals.words[m % 2 * 2 + k / 4].w[k % 4]) + values[k];
          stored[k / 4].w[k % 4] = ptx::bits_of(values[k]);
        }
        const int next = 4 * run + m + 2;
        if (next < 8) {
#pragma unroll
          for (int half = 0; half < 2; half++) load_residual(p, place, pixels, next % 4, next / 4 * kNext * 4 + half * 16, residuals.words[m % 2 * 2 + half]);
        }
        if (p.y && pixels.has(m)) {
          uint8_t* pixel = behind(static_cast<uint8_t*>(p.y) + place.first + run * kNext * 4, place.pitch, pixels.at(m));
          ptx::Words4* to = reinterpret_cast<ptx::Words4*>(pixel);
          ptx::store_global(to, stored[0]), ptx::store_global(to + 1, stored[1]);
        }
      }
      if (!kFeatures || p.y_q) {
        uint32_t pairs[4];
#pragma unroll
        for (int k = 0; k < 4; k++) pairs[k] = code_pair(values[k], values[k + 4], grid);
        if (lowest) {
#pragma unroll
          for (int k = 0; k < 4; k++) pairs[k] = ptx::max_halves(pairs[k], lowest);
        }
        if (!kFeatures)
          codes[run][m] = packing.pack(pairs);
        else if (pixels.has(m))
          store_eight(behind(y_q, code_pitch, pixels.at(m)) + run * kNext / 8 * storage, storage, pairs);
      }
    }
    o += kNext;
  }
  if (!kFeatures) store_sixteens(y_q, code_pitch, storage, pixels, codes);
}

// ---- the general form

// Words of a pixel in shared memory while its results are made: its place in y (-1: it has none, or it stays as it is), its place in beta, its
// PixelUse, and the sum of its codes.
constexpr int kPixelInfoBytes = 16;

// Bytes of shared memory that the general form takes for tiles of so many outputs: staged codes, the words of the pixels, and the sums of 16
// outputs.
ADABM_HD inline uint32_t general_bytes(int width) { return kTilePixels * (width + kStagePad + kPixelInfoBytes + 16 * 4); }

// Stores the staged codes of one tile, [pixel][outputs + kStagePad], as packed words; only the words of a pixel that this tile owns.
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
  const uint32_t infos = ptx::shared_base() + kTilePixels * kPitch;
  const BlockDivisor by_pixel(sub_words), by_sub(words);
#pragma unroll 1
  for (int unit = threadIdx.x; unit < kTilePixels * sub_words; unit += kThreads) {
    const int pixel = by_pixel.quotient(unit), in_pixel = by_pixel.rest(unit);
    const int row = at.row + (pixel >> at.shift), column = at.column + (pixel & (at.columns - 1));
    if (ptx::load_shared<PixelUse>(infos + pixel * kPixelInfoBytes + 8) == PixelUse::kUntouched) continue;
    const uint32_t from = ptx::shared_base() + pixel * kPitch;
    const int sub = outputs.subs == 1 ? 0 : by_sub.quotient(in_pixel), word = in_pixel - sub * words;
    uint32_t value = 0;
#pragma unroll 1
    for (int i = 0; i < word_codes / 4; i++) {
      const int channel = word * word_codes + 4 * i;
      uint32_t codes = 0;
      if (outputs.subs == 1) {  // codes behind the last channel are staged too, as zeros
        codes = ptx::load_shared<uint32_t>(from + channel);
      } else {
#pragma unroll 1
        for (int c = 0; c < 4 && channel + c < own; c++) codes |= static_cast<uint32_t>(ptx::load_shared<uint8_t>(from + sub * group + channel + c)) << (8 * c);
      }
      value |= narrow_four(storage, codes) << (4 * storage * i);
    }
    const int sub_pixel = outputs.sub + sub, sub_row = p.by_shuffle.quotient(sub_pixel);
    const int64_t out = (row * p.shuffle + sub_row) * row_pixels + column * p.shuffle + sub_pixel - sub_row * p.shuffle;
    ptx::store_global(reinterpret_cast<uint32_t*>(y_q + out * pitch) + first_word + word, value);
  }
}

// Adds the residual to the value of one output and stores it in y, y_acc and y_image, where they are given; the value becomes the one that
// y holds.
ADABM_DEVICE void store_feature(const Conv2dParams& p, int64_t at, int32_t sum, float& value) {
  if (p.y_int16) {
    if (p.residual) value = value_of(ptx::load_global(static_cast<const int16_t*>(p.residual) + at), p.y_unit) + value;
    const int16_t feature = feature_of(value, p.y_units);
    value = value_of(feature, p.y_unit);
    if (p.y) ptx::store_global(static_cast<int16_t*>(p.y) + at, feature);
    return;
  }
  if (p.residual) value = ptx::load_global(static_cast<const float*>(p.residual) + at) + value;
  if (p.y) ptx::store_global(static_cast<float*>(p.y) + at, value);
  if (p.y_acc) ptx::store_global(p.y_acc + at, sum);
  if (p.y_image) ptx::store_global(p.y_image + at, static_cast<uint8_t>(quantize_low_byte(value, 1.0f, 0.0f, 255.0f)));
}

// Computes the results of any tile. A thread reads its sums again from shared memory, four outputs of a pixel at a time, since only there a loop
// can count through them. by_pixel: whether some pixels stay as they are or are passed on.
template <int kTiles>
ADABM_DEVICE void general_form(const Conv2dParams& p, bool by_pixel, const Place& at, const OutputTile& outputs, int image, int bits, bool with_box,
                               const int32_t (&acc)[2][kTiles][4], const int32_t (&box)[2][4]) {
  constexpr int kPitch = kTiles * 8 + kStagePad;
  const int lane = threadIdx.x % 32, quarter = lane % 4, first_pixel = threadIdx.x / 32 * kWarpPixels;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2, r = p.shuffle, group = p.tiling.group, row_pixels = p.width * r;
  const int64_t image_floats = static_cast<int64_t>(image) * p.height * r * row_pixels * p.y_pitch;
  const float* alpha = p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels;
  float scale = 0, offset = 0, top = 0;
  int out_bits = 8;
  if (p.y_q) {
    out_bits = image_bits(p.out_bits, image);
    scale = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2);
    offset = ptx::load_constant(p.out_grid + (out_bits - ADABM_MIN_BITS) * 2 + 1);
    top = static_cast<float>((1 << out_bits) - 1);
  }
  const uint32_t infos = ptx::shared_base() + kTilePixels * kPitch, sums = infos + kTilePixels * kPixelInfoBytes + threadIdx.x * 8;
  constexpr int kSumsBytes = kThreads * 8;  // bytes from two sums of a thread to its next two
  {
    // Each lane finds the words of one pixel of its warp.
    const int pixel = threadIdx.x, row = at.row + (pixel >> at.shift), column = at.column + (pixel & (at.columns - 1));
    const bool inside = pixel >> at.shift < at.rows && row < at.end_row && column < at.end_column;
    PixelUse use = inside ? PixelUse::kComputed : PixelUse::kUntouched;
    if (by_pixel && inside) use = pixel_use(p.region, image, row, column);
    int y_at = -1, beta_at = 0;
    if (use != PixelUse::kUntouched) {
      y_at = (row * r * row_pixels + column * r) * p.y_pitch;
      beta_at = p.border_kernels ? at.kernel * p.out_channels
                                 : (border_class(row, p.height, pad_h) * (pad_w + 1) * (pad_w + 1) + border_class(column, p.width, pad_w)) * p.out_channels;
    }
    const uint32_t info = infos + pixel * kPixelInfoBytes;
    ptx::store_shared(info, y_at), ptx::store_shared(info + 4, beta_at), ptx::store_shared(info + 8, use);
    if (quarter == 0) {
#pragma unroll
      for (int m = 0; m < 4; m++) ptx::store_shared(infos + pixel_of(m) * kPixelInfoBytes + 12, box[m / 2][m % 2 * 2]);
    }
    ptx::sync_warp();
  }
#pragma unroll 1
  for (int four = 0; four < kTiles / 2; four++) {
#pragma unroll
    for (int k = 0; k < kTiles / 2; k++)
      if (k == four) {
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            ptx::store_shared(sums + (2 * m + half) * kSumsBytes, ptx::Words2{{static_cast<uint32_t>(acc[m / 2][2 * k + half][m % 2 * 2]),
                                                                               static_cast<uint32_t>(acc[m / 2][2 * k + half][m % 2 * 2 + 1])}});
      }
    const int in_tile = four * 16 + quarter * 4, wanted = outputs.count - in_tile, o = outputs.first + in_tile;
    float alphas[4], slopes[4];
    int y_offset[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      alphas[e] = e < wanted ? ptx::load_constant(alpha + o + e) : 0.0f;
      slopes[e] = p.activation == ADABM_ACT_PRELU && e < wanted ? ptx::load_constant(p.slope + o + e) : 0.0f;
      const int sub = outputs.sub + (outputs.subs == 1 ? 0 : p.by_group.quotient(in_tile + e)), sub_row = p.by_shuffle.quotient(sub);
      y_offset[e] = (sub_row * row_pixels + sub - sub_row * r) * p.y_pitch + o + e - sub * group;
    }
#pragma unroll 1
    for (int m = 0; m < 4; m++) {
      const int pixel = first_pixel + m * 8 + lane / 4;
      const ptx::Words4 info = ptx::load_shared<ptx::Words4>(infos + pixel * kPixelInfoBytes);
      const int y_at = static_cast<int>(info.w[0]);
      const bool passed_on = static_cast<PixelUse>(info.w[2]) == PixelUse::kPassedOn;
      uint32_t codes = 0;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const ptx::Words2 two = ptx::load_shared<ptx::Words2>(sums + (2 * m + half) * kSumsBytes);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int e = 2 * half + i;
          const uint32_t sum = whole_sum(with_box, static_cast<int32_t>(two.w[i]), static_cast<int32_t>(info.w[3])) - kFirstSum;
          if (e >= wanted || y_at < 0) continue;
          const float beta = ptx::load_constant(p.beta + static_cast<int>(info.w[1]) + o + e);
          float value = activate(p.activation, fmaf(static_cast<float>(static_cast<int32_t>(sum)), alphas[e], beta), slopes[e]);
          if (passed_on) value = p.residual ? kNothing : 0.0f;
          store_feature(p, image_floats + y_at + y_offset[e], static_cast<int32_t>(sum), value);
          codes |= (quantize_low_byte(value, scale, offset, top) & 0xffu) << (8 * e);
        }
      }
      if (p.y_q) ptx::store_shared(ptx::shared_base() + pixel * kPitch + in_tile, codes);
    }
  }
  if (!p.y_q) return;
  ptx::sync_block();
  store_codes<kTiles>(p, at, outputs, image, out_bits);
}

}  // namespace cuda
}  // namespace adabm
