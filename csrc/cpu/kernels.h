// What one instruction set provides. Declarations only: the files tile_*.cpp are compiled with different instruction
// sets, and an inline function shared between them could be linked in from the wrong one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adabm {

constexpr int kPanel = 16;      // outputs per panel of packed weights
constexpr int kMaxPanels = 4;   // panels per product block
constexpr int kMaxPixels = 16;  // pixels (or tiles) per product block
constexpr int kMaxVectors = 24; // pixels times panels of a product block: its accumulators stay in registers
constexpr int kMaxTileOutputs = 4;
constexpr int kMaxTaps = kMaxTileOutputs + 2;

// acc[pixel][panel * 16 + lane] = start[panel * 16 + lane] + SUM over taps and channels of x * w, for `pixels` x `panels` * 16 outputs.
struct ProductArgs {
  const uint8_t* x;
  const ptrdiff_t* tap_offset;  // [taps], bytes from x
  int taps;
  int quads;                  // channels / 4
  ptrdiff_t pixel_stride;     // bytes from one pixel to the next
  const int8_t* w;            // [taps][quads][panels][16][4]
  int pixels, panels;
  bool eight_bits;            // codes above 127 occur
  const int32_t* start;       // [panels * 16], 64-byte aligned, or null for 0
  int32_t* acc;               // [pixels][panels * 16], 64-byte aligned
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
  const float* residual;      // null, or addressed as y
  float* y;                   // of the first pixel; null where not wanted
  uint8_t* y_q;
  int32_t* y_acc;
  ptrdiff_t y_stride, q_stride;    // elements from one pixel to the next
  const int32_t* y_lane;      // [lanes] element of each output relative to its pixel
  const int32_t* q_lane;
  bool contiguous;            // every panel's outputs are adjacent in memory
  bool together;              // and so are those of the block's panels
  float scale, offset, top;   // grid of the output codes
};

struct QuantizeArgs {
  const float* x;
  ptrdiff_t stride_w, stride_c;
  const float* shift;
  int width, channels, padded_channels, y_stride;
  float scale, offset, top;
  uint8_t* y_q;
};

// One row of codes in the columns of the tile F(outputs, 3): out[tap][tile][channel], shifted into unsigned bytes.
struct TransformArgs {
  int outputs;          // 2, 3 or 4
  const uint8_t* row;   // [width][pixel_bytes]
  const uint8_t* zeros; // [pixel_bytes]: what lies outside the image
  int width, tiles, pixel_bytes;
  uint8_t shift[kMaxTaps];
  uint8_t* out;
};

// Accumulators from products[tap][tile][panels * 16], then their epilogue. e.acc is scratch for tiles * outputs pixels, of
// which e.pixels exist. outputs == 1: the products are the accumulators.
struct UntileArgs {
  int outputs, tiles, panels;
  const int32_t* products;
  int32_t* acc;
};

struct Kernels {
  int isa;
  const char* name;
  int pixels[kMaxPanels + 1];  // pixels of a full product block, by its number of panels; [0] unused
  void (*product)(const ProductArgs&);
  int32_t (*byte_sum)(const uint8_t* bytes, ptrdiff_t count);
  void (*quantize_row)(const QuantizeArgs&);
  void (*transform_row)(const TransformArgs&);
  void (*untile_epilogue)(const UntileArgs&, const EpilogueArgs&);
};

// Null where the compiler at build time could not make them.
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512vnni();

}  // namespace adabm
