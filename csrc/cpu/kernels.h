// What one instruction set provides. Declarations only: the files tile_*.cpp are compiled with different instruction
// sets, and an inline function shared between them could be linked in from the wrong one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adabm {

constexpr int kPanel = 16;      // outputs per panel of packed weights
constexpr int kMaxPanels = 4;   // panels per product block
constexpr int kMaxPixels = 24;  // pixels per product block

// acc[pixel][panel * 16 + lane] = SUM over taps and channels of x * w, for `pixels` x `panels` * 16 outputs.
struct ProductArgs {
  const uint8_t* x;
  const ptrdiff_t* tap_offset;  // [taps], bytes from x
  int taps;
  int quads;                  // channels / 4
  ptrdiff_t pixel_stride;     // bytes from one pixel to the next
  const int8_t* w;            // [taps][quads][16][4] of the first panel
  ptrdiff_t panel_stride;     // bytes from one panel to the next
  int pixels, panels;
  bool eight_bits;            // codes above 127 occur
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
  float scale, offset, top;   // grid of the output codes
};

struct QuantizeArgs {
  const float* x;
  ptrdiff_t stride_w, stride_c;
  const float* shift;
  int width, channels, padded_channels;
  float scale, offset, top;
  uint8_t* y_q;
};

struct Kernels {
  int isa;
  const char* name;
  int pixels[kMaxPanels + 1];  // pixels of a full product block, by its number of panels; [0] unused
  void (*product)(const ProductArgs&);
  void (*epilogue)(const EpilogueArgs&);
  int32_t (*byte_sum)(const uint8_t* bytes, ptrdiff_t count);
  void (*quantize_row)(const QuantizeArgs&);
};

// Null where the compiler at build time could not make them.
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512vnni();

}  // namespace adabm
