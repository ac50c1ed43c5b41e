// What one instruction set provides. Declarations only: the files beside this one are compiled with different instruction
// sets, and an inline function shared between them could be linked in from the wrong one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adabm {

constexpr int kPanel = 16;      // outputs per panel of packed weights
constexpr int kMaxPanels = 4;   // panels per product block
constexpr int kMaxPixels = 18;  // pixels (or tiles) per product block
constexpr int kMaxVectors = 24; // pixels times panels of a product block: its accumulators stay in registers
constexpr int kMinTileRows = 2;    // output rows of a tile on bytes, F(2, 3) or F(3, 3) along the rows
constexpr int kMaxByteRows = 3;
constexpr int kMaxRowTaps = kMaxByteRows + 2;
constexpr int kMaxTileOutputs = 4; // output rows or columns of any tile
constexpr int kMaxTileKernel = 5;  // pixels a side
constexpr int kMaxTaps = kMaxTileOutputs + 2;  // F(2, 5) has as many
constexpr int kCubicTaps = 5;      // of each phase of an interpolation, at most 4 of them other than 0
constexpr int kLinearTaps = 3;
constexpr int kMaxDepthwiseKernel = 15;  // pixels a side
constexpr int kMaxParts = 4;       // bytes whose sum is a transformed weight

// acc[pixel][panel * 16 + lane] = start[panel * 16 + lane] + SUM over taps and channels of x * w, for `pixels` x `panels` * 16
// outputs.
struct ProductArgs {
  const uint8_t* x;
  const ptrdiff_t* tap_offset;  // [taps], bytes from x
  int taps;
  int quads;                  // channels / 4
  ptrdiff_t pixel_stride;     // bytes from one pixel to the next
  const int8_t* w;            // [taps][quads][panels][16][4]
  int pixels, panels;
  bool eight_bits;            // codes above 127 occur
  int depth;                  // quads whose products of two channels sum up within 16 bits, see PackedHeader; 0: not even one
  const int32_t* start;       // [panels * 16], 64-byte aligned, or null for 0
  int32_t* acc;               // [pixels][panels * 16], 64-byte aligned
};

// Products of a convolution in which every output has one channel: acc[pixel][lane] = SUM over kernel rows, columns and parts of
// code * w, each lane on its own. Tap s of pixel m is on column first_column + m * pixel_step + s * column_step of the rows, and 0
// where there is no such column; panels * 16 codes of each are read. With `below` the sums of the row below come with them, whose
// kernel is one row further down: row_quads is then 1, and the fourth row of each quad of weights is 0.
struct DepthwiseArgs {
  const uint8_t* const* rows;  // [row_quads * 4]: the first lane's code in column 0 of each
  ptrdiff_t column_bytes;      // from one column to the next
  int first_column, width;     // columns 0..width - 1 exist
  int pixel_step, column_step;
  int row_quads, columns;      // of the kernel
  int parts;                   // of a weight, whose sum it is
  const int8_t* w;             // [part][column][row quad][panels][16][4 rows]
  int pixels, panels;
  bool eight_bits;             // codes above 127 occur
  int depth;                   // quads of rows whose products of two rows sum up within 16 bits, as that of ProductArgs
  int32_t* acc;                // [pixels][panels * 16], 64-byte aligned
  int32_t* below;              // the same, or null
};

// How features lie in memory: float32, or int16 in units of 2^-fraction.
struct FeatureFormat {
  bool int16;
  float per_one, step;  // of int16: 2^fraction and 2^-fraction
};

// The epilogue of adabm_conv2d_args for one product block. All per-output arrays start at the block's first output.
struct EpilogueArgs {
  const int32_t* acc;
  const int32_t* box;         // [pixels] SUM of codes under the kernel, or null
  int pixels, panels;
  int lanes;                  // outputs that exist, at most panels * 16
  const float* alpha;
  const float* const* beta;   // [pixels]
  int activation;
  const float* slope;
  FeatureFormat features;     // of residual and y; where int16, v is what they hold of it even if both are null
  const void* residual;       // null, or addressed as y
  void* y;                    // of the first pixel; null where not wanted
  uint8_t* y_q;
  int32_t* y_acc;
  ptrdiff_t y_stride, q_stride;    // elements from one pixel to the next
  const int32_t* y_lane;      // [lanes] element of each output relative to its pixel; those of a panel are adjacent
  const int32_t* q_lane;
  bool together;              // those of all the block's panels are adjacent
  float scale, offset, top;   // grid of the output codes
};

struct QuantizeArgs {
  FeatureFormat features;  // of x
  const void* x;
  ptrdiff_t stride_w, stride_c;
  const float* shift;  // null with int16
  int width, channels, padded_channels, y_stride;
  float scale, offset, top;
  uint8_t* y_q;
};

// Products of tiles F(rows, 3) along the rows in one column tap, already transformed back along the rows:
// sums[output row][tile][panel * 16 + lane]. The outer row taps come last: they serve one output row each, so the sums of the
// inner ones are combined first and the outer ones accumulate on top.
struct RowProductArgs {
  int rows;                           // 2 or 3
  const uint8_t* x;                   // [row tap][tile][channel], of the first tile
  ptrdiff_t tap_stride, tile_stride;  // bytes
  int quads;
  const int8_t* w;                    // [row tap][part][quads][panels][16][4]: a tap's weight is the sum of its parts
  int parts[kMaxRowTaps];             // of each row tap: the first two have as many, and so have the last two
  int tiles, panels;
  bool eight_bits;
  int depth[kMaxRowTaps];             // of each row tap, as that of ProductArgs
  const int32_t* start;               // [rows][start_stride], of the block's first output, 64-byte aligned
  ptrdiff_t start_stride;
  int32_t* sums;
  ptrdiff_t row_stride;               // of sums
};

// The same for the tiles of words, F(4, 3) x F(4, 3) and F(2, 5) x F(2, 5), whose operands have 16 bits: `quads` counts pairs of
// channels, and w is int16 [row tap][quads][panels][16][2]; sums[output row] carry the factors of transform_word_sums. Nothing is
// shifted or split: `start`, `depth`, `eight_bits` and `parts` are not read.

// Codes in the tiles F(rows, 3) x F(outputs, 3): out[column tap][row tap][tile][channel], a plane for each tap, shifted into
// unsigned bytes; with 1 output a tile is one column and has one column tap. Tile t begins at column t * outputs of x; all codes
// under the tiles exist.
struct TransformArgs {
  int rows, outputs;
  const uint8_t* x;
  ptrdiff_t row_stride;  // bytes
  int tiles, pixel_bytes;
  ptrdiff_t plane;       // bytes from one tap to the next in `out`
  uint32_t shift[kMaxTaps][kMaxRowTaps];  // the byte four times over
  // The largest code, four times over, where tiles also read codes around a region: those are arbitrary, and a larger one would spoil
  // the outputs inside that share its tile, as transformed bytes wrap. 0 where every code is one.
  uint32_t mask;
  uint8_t* out;
};

// For a tile of words `out` holds int16 and nothing is shifted: `rows` and `shift` are not read; `outputs` are those of a row, 4
// or 2.

// Accumulators from products[tap][tile][panels * 16], then their epilogue. e.acc is scratch for tiles * outputs pixels, of
// which e.pixels exist. outputs == 1: the products are the accumulators.
struct UntileArgs {
  int outputs, tiles, panels;
  const int32_t* products;
  int32_t* acc;
  bool words;  // of a tile on words, whose products of each row carry a factor of their own; kernels of 5x5 where outputs is 2
  int row;     // of that tile
};

// The last step of kn2row: acc[pixel][output] = SUM over columns s of from[pixel + s][s * outputs + output], from pixels `pitch`
// apart to ones of whole panels. `from` can be read, and `acc` written, to the end of a panel beyond the last.
struct GatherArgs {
  const int32_t* from;
  int pitch, columns, outputs, pixels;
  bool words;  // of a row of the tile on words, `row`, whose sums carry a factor
  int row;
  int32_t* acc;
};

// One tile of adabm_interpolate_args. x: planes [channels][rows + 4] of rows x_pitch apart, two pixels before the tile on. shares:
// [rows + 2] likewise, one pixel before it on, or null where all are 1. enlarged, enlarged_shares: scratch, rows `pitch` apart.
// Vectors may read and write to the end of one beyond the last float of a row.
struct InterpolateArgs {
  int rows, columns, channels, scale, element;
  const float* x;
  const float* shares;
  ptrdiff_t x_pitch;
  const float* cubic;   // [scale][kCubicTaps]
  const float* linear;  // [scale][kLinearTaps]
  float* enlarged;
  float* enlarged_shares;
  ptrdiff_t pitch;
  void* y;  // of `element` bytes each
  ptrdiff_t y_stride;
  int y_pitch;
};

// Tables of these are filled by name, in the order in which the fields stand here.
struct Kernels {
  const char* name;
  int pixels[kMaxPanels + 1];  // pixels of a full block of product, by its number of panels; [0] unused
  int tiles[kMaxByteRows + 1 - kMinTileRows][kMaxPanels + 1];  // tiles of a full block of row_product with 2 and 3 rows, likewise
  // Multiplies and adds in registers alone; returns how many times in a round. Null where there is nothing to measure.
  int64_t (*peak)(int64_t rounds);
  void (*product)(const ProductArgs&);
  void (*depthwise)(const DepthwiseArgs&);
  void (*row_product)(const RowProductArgs&);
  // sums[j] = SUM of the bytes of pixel j.
  void (*pixel_sums)(const uint8_t* row, int width, int pixel_bytes, int32_t* sums);
  void (*gather_columns)(const GatherArgs&);
  // into[j] += SUM from[j .. j + taps - 1]; both have room for `count` rounded up to kPanel.
  void (*slide)(const int32_t* from, int taps, int count, int32_t* into);
  void (*quantize_row)(const QuantizeArgs&);
  void (*transform)(const TransformArgs&);
  void (*untile_epilogue)(const UntileArgs&, const EpilogueArgs&);
  // `depthwise` and the epilogue of its row, and of the one below where there is one, without sums in memory: acc and below of the
  // first and acc of the others are not read. Returns false, and does nothing, where it is not for such arguments. May be null.
  bool (*depthwise_epilogue)(const DepthwiseArgs&, const EpilogueArgs& row, const EpilogueArgs* below);
  // Of the tiles on words; at most kMaxPixels tiles at a time.
  void (*word_transform)(const TransformArgs&);
  // Along the rows alone: out[row tap][pixel][three][channel], the windows of `threes` begin 3 rows apart. `outputs` is not read.
  void (*word_transform_rows)(const TransformArgs&, int threes);
  void (*word_row_product)(const RowProductArgs&);
  void (*interpolate_tile)(const InterpolateArgs&);
  // Around the products of a band of rows, on its thread; null where there is nothing to do.
  void (*enter)();
  void (*leave)();
};

// Null where the compiler at build time could not make them.
const Kernels* kernels_scalar();
const Kernels* kernels_neon();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_amx();

}  // namespace adabm
