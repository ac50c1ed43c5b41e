// Portable kernels: the twin that every other instruction set is tested against, and what runs where there is none.
#include "adabm/adabm.h"
#include "adabm/quant_math.h"
#include "cpu/kernels.h"

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
            acc[o] += x[0] * w[o * 4] + x[1] * w[o * 4 + 1] + x[2] * w[o * 4 + 2] + x[3] * w[o * 4 + 3];
      }
    }
  }
}

void epilogue(const EpilogueArgs& a) {
  for (int m = 0; m < a.pixels; m++) {
    const int32_t* acc = a.acc + m * a.panels * kPanel;
    for (int o = 0; o < a.lanes; o++) {
      // Wraps like the vector forms; the conversion proves that the final sum fits.
      const int32_t sum =
          a.box ? static_cast<int32_t>(2u * static_cast<uint32_t>(acc[o]) + static_cast<uint32_t>(a.box[m])) : acc[o];
      const ptrdiff_t at = m * a.y_stride + a.y_lane[o];
      if (a.y_acc) a.y_acc[at] = sum;
      float v = fmaf(static_cast<float>(sum), a.alpha[o], a.beta[m][o]);
      if (a.activation == ADABM_ACT_RELU) v = v > 0.0f ? v : 0.0f;
      if (a.activation == ADABM_ACT_PRELU) v = v < 0.0f ? a.slope[o] * v : v;
      if (a.residual) v = a.residual[at] + v;
      if (a.y) a.y[at] = v;
      if (a.y_q) a.y_q[m * a.q_stride + a.q_lane[o]] = quantize_value(v, a.scale, a.offset, a.top);
    }
  }
}

void pixel_sums(const uint8_t* row, int width, int pixel_bytes, int32_t* sums) {
  for (int j = 0; j < width; j++, row += pixel_bytes) {
    sums[j] = 0;
    for (int c = 0; c < pixel_bytes; c++) sums[j] += row[c];
  }
}

void quantize_row(const QuantizeArgs& a) {
  for (int i = 0; i < a.width; i++)
    for (int c = 0; c < a.padded_channels; c++) {
      uint8_t code = 0;
      if (c < a.channels) {
        const float x = a.x[i * a.stride_w + c * a.stride_c];
        code = quantize_value(a.shift ? x - a.shift[c] : x, a.scale, a.offset, a.top);
      }
      a.y_q[static_cast<ptrdiff_t>(i) * a.y_stride + c] = code;
    }
}

#include "cpu/transforms.inc"

void untile_epilogue(const UntileArgs& u, const EpilogueArgs& e) {
  untile(u);
  epilogue(e);
}

}  // namespace

const Kernels* kernels_scalar() {
  static const Kernels kernels = {ADABM_ISA_SCALAR,
                                  "scalar",
                                  {0, 4, 4, 4, 4},
                                  {0, 4, 4, 4, 4},
                                  nullptr,
                                  product,
                                  row_product_by_taps<product>,
                                  pixel_sums,
                                  slide,
                                  quantize_row,
                                  transform,
                                  untile_epilogue};
  return &kernels;
}

}  // namespace adabm
