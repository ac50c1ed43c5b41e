// The epilogue of the kernels of compute capability 9.0, for the sums of a strip: activation, residual, features, codes, pixels.
//
// A strip is 8 columns by 16 rows of pixels and 64 outputs; its four warps have 16 outputs each. A thread has, of every row, two
// neighbouring outputs at two neighbouring pixels:
//
//   one row of a strip, one warp:     pixel   0  1 | 2  3 | 4  5 | 6  7
//                        outputs 0, 1         t0   | t1   | t2   | t3        rows of A are permuted when the weights are loaded
//                        outputs 2, 3         t4   | t5   | t6   | t7        (fragment in products_sm90.cuh), so that the two outputs
//                           ...                                             of a thread are neighbours
//                        outputs 14, 15       t28  | t29  | t30  | t31
//
// Features are stored from there: 8 bytes of float32 or 4 of int16, whose neighbours the warp's other threads store at the same time.
// Codes are smaller, so they go through shared memory first: two codes of a pixel are a unit, those of a warp are 16 bytes of the pixel,
// which stmatrix puts side by side (stage_units), and 16 bytes leave at once (store_units).
//
// The straight form: 64 outputs whose features and codes lie as the vector instructions want them, one instruction after the other for
// all sums of a thread; what differs between launches is a branch for 16 values at most. It takes strips cut off by the image and along
// its border too, and has a form without any branch for the usual strip (is_usual). The residual is on its way while the products are made
// (Ahead). Everything else takes the general form (epilogue_general_sm90.cuh). What this costs is counted in docs/notes_hopper.md.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

// A thread has two neighbouring outputs at two neighbouring pixels of each row of a strip.
inline Straight straight_form(const Conv2dParams& p) {
  const bool features = p.y || p.residual;
  const uint64_t row_bytes = uint64_t{4} * p.shuffle * p.shuffle * p.width * p.y_pitch;  // from one row of a strip to the next
  if (p.kernel_h != 3 || p.kernel_w != 3 || p.tiling.group % kMaxTileOutputs || p.y_acc || p.y_image || p.border_kernels) return Straight::kNone;
  if (p.activation == ADABM_ACT_PRELU && (features || p.y_int16)) return Straight::kNone;  // no network has this: the general form takes it
  const bool large = row_bytes > INT32_MAX || int64_t{1} * p.batch * p.height * p.shuffle > INT32_MAX;
  if (reinterpret_cast<uintptr_t>(p.y_q) % 16 || (features && !p.y_pairs) || large) return Straight::kNone;
  const bool dense = p.y_pitch == kMaxTileOutputs && p.shuffle == 1;  // pixels follow one another without a gap
  if (p.y_int16) return dense ? Straight::kInt16 : Straight::kNone;
  return !features ? Straight::kCodes : dense ? Straight::kFloat32 : Straight::kFloat32Apart;
}

// ---- the straight form

// The pixels of a strip: how many rows and columns lie in its tile and the image, and whether some of them have a border
// class of their own.
struct StripPixels {
  int row, column, rows, columns;
  bool border;
};

template <int kGroups>
ADABM_DEVICE StripPixels strip_pixels(const Conv2dParams& p, const Tile& at, int strip) {
  StripPixels s;
  s.row = at.row, s.column = at.column + strip * kStripColumns;
  s.rows = at.end_row - s.row < kGroups ? at.end_row - s.row : kGroups;
  s.columns = at.end_column - s.column < kStripColumns ? at.end_column - s.column : kStripColumns;
  // A vote is known to be the same for all lanes, so that branches on it need no place to meet again.
  s.border = ptx::any_lane(s.row == 0 || s.row + s.rows == p.height || s.column == 0 || s.column + s.columns == p.width);
  return s;
}

// Whether values become codes, and whether `shrink` is 1 for them, as it nearly always is.
enum class Codes { kOrdinary, kNone, kShrunk };

constexpr float kShrink = 0x1p-24f;

// The constants of one thread, from the tables of the layer.
struct LayerValues {
  int output, second;  // the first of its two outputs, and how far behind it the second is: 1, but 0 where there is none
  float alphas[2], betas[2];
  float units;     // a power of two by which alpha and beta have been multiplied
  CodeGrid grid;   // grid of the codes, for values in these units
  float shrink;    // factor of values before they become codes: 1, but kShrink where the grid's scale would be denormal
  uint32_t unit_factor;  // 2 to the power of the bits of a stored code
  Codes codes;     // whether and how values become codes in the forms with features
  int activation;  // the activation that is still to be applied
};

// Returns the grid for values in units of 1 / `units`. Scales of 2^-76 and less, which no range of values has, are kept 2^24 times as large.
ADABM_DEVICE void set_grid(LayerValues& v, const float* out_grid, int bits, float unit) {
  const float* row = out_grid + (bits - ADABM_MIN_BITS) * 2;
  const float scale = ptx::load_constant(row);
  const bool tiny = fabsf(scale) <= 0x1p-76f;
  v.grid = code_grid(tiny ? scale * 0x1p24f : scale, ptx::load_constant(row + 1), bits, unit), v.shrink = tiny ? kShrink : 1.0f;
}

// ---- features of 16 bits in strips of the usual kind (is_usual)
//
// A value v, in units of the features, is rounded to v + 32768 as a denormal number: its bits are the integer. Saturation at 0 bounds
// it below, and NaN becomes 0; packing bounds it above; and -32768 becomes -32767 where the bias is taken away again. 32768 is even, so that
// halves round to the same side with it or without it.

ADABM_DEVICE float round_biased(float value) { return ptx::fma_saturate(value, 0x1p-149f, 0x1p-134f); }
ADABM_DEVICE uint32_t pack_biased(float first, float second) {
  const uint32_t biased = ptx::pack_saturated(static_cast<int32_t>(ptx::bits_of(first)), static_cast<int32_t>(ptx::bits_of(second)));
  return ptx::add_max_halves(biased, 0x80008000u, 0x80018001u);
}

// Returns the feature as a float in units of kHeldUnit features, not bounded above.
constexpr float kHeldUnit = 0x1p22f;
ADABM_DEVICE float held_value(float biased) { return fmaf(biased, 0x1p127f, -32768.0f / kHeldUnit); }

// Returns whether the features -32767 and 32767 have the lowest and the highest code: values beyond them then have the same codes, as codes do
// not fall where values rise. A grid so coarse that its scale in units of kHeldUnit would not be finite is not asked for.
ADABM_DEVICE bool codes_need_no_clamp(const CodeGrid& grid) {
  return code_pair(-32767.0f, 32767.0f, grid) == (grid.top & 0xffff0000u) && grid.scale < 0x1p100f;
}

// Returns the constants of the thread whose first output is the given one. With features of 16 bits values are in units of 2^-fraction, as are
// alpha and beta (which must then be below 2^104 in magnitude, or they would overflow).
template <Straight kForm>
ADABM_DEVICE LayerValues layer_values(const Conv2dParams& p, int image, int bits, int output) {
  LayerValues v = {};
  v.output = output, v.second = 1, v.units = kForm == Straight::kInt16 ? p.y_units : 1.0f, v.activation = p.activation;
  if (p.y_q) {
    const int out_bits = image_bits(p.out_bits, image);
    set_grid(v, p.out_grid, out_bits, kForm == Straight::kInt16 ? p.y_unit : 1.0f);
    v.unit_factor = ptx::opaque(1u << storage_bits(out_bits, p.packed_codes & ADABM_PACKED_Y));
    if (kForm == Straight::kCodes && p.activation == ADABM_ACT_RELU && codes_need_no_relu(v.grid)) v.activation = ADABM_ACT_NONE;
    if (kForm == Straight::kCodes) v.units = v.shrink;
  }
  if (kForm != Straight::kCodes) {
    const bool shrunk = ptx::any_lane(v.shrink != 1.0f);
    v.codes = !p.y_q ? Codes::kNone : shrunk ? Codes::kShrunk : Codes::kOrdinary;
  }
  const float* alpha = p.alpha + (bits - ADABM_MIN_BITS) * p.out_channels + output;
#pragma unroll
  for (int e = 0; e < 2; e++) v.alphas[e] = ptx::load_constant(alpha + e) * v.units, v.betas[e] = ptx::load_constant(p.beta + output + e) * v.units;
  return v;
}

// Returns the first of the two outputs of a thread of a warpgroup in its tile of outputs, where weights are in registers.
ADABM_DEVICE uint32_t first_in_tile(uint32_t thread) { return thread / 32 * 16 + thread % 32 / 4 * 2; }

// Returns whether a form has 64 features for each pixel, without a gap or a PixelShuffle, so that there is one tile of outputs.
ADABM_HD constexpr bool is_dense(Straight form) { return form == Straight::kFloat32 || form == Straight::kInt16; }

// Returns the pixel of the results, counted over all images, that belongs to the first pixel of a row of a strip; with a PixelShuffle the one of
// the sub-pixel of the tile.
template <Straight kForm>
ADABM_DEVICE int64_t first_pixel(const Conv2dParams& p, const StripPixels& s, const OutputTile& outputs, int image, int row_in_strip) {
  if (is_dense(kForm)) return static_cast<int64_t>(image * p.height + s.row + row_in_strip) * p.width + s.column;
  const int r = p.shuffle, sub_row = r == 1 ? 0 : outputs.sub / r, sub_column = outputs.sub - sub_row * r;
  return static_cast<int64_t>((image * p.height + s.row + row_in_strip) * r + sub_row) * (p.width * r) + s.column * r + sub_column;
}

// The places of the features of this thread in a strip, equal in y and in the residual: the first of two neighbouring features of each of its
// two pixels, in bytes from the first of the tensor. Columns beyond the strip are replaced by one inside, which may be read.
template <Straight kForm>
struct FeaturePlace {
  static constexpr int kBytes = kForm == Straight::kInt16 ? 2 : 4;
  int64_t offset;      // place of the first pixel in the first row of the strip
  uint32_t apart;      // bytes from there to the other pixel
  uint32_t row_bytes;  // bytes from one row of the strip to the next
  int rows[2];         // rows of the strip for each of the two pixels; 0 for a pixel that lies outside

  FeaturePlace() = default;
  ADABM_DEVICE FeaturePlace(const Conv2dParams& p, const StripPixels& s, const OutputTile& outputs, int image, uint32_t thread) {
    const int shuffle = is_dense(kForm) ? 1 : p.shuffle, pitch = is_dense(kForm) ? kMaxTileOutputs : p.y_pitch, channel = is_dense(kForm) ? 0 : outputs.channel;
    const int pixel_bytes = shuffle * pitch * kBytes, first = thread % 4 * 2, column = first < s.columns ? first : 0;
    offset = first_pixel<kForm>(p, s, outputs, image, 0) * (pitch * kBytes) + column * pixel_bytes + (channel + first_in_tile(thread)) * kBytes;
    const bool pair = column + 1 < s.columns;
    apart = pair ? pixel_bytes : 0, rows[0] = ptx::own_register(s.rows, thread), rows[1] = pair ? rows[0] : 0;
    row_bytes = ptx::own_register(static_cast<uint32_t>(p.width * shuffle) * pixel_bytes, thread);
  }
};

// The same places in one of the two tensors, row after row. Where pixels follow one another without a gap, one pointer serves both.
template <Straight kForm>
struct FeatureRows {
  static constexpr int kApart = is_dense(kForm) ? FeaturePlace<kForm>::kBytes * kMaxTileOutputs : 0;
  char* pixels[kApart ? 1 : 2];
  uint32_t row_bytes;

  FeatureRows() = default;
  ADABM_DEVICE FeatureRows(const void* features, const FeaturePlace<kForm>& place) : row_bytes(place.row_bytes) {
    pixels[0] = static_cast<char*>(const_cast<void*>(features)) + place.offset;
    if constexpr (!kApart) pixels[1] = pixels[0] + place.apart;
  }
  ADABM_DEVICE char* at(int i) const { return kApart ? pixels[0] + i * kApart : pixels[kApart ? 0 : i]; }
  ADABM_DEVICE void next() {
    pixels[0] += row_bytes;
    if constexpr (!kApart) pixels[1] += row_bytes;
  }
};

// Returns whether tiles end within a strip, as the tiles of residual blocks do: columns are then cut off everywhere, by predicates for which the forms
// with 16 rows have no registers.
ADABM_HD constexpr bool cut_columns(int groups) { return groups < kStripRows; }

// The residual of some rows of a strip, the first of which are on their way while the products are made. With features of 16
// bits these are all rows. With floats they are as many as have registers beside the sums and the weights; later rows are read into the
// registers of rows that are done.
template <Straight kForm, int kGroups>
struct Ahead {
  static constexpr int kRowWords = kForm == Straight::kInt16 ? 2 : 4;
  static constexpr int kRows = kForm == Straight::kInt16 ? kGroups : kForm == Straight::kFloat32Apart ? 4 : kGroups == kStripRows ? 6 : 12;
  static_assert(kRows % 2 == 0, "rows are done in pairs");
  uint32_t words[kRows * kRowWords];  // the words of row j begin at kRowWords (j % kRows)
  FeaturePlace<kForm> place;
  FeatureRows<kForm> next;

  // Starts to read rows j .. j + kCount - 1, which come next; rows behind the last one of the strip are not read. kWhole: the strip has all
  // rows and, except with cut_columns, all columns.
  template <int kCount, bool kWhole>
  ADABM_DEVICE void read(int j) {
#pragma unroll
    for (int k = 0; k < 2 * kCount; k++) {
      uint32_t* to = words + (j + k / 2) % kRows * kRowWords + k % 2 * (kRowWords / 2);
      const bool wanted = (kWhole && !cut_columns(kGroups)) || (kWhole ? 0 : j + k / 2) < place.rows[next.kApart ? k % 2 : 0];
      ptx::load_words_if<kRowWords / 2>(wanted, next.at(k % 2), to);
      if (k % 2) next.next();
    }
  }
  ADABM_DEVICE const uint32_t* row(int j) const { return words + j % kRows * kRowWords; }
};

// The beta of the four pixels of this thread in two rows of a 3x3 layer. It does not change in strips without a pixel along the border; pixels
// outside the image have the border class of the nearest one.
struct Betas {
  float values[2][2][2];  // [row m][pixel i][output e]
  int columns[2];         // place of the beta of the first output at pixel i in the table, in the first row class
  int row;                // the first row of the strip
  bool border;

  ADABM_DEVICE static int class_of(int position, int size) { return (position <= 0 ? 2 : 0) + (position >= size - 1 ? 1 : 0); }

  ADABM_DEVICE Betas(const Conv2dParams& p, const LayerValues& v, bool border, int row, int column) : row(row), border(border) {
#pragma unroll
    for (int k = 0; k < 8; k++) values[k / 4][k / 2 % 2][k % 2] = v.betas[k % 2];
#pragma unroll
    for (int i = 0; i < 2; i++) columns[i] = class_of(column + i, p.width) * p.out_channels + v.output;
  }
  // Makes ready for rows j and j + 1.
  ADABM_DEVICE void enter(const Conv2dParams& p, const LayerValues& v, int j) {
    if (!border) return;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float* beta = p.beta + (columns[k % 2] + class_of(row + j + k / 2, p.height) * 4 * p.out_channels);
      values[k / 2][k % 2][0] = ptx::load_constant(beta) * v.units, values[k / 2][k % 2][1] = ptx::load_constant(beta + v.second) * v.units;
    }
  }
};

// Stores codes that are staged as units of 16 bits, 16 bytes at once, at kStorage bits a code.
template <Straight kForm, int kStorage, int kGroups>
ADABM_DEVICE void store_units(const Conv2dParams& p, const StripPixels& s, const OutputTile& outputs, int image, uint32_t thread, uint32_t staged) {
  constexpr int kParts = kStorage / 2, kRows = kGroupThreads / (kParts * kStripColumns), kUnits = 8 / kStorage;  // rows at once; words of 16 bytes to read
  const uint32_t part = thread % kParts, column = thread / kParts % kStripColumns, row = thread / (kParts * kStripColumns);
  const int shuffle = is_dense(kForm) ? 1 : p.shuffle, group = is_dense(kForm) ? kMaxTileOutputs : p.tiling.group, pitch = group * kStorage / 8;
  uint8_t* to = p.y_q + first_pixel<kForm>(p, s, outputs, image, row) * pitch + static_cast<int>(column) * shuffle * pitch + part * 16;
  if (!is_dense(kForm)) to += outputs.channel * kStorage / 8;
  // An image begins at the same byte as with codes of 8 bits.
  if (kStorage < 8) to += image * (static_cast<int64_t>(p.height * shuffle) * (p.width * shuffle)) * (group - pitch);
  const int64_t step = static_cast<int64_t>(kRows * shuffle * shuffle * p.width) * pitch;
  const uint32_t from = staged + (row * kStripColumns + column) * kStagedPitch + part * kUnits * 16;
  const int rows = static_cast<int>(column) < s.columns ? s.rows - static_cast<int>(row) : 0;
#pragma unroll
  for (int k = 0; k * kRows < kGroups; k++, to += step) {
    if (k * kRows >= rows) continue;
    ptx::Words4 units[kUnits];
#pragma unroll
    for (int i = 0; i < kUnits; i++) units[i] = ptx::load_shared<ptx::Words4>(from + k * kRows * kStripColumns * kStagedPitch + 16 * i);
    ptx::store_global(reinterpret_cast<ptx::Words4*>(to), pack_units<kStorage>(units));
  }
}

// Stages the units of rows first .. first + kCount - 1 of a strip: 16 outputs of a pixel are 16 bytes of one warp.
template <int kCount>
ADABM_DEVICE void stage_units(uint32_t thread, uint32_t row_address, uint32_t row_bytes, uint32_t pixel_bytes, const uint32_t (&units)[kCount]) {
  ptx::store_matrices_transposed<kCount>(row_address + thread % 32 / 8 * row_bytes + thread % 8 * pixel_bytes, units);
}

// Values of this thread in two rows: [row m][pixel i][output e].
using Values = float[2][2][2];

// Turns the sums of rows first and first + 1 of a strip into values: scale, bias and activation.
// kUsual: no pixel lies along the border, and there is no activation.
template <bool kPrelu, bool kUsual = false>
ADABM_DEVICE void straight_values(const Conv2dParams& p, const LayerValues& v, const int32_t* acc, Betas& betas, int first, Values& values) {
  if (!kUsual) betas.enter(p, v, first);
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const int m = k / 4, i = k / 2 % 2, e = k % 2;
    values[m][i][e] = fmaf(static_cast<float>(acc[4 * (first + m) + 2 * e + i]), v.alphas[e], kUsual ? v.betas[e] : betas.values[m][i][e]);
  }
  if (kUsual) return;
  if (v.activation == ADABM_ACT_RELU) {
#pragma unroll
    for (int k = 0; k < 8; k++) values[k / 4][k / 2 % 2][k % 2] = fmaxf(values[k / 4][k / 2 % 2][k % 2], 0.0f);
  }
  if (kPrelu && v.activation == ADABM_ACT_PRELU) {
    const float slopes[2] = {ptx::load_constant(p.slope + v.output), ptx::load_constant(p.slope + v.output + v.second)};
#pragma unroll
    for (int k = 0; k < 8; k++) values[k / 4][k / 2 % 2][k % 2] = ptx::multiply_negative(values[k / 4][k / 2 % 2][k % 2], slopes[k % 2]);
  }
}

ADABM_DEVICE void units_of_values(const Values& values, const CodeGrid& grid, uint32_t unit_factor, uint32_t (&units)[2]) {
#pragma unroll
  for (int m = 0; m < 2; m++)
    units[m] = unit_pair(code_pair(values[m][0][0], values[m][1][0], grid), code_pair(values[m][0][1], values[m][1][1], grid), unit_factor);
}

// Takes rows first and first + 1 of a strip from sums to features in memory and units of codes. Bit 2 j + i of `written`: the i-th pixel of
// this thread in row j of the strip. `grid` is that of v, in units of kHeldUnit features in usual strips of 16-bit features.
template <Straight kForm, int kGroups, bool kUsual>
ADABM_DEVICE void straight_rows(const Conv2dParams& p, const LayerValues& v, const CodeGrid& grid, FeatureRows<kForm>& to, Betas& betas, int first,
                                const int32_t (&acc)[4 * kGroups], Ahead<kForm, kGroups>& ahead, uint32_t written, uint32_t (&units)[2]) {
  constexpr bool kBiased = kForm == Straight::kInt16 && kUsual;
  Values values;
  straight_values<kForm == Straight::kCodes, kUsual>(p, v, acc, betas, first, values);
  if (kForm != Straight::kCodes && (kUsual || p.residual)) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      float (&two)[2] = values[k / 2][k % 2];
      const uint32_t* words = ahead.row(first + k / 2) + k % 2 * (ahead.kRowWords / 2);
      if constexpr (kBiased)
        two[0] = ptx::float_of_half<0>(words[0]) + two[0], two[1] = ptx::float_of_half<1>(words[0]) + two[1];
      else if constexpr (kForm == Straight::kInt16)
        add_features(words[0], two[0], two[1]);
      else
        two[0] = ptx::float_of(words[0]) + two[0], two[1] = ptx::float_of(words[1]) + two[1];
    }
    if (first + ahead.kRows < kGroups) ahead.template read<2, kUsual>(first + ahead.kRows);
  }
  if (kForm == Straight::kInt16) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
      float& value = values[k / 4][k / 2 % 2][k % 2];
      value = kBiased ? round_biased(value) : round_feature(value);
    }
  }
  if (kForm != Straight::kCodes && (kUsual || p.y)) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float (&two)[2] = values[k / 2][k % 2];
      if ((kUsual && !cut_columns(kGroups)) || (written >> (kUsual ? k % 2 : 2 * first + k) & 1)) {
        if (kForm == Straight::kInt16)
          ptx::store_global(reinterpret_cast<uint32_t*>(to.at(k % 2)), kBiased ? pack_biased(two[0], two[1]) : pack_features(two[0], two[1]));
        else
          ptx::store_global(reinterpret_cast<ptx::Words2*>(to.at(k % 2)), ptx::Words2{{ptx::bits_of(two[0]), ptx::bits_of(two[1])}});
      }
      if (k % 2) to.next();
    }
  }
  if (kForm == Straight::kInt16) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
      float& value = values[k / 4][k / 2 % 2][k % 2];
      value = kBiased ? held_value(value) : stored_value(value);
    }
  }
  if (kForm == Straight::kCodes || kUsual || v.codes == Codes::kOrdinary) {
    units_of_values(values, grid, v.unit_factor, units);
  } else if (v.codes == Codes::kShrunk) {  // with products of its own, as a branch around few instructions becomes their predicate
#pragma unroll
    for (int k = 0; k < 8; k++) values[k / 4][k / 2 % 2][k % 2] *= kShrink;
    units_of_values(values, grid, v.unit_factor, units);
  }
}

// Returns whether a strip is of the usual kind, in the forms with features: it is whole (see Ahead), none of its pixels lies along the image's
// border, there are a residual, features, ordinary codes and no activation, and 16-bit features may be bounded after their codes are made.
template <Straight kForm, int kGroups>
ADABM_DEVICE bool is_usual(const Conv2dParams& p, const LayerValues& v, const StripPixels& s) {
  const bool whole = !s.border && s.rows == kGroups && (cut_columns(kGroups) || s.columns == kStripColumns),
             unbounded = kForm != Straight::kInt16 || codes_need_no_clamp(v.grid);
  return kForm != Straight::kCodes &&
         !ptx::any_lane(!(whole && unbounded && p.residual && p.y && v.codes == Codes::kOrdinary && p.activation == ADABM_ACT_NONE));
}

// Takes all rows of a strip; their units are staged where there are codes. kUsual: see is_usual. That kind takes no branches.
template <Straight kForm, int kGroups, bool kUsual>
ADABM_DEVICE void straight_sums(const Conv2dParams& p, const LayerValues& v, const StripPixels& s, const int32_t (&acc)[4 * kGroups],
                                Ahead<kForm, kGroups>& ahead, uint32_t thread, uint32_t staged) {
  const int in_strip = thread % 4 * 2;
  FeatureRows<kForm> to(p.y, ahead.place);
  const uint32_t columns = (in_strip < s.columns ? 0x55555555u : 0) | (in_strip + 1 < s.columns ? 0xaaaaaaaau : 0);
  const uint32_t written = columns & ((2ull << (2 * s.rows - 1)) - 1);
  Betas betas(p, v, s.border, s.row, s.column + in_strip);
  CodeGrid grid = v.grid;
  if (kForm == Straight::kInt16 && kUsual) grid.scale *= kHeldUnit;
  const uint32_t row = staged + thread / 32 * kRowBytes;
#pragma unroll
  for (int first = 0; first < kGroups; first += 4) {
    uint32_t units[2][2] = {};
    straight_rows<kForm, kGroups, kUsual>(p, v, grid, to, betas, first, acc, ahead, written, units[0]);
    if (first + 2 < kGroups) straight_rows<kForm, kGroups, kUsual>(p, v, grid, to, betas, first + 2, acc, ahead, written, units[1]);
    if (kForm != Straight::kCodes && !kUsual && !p.y_q) continue;
    const uint32_t at = row + first * kStripColumns * kStagedPitch;
    if (first + 2 < kGroups)
      stage_units<4>(thread, at, kStripColumns * kStagedPitch, kStagedPitch, {units[0][0], units[0][1], units[1][0], units[1][1]});
    else
      stage_units<2>(thread, at, kStripColumns * kStagedPitch, kStagedPitch, units[0]);
  }
}

// Starts to read the residual of the strip whose products are being made.
template <Straight kForm, int kGroups>
ADABM_DEVICE void read_ahead(const Conv2dParams& p, const StripPixels& s, const OutputTile& outputs, int image, uint32_t thread, Ahead<kForm, kGroups>& ahead) {
  if (kForm == Straight::kCodes) return;
  ahead.place = FeaturePlace<kForm>(p, s, outputs, image, thread);
  if (!p.residual) return;
  ahead.next = FeatureRows<kForm>(p.residual, ahead.place);
  constexpr int kRows = Ahead<kForm, kGroups>::kRows;
  if (ptx::any_lane(s.rows < kGroups || (!cut_columns(kGroups) && s.columns < kStripColumns)))
    ahead.template read<kRows, false>(0);
  else
    ahead.template read<kRows, true>(0);
}

// Computes the results of one strip in the order of docs/numerics.md. `staged`, 80 bytes a pixel, and the named barrier `barrier` belong to
// this warpgroup. ahead: from read_ahead.
template <Straight kForm, int kGroups>
ADABM_DEVICE void straight_epilogue(const Conv2dParams& p, const LayerValues& v, const StripPixels& s, const OutputTile& outputs, int image,
                                    const int32_t (&acc)[4 * kGroups], Ahead<kForm, kGroups>& ahead, uint32_t thread, uint32_t staged, int barrier) {
  if (is_usual<kForm, kGroups>(p, v, s))
    straight_sums<kForm, kGroups, kForm != Straight::kCodes>(p, v, s, acc, ahead, thread, staged);
  else
    straight_sums<kForm, kGroups, false>(p, v, s, acc, ahead, thread, staged);
  if (!p.y_q) return;
  ptx::sync_threads(barrier, kGroupThreads);
  if (v.unit_factor == 1u << 8)
    store_units<kForm, 8, kGroups>(p, s, outputs, image, thread, staged);
  else if (v.unit_factor == 1u << 4)
    store_units<kForm, 4, kGroups>(p, s, outputs, image, thread, staged);
  else
    store_units<kForm, 2, kGroups>(p, s, outputs, image, thread, staged);
  ptx::sync_threads(barrier, kGroupThreads);  // before the next strip is staged at the same place
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
