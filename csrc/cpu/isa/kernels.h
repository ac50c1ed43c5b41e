// The kernels that each instruction set provides. This header has declarations only: the files beside it are compiled with different
// instruction sets, and an inline function that they share could be linked in from the wrong one.
//
// The heart is `product`, a block of pixels times a block of outputs whose sums stay in registers:
//
//                 panel 0      panel 1      ...        a panel: 16 outputs, one register of 32-bit sums (two on AVX2)
//     pixel 0   [ 16 sums ]  [ 16 sums ]
//     pixel 1   [ 16 sums ]  [ 16 sums ]               in each step four channels of a pixel, 16 times over in a register,
//       ...                                            meet 64 weights: four channels of 16 outputs
//
// In a step every weight that was loaded serves all pixels of the block, and every code serves all its panels. With 6 pixels and 4
// panels, 24 products take 4 loads of weights and 6 loads of codes. With more pixels or panels the sums would no longer fit the registers
// and would spill to memory: kMaxVectors bounds them, and `Kernels::pixels` says which block is the best for each number of panels.
//
// A tile multiplies the same way: `transform` writes the codes of many tiles tap by tap, each tap is a small matrix product of its
// own (`row_product`), and `untile_epilogue` turns the products of a tile's taps back into pixels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adabm {

constexpr int kPanel = 16;      // outputs per panel of packed weights
constexpr int kMaxPanels = 4;   // panels per product block
constexpr int kMaxPixels = 18;  // pixels (or tiles) per product block
constexpr int kMaxVectors = 24; // pixels times panels of a product block, whose accumulators must stay in registers
constexpr int kMinTileRows = 2;    // fewest output rows of a tile on bytes: F(2, 3) along the rows
constexpr int kMaxByteRows = 3;    // most output rows of a tile on bytes: F(3, 3) along the rows
constexpr int kMaxRowTaps = kMaxByteRows + 2;
constexpr int kMaxTileOutputs = 4; // most output rows or columns of any tile
constexpr int kMaxTileKernel = 5;  // largest side of the kernel of a tile, in pixels
constexpr int kMaxTaps = kMaxTileOutputs + 2;  // both F(4, 3) and F(2, 5) have so many
constexpr int kCubicTaps = 5;      // taps of each phase of cubic interpolation, at most 4 of which are not 0
constexpr int kLinearTaps = 3;     // taps of each phase of linear interpolation
constexpr int kMaxDepthwiseKernel = 15;  // largest side of a depthwise kernel, in pixels
constexpr int kMaxParts = 4;       // most bytes whose sum is one transformed weight

// acc[pixel][panel * 16 + lane] = start[panel * 16 + lane] + SUM over taps and channels of x * w, for `pixels` x `panels` * 16
// outputs.
struct ProductArgs {
  const uint8_t* x;
  const ptrdiff_t* tap_offset;  // [taps]: bytes from x to the first channel of each tap
  int taps;
  int quads;                  // channels / 4
  ptrdiff_t pixel_stride;     // bytes from one pixel to the next
  const int8_t* w;            // [taps][quads][panels][16][4]
  int pixels, panels;
  bool eight_bits;            // true where codes above 127 occur
  int depth;                  // how many quads may be summed in 16 bits (PackedHeader::depth); 0: not even one
  const int32_t* start;       // [panels * 16], 64-byte aligned, or null for 0
  int32_t* acc;               // [pixels][panels * 16], 64-byte aligned
};

// Products of a depthwise convolution: acc[pixel][lane] = SUM over kernel rows, kernel columns and parts of code * w, each lane on its
// own. Tap s of pixel m lies on column first_column + m * pixel_step + s * column_step of the rows, and its code is 0 where there is no
// such column; panels * 16 codes of each column are read. Where `below` is given, it gets the sums of the row of outputs below, whose
// kernel lies one row further down: row_quads is then 1, and the fourth row of each quad of weights is 0.
struct DepthwiseArgs {
  const uint8_t* const* rows;  // [row_quads * 4]: of each row the code of the first lane in column 0
  ptrdiff_t column_bytes;      // bytes from one column to the next
  int first_column, width;     // columns 0..width - 1 exist
  int pixel_step, column_step;
  int row_quads, columns;      // rows of the kernel in fours, and its columns
  int parts;                   // how many bytes have one weight as their sum
  const int8_t* w;             // [part][column][row quad][panels][16][4 rows]
  int pixels, panels;
  bool eight_bits;             // true where codes above 127 occur
  int depth;                   // as in ProductArgs, where rows take the place of channels
  int32_t* acc;                // [pixels][panels * 16], 64-byte aligned
  int32_t* below;              // null, or the sums of the row below, laid out as acc
};

// How features lie in memory: float32, or int16 in units of 2^-fraction.
struct FeatureFormat {
  bool int16;
  float per_one, step;  // 2^fraction and 2^-fraction; read only where int16 is set
};

// The epilogue of adabm_conv2d_args for one product block. All arrays with an element for each output start at the first output of the block.
struct EpilogueArgs {
  const int32_t* acc;
  const int32_t* box;         // null, or [pixels]: SUM of the codes under the kernel of each pixel
  int pixels, panels;
  int lanes;                  // how many outputs exist, at most panels * 16
  const float* alpha;
  const float* const* beta;   // [pixels]: of each pixel the row of beta for its border class
  int activation;
  const float* slope;
  FeatureFormat features;     // format of residual and y; where it is int16, v is rounded to it even if both are null
  const void* residual;       // null, or addressed in the same way as y
  void* y;                    // features of the first pixel; null where they are not wanted, as are y_q and y_acc
  uint8_t* y_q;
  int32_t* y_acc;
  ptrdiff_t y_stride, q_stride;    // elements from one pixel to the next
  const int32_t* y_lane;      // [lanes]: element of each output, counted from the first of its pixel; the outputs of a panel are adjacent
  const int32_t* q_lane;      // the same for codes
  bool together;              // true where the outputs of all panels of the block are adjacent
  float scale, offset, top;   // grid of the output codes, and the highest code
};

// Codes of one row of features, as adabm_quantize_args defines them.
struct QuantizeArgs {
  FeatureFormat features;  // format of x
  const void* x;
  ptrdiff_t stride_w, stride_c;
  const float* shift;  // [channels], or null for 0; always null where x is int16
  int width, channels, padded_channels, y_stride;
  float scale, offset, top;
  uint8_t* y_q;
};

// Products of tiles F(rows, 3) along the rows in one column tap, already transformed back along the rows:
// sums[output row][tile][panel * 16 + lane]. The outer row taps come last: each of them serves one output row, so the sums of the inner
// row taps are combined first and the products of the outer ones are added to them.
struct RowProductArgs {
  int rows;                           // 2 or 3
  const uint8_t* x;                   // [row tap][tile][channel]: transformed codes, from those of the first tile on
  ptrdiff_t tap_stride, tile_stride;  // bytes
  int quads;
  const int8_t* w;                    // [row tap][part][quads][panels][16][4]: the weight of a tap is the sum of its parts
  int parts[kMaxRowTaps];             // parts of each row tap: the first two taps have equally many, and so have the last two
  int tiles, panels;
  bool eight_bits;                    // true where transformed codes above 127 occur
  int depth[kMaxRowTaps];             // depth of each row tap, as in ProductArgs
  const int32_t* start;               // [rows][start_stride], from the first output of the block on, 64-byte aligned
  ptrdiff_t start_stride;
  int32_t* sums;
  ptrdiff_t row_stride;               // elements from one output row of sums to the next
};

// RowProductArgs also serves the tiles on words, F(4, 3) x F(4, 3) and F(2, 5) x F(2, 5), whose operands have 16 bits. There `quads`
// counts pairs of channels, w is int16 [row tap][quads][panels][16][2], and sums[output row] carry the factors of transform_word_sums.
// Nothing is shifted or split: `start`, `depth`, `eight_bits` and `parts` are not read.

// Transforms codes for the tiles F(rows, 3) x F(outputs, 3): out[column tap][row tap][tile][channel] has a plane for each tap, shifted
// into unsigned bytes; with 1 output a tile is one column and has one column tap. Tile t begins at column t * outputs of x; all codes
// under the tiles exist in memory.
struct TransformArgs {
  int rows, outputs;
  const uint8_t* x;
  ptrdiff_t row_stride;  // bytes from one row of x to the next
  int tiles, pixel_bytes;
  ptrdiff_t plane;       // bytes from one tap of `out` to the next
  uint32_t shift[kMaxTaps][kMaxRowTaps];  // of each tap the byte that is added to its codes, four times over
  // The largest code, four times over, where tiles also read the bytes around a region: these are arbitrary, and one above the largest code
  // would spoil the outputs inside the region that share its tile, as transformed bytes wrap. 0 where every byte is a code.
  uint32_t mask;
  uint8_t* out;
};

// For a tile on words `out` holds int16 and nothing is shifted: `rows` and `shift` are not read; `outputs` is 4 for F(4, 3) and 2 for
// F(2, 5).

// Makes accumulators of products[tap][tile][panels * 16]; their epilogue follows. `acc` is scratch for tiles * outputs pixels, of which the
// `pixels` of the epilogue exist. Where outputs is 1 the products are the accumulators.
struct UntileArgs {
  int outputs, tiles, panels;
  const int32_t* products;
  int32_t* acc;
  bool words;  // true for a tile on words, whose products carry a factor that depends on the row; its kernel is 5x5 where outputs is 2
  int row;     // row of that tile
};

// The last step of kn2row: acc[pixel][output] = SUM over columns s of from[pixel + s][s * outputs + output]. Pixels of `from` are `pitch`
// elements apart; pixels of `acc` have whole panels. `from` can be read, and `acc` written, to the end of the panel behind the last one.
struct GatherArgs {
  const int32_t* from;
  int pitch, columns, outputs, pixels;
  bool words;  // true where the sums are those of row `row` of a tile on words, which carry a factor
  int row;
  int32_t* acc;
};

// One tile of adabm_interpolate_args. x: planes [channels][rows + 4], whose rows are x_pitch apart and begin two pixels before the tile.
// shares: one plane [rows + 2], whose rows are x_pitch apart and begin one pixel before the tile; null where all shares are 1. enlarged and
// enlarged_shares: scratch, whose rows are `pitch` apart. A vector may be read and written past the last float of a row.
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
  void* y;  // elements of `element` bytes each
  ptrdiff_t y_stride;
  int y_pitch;
};

// The kernels of one instruction set. Its table is filled by name, in the order in which the fields stand here.
struct Kernels {
  const char* name;
  int pixels[kMaxPanels + 1];  // pixels of a full block of `product`, by its number of panels; [0] is unused
  int tiles[kMaxByteRows + 1 - kMinTileRows][kMaxPanels + 1];  // tiles of a full block of `row_product` with 2 and 3 rows, likewise
  // Multiplies and adds in registers alone for so many rounds; returns the multiply-accumulates of one round. Null where there is nothing
  // to measure.
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
  // Computes `depthwise` and the epilogue of its row, and of the row below where there is one, without sums in memory: `acc` and `below` of
  // DepthwiseArgs and `acc` of EpilogueArgs are not read. Returns false, and does nothing, where it cannot take the arguments. May be null.
  bool (*depthwise_epilogue)(const DepthwiseArgs&, const EpilogueArgs& row, const EpilogueArgs* below);
  // Transforms codes for the tiles on words, at most kMaxPixels tiles at a time.
  void (*word_transform)(const TransformArgs&);
  // Transforms along the rows alone: out[row tap][pixel][three][channel]. There are `threes` windows, which begin 3 rows apart. `outputs` is
  // not read.
  void (*word_transform_rows)(const TransformArgs&, int threes);
  void (*word_row_product)(const RowProductArgs&);
  void (*interpolate_tile)(const InterpolateArgs&);
  // Called before and after the products of a band of rows, on the thread of the band; null where there is nothing to do.
  void (*enter)();
  void (*leave)();
};

// The kernels of each instruction set; null where the compiler could not build them.
const Kernels* kernels_scalar();
const Kernels* kernels_neon();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_amx();

}  // namespace adabm
