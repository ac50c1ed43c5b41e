// Portable kernels: the twin against which every other instruction set is tested, and the kernels for processors without one of these sets.
//
// It is written to be read beside the vector forms: one output at a time, in plain loops over taps, channels and outputs. The
// results are equal to the last bit. Sums of integers do not depend on their order; the order of all float operations of the epilogue is
// part of the contract (docs/numerics.md).
#include "adabm/adabm.h"
#include "adabm/quant_math.h"
#include "cpu/isa/kernels.h"

namespace adabm {
namespace {

void product(const ProductArgs& a) {
  const int outputs = a.panels * kPanel;
  for (int m = 0; m < a.pixels; m++) {
    for (int o = 0; o < outputs; o++) a.acc[m * outputs + o] = a.start ? a.start[o] : 0;
    for (int p = 0; p < a.panels; p++) {
      int32_t* acc = a.acc + m * outputs + p * kPanel;
      const int8_t* w = a.w + p * 64;
      for (int t = 0; t < a.taps; t++) {
        const uint8_t* x = a.x + a.tap_offset[t] + m * a.pixel_stride;
        for (int k = 0; k < a.quads; k++, x += 4, w += 64 * a.panels)
          for (int o = 0; o < kPanel; o++)
            // Sums may wrap (docs/numerics.md), so they are unsigned: signed overflow is undefined.
            acc[o] = static_cast<int32_t>(static_cast<uint32_t>(acc[o]) +
                                          static_cast<uint32_t>(x[0] * w[o * 4] + x[1] * w[o * 4 + 1] + x[2] * w[o * 4 + 2] + x[3] * w[o * 4 + 3]));
      }
    }
  }
}

#include "cpu/isa/depthwise_portable.inc"
#include "cpu/isa/portable.inc"

void epilogue(const EpilogueArgs& a) {
  for (int m = 0; m < a.pixels; m++) a.features.int16 ? epilogue_lanes<int16_t>(a, m, 0, a.lanes) : epilogue_lanes<float>(a, m, 0, a.lanes);
}

#include "cpu/isa/transforms.inc"
#include "cpu/isa/interpolate.inc"
#include "cpu/isa/words.inc"

void word_product(const WordProductArgs& a) {
  const int outputs = a.panels * kPanel;
  for (int m = 0; m < a.tiles; m++) {
    const int8_t* w = a.w;
    const int16_t* x = reinterpret_cast<const int16_t*>(a.x + m * a.tile_stride);
    uint32_t sums[kPanel * kMaxPanels] = {};
    for (int k = 0; k < a.pairs; k++, x += 2, w += a.w_stride) {
      const int16_t* weights = reinterpret_cast<const int16_t*>(w);
      for (int o = 0; o < outputs; o++) sums[o] += static_cast<uint32_t>(x[0] * weights[o * 2] + x[1] * weights[o * 2 + 1]);
    }
    for (int o = 0; o < outputs; o++) a.acc[m * outputs + o] = static_cast<int32_t>(sums[o]);
  }
}

void untile_epilogue(const UntileArgs& u, const EpilogueArgs& e) {
  untile(u);
  epilogue(e);
}

}  // namespace

const Kernels* kernels_scalar() {
  static const Kernels kernels = {
      .name = "scalar",
      .pixels = {0, 4, 4, 4, 4},
      .tiles = {{0, 4, 4, 4, 4}, {0, 4, 4, 4, 4}},
      .peak = nullptr,
      .product = product,
      .depthwise = depthwise,
      .row_product = row_product_by_taps<product>,
      .pixel_sums = pixel_sums,
      .gather_columns = gather_columns,
      .slide = slide,
      .quantize_row = quantize_row,
      .transform = transform,
      .untile_epilogue = untile_epilogue,
      .depthwise_epilogue = nullptr,
      .word_transform = word_transform,
      .word_transform_rows = word_transform_rows,
      .word_row_product = word_row_product<kMaxPanels, word_product>,
      .interpolate_tile = interpolate_tile,
      .enter = nullptr,
      .leave = nullptr,
  };
  return &kernels;
}

}  // namespace adabm
