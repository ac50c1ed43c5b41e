// ARM NEON with the dot product of ARMv8.2: sdot multiplies signed by signed bytes, so where codes above 127
// occur, q - 128 takes the place of a code q and 128 * SUM w is added. This costs one more product for all pixels of a block together.
#include "adabm/adabm.h"
#include "adabm/quant_math.h"
#include "cpu/isa/kernels.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

namespace adabm {
namespace {

constexpr int kPixels = 4;
constexpr int kVectors = kPanel / 4;

#include "cpu/isa/portable.inc"

int64_t peak(int64_t rounds) {
  int32x4_t c[kPixels * kVectors] = {};
  const int8x16_t one = vdupq_n_s8(1);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 16
    for (int v = 0; v < kPixels * kVectors; v++) {
      int8x16_t codes = one;
      asm volatile("" : "+w"(codes));  // otherwise the compiler multiplies only once
      c[v] = vdotq_s32(c[v], codes, one);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kPixels * kVectors; v++) asm volatile("" : : "w"(c[v]));
  return kPixels * kVectors * 16;
}

inline __attribute__((always_inline)) int8x16_t broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

template <int Pixels, bool EightBits>
void product_block(const ProductArgs& a, int panel) {
  int32x4_t c[Pixels][kVectors], missing[kVectors];  // missing: -128 * SUM w
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) {
    missing[v] = vdupq_n_s32(0);
#pragma GCC unroll 4
    for (int m = 0; m < Pixels; m++) c[m][v] = a.start ? vld1q_s32(a.start + panel * kPanel + v * 4) : vdupq_n_s32(0);
  }
  const int8x16_t half = vdupq_n_s8(-128);
  const int8_t* w = a.w + panel * 64;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k++, x += 4, w += 64 * a.panels) {
      int8x16_t weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        weights[v] = vld1q_s8(w + v * 16);
        if (EightBits) missing[v] = vdotq_s32(missing[v], weights[v], half);
      }
#pragma GCC unroll 4
      for (int m = 0; m < Pixels; m++) {
        int8x16_t codes = broadcast4(x + m * a.pixel_stride);
        if (EightBits) codes = veorq_s8(codes, half);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) c[m][v] = vdotq_s32(c[m][v], weights[v], codes);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Pixels; m++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) vst1q_s32(a.acc + (m * a.panels + panel) * kPanel + v * 4, EightBits ? vsubq_s32(c[m][v], missing[v]) : c[m][v]);
}

template <bool EightBits>
void product_bits(const ProductArgs& a) {
  for (int panel = 0; panel < a.panels; panel++) switch (a.pixels) {
      case 1: product_block<1, EightBits>(a, panel); break;
      case 2: product_block<2, EightBits>(a, panel); break;
      case 3: product_block<3, EightBits>(a, panel); break;
      default: product_block<kPixels, EightBits>(a, panel); break;
    }
}

void product(const ProductArgs& a) { a.eight_bits ? product_bits<true>(a) : product_bits<false>(a); }

// Multiplies words of codes by words of weights, one kernel row after the other: the weights of one row of a quad lie four bytes apart, as
// vld4 reads them.
void depthwise_pixel(const DepthwiseArgs& a, int first_row, int panel, int pixel, int32_t* acc) {
  const int lanes = a.panels * kPanel;
  int32x4_t c[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) c[v] = vdupq_n_s32(0);
  const int8_t* w = a.w + panel * 64;
  for (int part = 0; part < a.parts; part++)
    for (int s = 0; s < a.columns; s++) {
      const int column = a.first_column + pixel * a.pixel_step + s * a.column_step;
      const bool exists = column >= 0 && column < a.width;
      for (int q = 0; q < a.row_quads; q++, w += lanes * 4) {
        if (!exists) continue;
        const int8x16x4_t quad = vld4q_s8(w);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
          if (r < first_row) continue;
          const int8x16_t weights = quad.val[r - first_row];
          const int16x8_t low = vmovl_s8(vget_low_s8(weights)), high = vmovl_s8(vget_high_s8(weights));
          const uint8x16_t codes = vld1q_u8(a.rows[q * 4 + r] + column * a.column_bytes + panel * kPanel);
          const int16x8_t low_codes = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
          const int16x8_t high_codes = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(codes)));
          c[0] = vmlal_s16(c[0], vget_low_s16(low_codes), vget_low_s16(low));
          c[1] = vmlal_s16(c[1], vget_high_s16(low_codes), vget_high_s16(low));
          c[2] = vmlal_s16(c[2], vget_low_s16(high_codes), vget_low_s16(high));
          c[3] = vmlal_s16(c[3], vget_high_s16(high_codes), vget_high_s16(high));
        }
      }
    }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) vst1q_s32(acc + pixel * lanes + panel * kPanel + v * 4, c[v]);
}

void depthwise(const DepthwiseArgs& a) {
  for (int first_row = 0; first_row < (a.below ? 2 : 1); first_row++)
    for (int panel = 0; panel < a.panels; panel++)
      for (int m = 0; m < a.pixels; m++) depthwise_pixel(a, first_row, panel, m, first_row ? a.below : a.acc);
}

// Loads and stores four features. The store of int16 returns the values that it holds.
inline __attribute__((always_inline)) float32x4_t load_features(const FeatureFormat&, const float* at) { return vld1q_f32(at); }
inline __attribute__((always_inline)) float32x4_t load_features(const FeatureFormat& format, const int16_t* at) {
  return vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vld1_s16(at))), format.step);
}
inline __attribute__((always_inline)) float32x4_t store_features(const FeatureFormat&, float32x4_t v, float* at) {
  if (at) vst1q_f32(at, v);
  return v;
}
inline __attribute__((always_inline)) float32x4_t store_features(const FeatureFormat& format, float32x4_t v, int16_t* at) {
  const float32x4_t most = vdupq_n_f32(32767), least = vdupq_n_f32(-32767), t = vmulq_n_f32(v, format.per_one);
  // The comparison turns NaN into the lower bound.
  const int32x4_t held = vcvtnq_s32_f32(vminq_f32(vbslq_f32(vcgtq_f32(t, least), t, least), most));
  if (at) vst1_s16(at, vmovn_s32(held));
  return vmulq_n_f32(vcvtq_f32_s32(held), format.step);
}

// Feature is the type of residual and y: float or int16_t.
template <class Feature>
void epilogue_of(const EpilogueArgs& a) {
  const Feature* const residual = static_cast<const Feature*>(a.residual);
  Feature* const y = static_cast<Feature*>(a.y);
  const float32x4_t zero = vdupq_n_f32(0), scale = vdupq_n_f32(a.scale), offset = vdupq_n_f32(a.offset), top = vdupq_n_f32(a.top);
  const int whole = a.lanes / 4 * 4;
  for (int m = 0; m < a.pixels; m++) {
    for (int o = 0; o < whole; o += 4) {
      int32x4_t sum = vld1q_s32(a.acc + m * a.panels * kPanel + o);
      if (a.box) sum = vaddq_s32(vshlq_n_s32(sum, 1), vdupq_n_s32(a.box[m]));
      const ptrdiff_t at = m * a.y_stride + a.y_lane[o];
      if (a.y_acc) vst1q_s32(a.y_acc + at, sum);
      float32x4_t v = vfmaq_f32(vld1q_f32(a.beta[m] + o), vcvtq_f32_s32(sum), vld1q_f32(a.alpha + o));
      if (a.activation == ADABM_ACT_RELU) v = vbslq_f32(vcgtq_f32(v, zero), v, zero);
      if (a.activation == ADABM_ACT_PRELU) v = vbslq_f32(vcltq_f32(v, zero), vmulq_f32(vld1q_f32(a.slope + o), v), v);
      if (residual) v = vaddq_f32(load_features(a.features, residual + at), v);
      v = store_features(a.features, v, y ? y + at : nullptr);
      if (a.y_q) {
        float32x4_t t = vfmaq_f32(offset, v, scale);
        t = vbslq_f32(vcgtq_f32(t, zero), t, zero);  // also turns NaN into 0
        const uint16x4_t words = vmovn_u32(vcvtnq_u32_f32(vminq_f32(t, top)));
        const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
        __builtin_memcpy(a.y_q + m * a.q_stride + a.q_lane[o], &four, 4);
      }
    }
    epilogue_lanes<Feature>(a, m, whole, a.lanes);
  }
}

void epilogue(const EpilogueArgs& a) { a.features.int16 ? epilogue_of<int16_t>(a) : epilogue_of<float>(a); }

#include "cpu/isa/transforms.inc"
#include "cpu/isa/interpolate.inc"
#include "cpu/isa/words.inc"

// Words have no dot product: each channel of a pair is multiplied by the lane that holds it.
template <int Tiles>
void word_product_block(const WordProductArgs& a) {
  int32x4_t c[Tiles][kVectors] = {};
  const int8_t* w = a.w;
  const uint8_t* x = a.x;
  for (int k = 0; k < a.pairs; k++, x += 4, w += a.w_stride) {
    int16x4_t codes[Tiles];
#pragma GCC unroll 4
    for (int m = 0; m < Tiles; m++) {
      int32_t pair;
      __builtin_memcpy(&pair, x + m * a.tile_stride, 4);
      codes[m] = vreinterpret_s16_s32(vdup_n_s32(pair));
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      const int16x4x2_t weights = vld2_s16(reinterpret_cast<const int16_t*>(w) + v * 8);
#pragma GCC unroll 4
      for (int m = 0; m < Tiles; m++) c[m][v] = vmlal_lane_s16(vmlal_lane_s16(c[m][v], weights.val[0], codes[m], 0), weights.val[1], codes[m], 1);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) vst1q_s32(a.acc + m * kPanel + v * 4, c[m][v]);
}

void word_product(const WordProductArgs& a) {
  WordProductArgs block = a;
  for (int left = a.tiles; left > 0; left -= kPixels) {
    switch (left) {
      case 1: word_product_block<1>(block); break;
      case 2: word_product_block<2>(block); break;
      case 3: word_product_block<3>(block); break;
      default: word_product_block<kPixels>(block); break;
    }
    block.x += kPixels * a.tile_stride, block.acc += kPixels * kPanel;
  }
}

void untile_epilogue(const UntileArgs& u, const EpilogueArgs& e) {
  untile(u);
  epilogue(e);
}

}  // namespace

const Kernels* kernels_neon() {
  static const Kernels kernels = {
      .name = "neon",
      .pixels = {0, kPixels, kPixels, kPixels, kPixels},
      .tiles = {{0, kPixels, kPixels, kPixels, kPixels}, {0, kPixels, kPixels, kPixels, kPixels}},
      .peak = peak,
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
      .word_row_product = word_row_product<1, word_product>,
      .interpolate_tile = interpolate_tile,
      .enter = nullptr,
      .leave = nullptr,
  };
  return &kernels;
}

}  // namespace adabm

#else

namespace adabm {
const Kernels* kernels_neon() { return nullptr; }
}  // namespace adabm

#endif
