// AVX512-VNNI: vpdpbusd multiplies 64 unsigned codes by 64 signed weights into 16 sums.
//
// There are 32 registers. A block holds up to 24 sums in them, which leaves four for the weights of a step and some for codes: one
// load brings four codes of a pixel 16 times over. Codes are unsigned and weights signed, as the instruction needs them, and it sums its
// four products in 32 bits, so that nothing overflows on the way. Every sum of a block waits only for its own products, and with 24 sums
// the latency of the instruction is hidden.
//
// Tiles on bytes are multiplied by the same instruction, tiles on words by vpdpwssd, which has half as many products.
#include "adabm/adabm.h"
#include "cpu/isa/kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>

namespace adabm {
namespace {

// This is asm because GCC 12 keeps the accumulators in memory with _mm512_dpbusd_epi32, at half the speed.
inline __attribute__((always_inline)) __m512i dot(__m512i acc, __m512i codes, __m512i weights) {
  asm("vpdpbusd %2,%1,%0" : "+v"(acc) : "v"(codes), "v"(weights));
  return acc;
}

inline __attribute__((always_inline)) __m512i dot_words(__m512i acc, __m512i codes, __m512i weights) {
  asm("vpdpwssd %2,%1,%0" : "+v"(acc) : "v"(codes), "v"(weights));
  return acc;
}

inline __attribute__((always_inline)) __m512i broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

#include "cpu/isa/interpolate.inc"
#include "cpu/isa/transforms.inc"

int64_t peak(int64_t rounds) {
  __m512i c[kMaxVectors] = {};
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 24
    for (int v = 0; v < kMaxVectors; v++) asm volatile("vpdpbusd %1,%1,%0" : "+v"(c[v]) : "v"(ones));
  }
  return kMaxVectors * 64;
}

template <int Pixels, int Panels>
void product_block(const ProductArgs& a) {
  __m512i c[Pixels][Panels];
#pragma GCC unroll 24
  for (int m = 0; m < Pixels; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) c[m][p] = a.start ? _mm512_load_si512(a.start + p * kPanel) : _mm512_setzero_si512();
  const ptrdiff_t stride = a.pixel_stride;
  const int8_t* w = a.w;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k++, x += 4, w += 64 * Panels) {
      __m512i weights[Panels];
#pragma GCC unroll 4
      for (int p = 0; p < Panels; p++) weights[p] = _mm512_load_si512(w + p * 64);
#pragma GCC unroll 24
      for (int m = 0; m < Pixels; m++) {
        const __m512i codes = broadcast4(x + m * stride);
#pragma GCC unroll 4
        for (int p = 0; p < Panels; p++) c[m][p] = dot(c[m][p], codes, weights[p]);
      }
    }
  }
#pragma GCC unroll 24
  for (int m = 0; m < Pixels; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) _mm512_store_si512(a.acc + (m * Panels + p) * kPanel, c[m][p]);
}

template <int Panels, int... Pixels>
void product_of(const ProductArgs& a) {
  using Block = void (*)(const ProductArgs&);
  static constexpr Block blocks[] = {product_block<Pixels, Panels>...};
  blocks[a.pixels - 1](a);
}

void product(const ProductArgs& a) {
  switch (a.panels) {
    case 1: return product_of<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>(a);
    case 2: return product_of<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>(a);
    case 3: return product_of<3, 1, 2, 3, 4, 5, 6, 7, 8>(a);
    default: return product_of<4, 1, 2, 3, 4, 5, 6>(a);
  }
}

// Interleaves rows of codes. Unpacking works within 128-bit lanes, so dwords are first put into the order from which it makes four vectors
// of 16 outputs each.
inline __attribute__((always_inline)) void interleave(const uint8_t* const* rows, ptrdiff_t at, int panels, uint8_t* out) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __mmask64 mask = panels == kMaxPanels ? ~0ull : (1ull << panels * kPanel) - 1;
  __m512i r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) r[i] = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(mask, rows[i] + at));
  const __m512i low = _mm512_unpacklo_epi8(r[0], r[1]), low_below = _mm512_unpacklo_epi8(r[2], r[3]);
  const __m512i high = _mm512_unpackhi_epi8(r[0], r[1]), high_below = _mm512_unpackhi_epi8(r[2], r[3]);
  _mm512_store_si512(out, _mm512_unpacklo_epi16(low, low_below));
  if (panels > 1) _mm512_store_si512(out + 64, _mm512_unpackhi_epi16(low, low_below));
  if (panels > 2) _mm512_store_si512(out + 128, _mm512_unpacklo_epi16(high, high_below));
  if (panels > 3) _mm512_store_si512(out + 192, _mm512_unpackhi_epi16(high, high_below));
}

struct Strip;
template <bool Below>
void depthwise_strip(const DepthwiseArgs& a, const Strip& strip);

#include "cpu/isa/depthwise.inc"

// The form for kernels of up to kHeldTaps columns and four rows: the weights of 16 outputs stay in registers, and codes are handed from one
// pixel to the next.
template <bool Below, int Columns>
void depthwise_held(const DepthwiseArgs& a, const Strip& strip) {
  const int outputs = a.panels * kPanel;
  for (int panel = 0; panel < a.panels; panel++) {
    __m512i w[Columns], below[Columns], codes[Columns];
    const uint8_t* x = strip.codes + panel * 64;
#pragma GCC unroll 5
    for (int s = 0; s < Columns; s++) {
      w[s] = _mm512_load_si512(a.w + (s * a.panels + panel) * 64);
      if (Below) below[s] = _mm512_slli_epi32(w[s], 8);
      if (s) codes[s] = _mm512_load_si512(x), x += strip.column;
    }
    int32_t* const acc = a.acc + strip.first * outputs + panel * kPanel;
    int32_t* const acc_below = Below ? a.below + strip.first * outputs + panel * kPanel : nullptr;
    for (int m = 0; m < strip.pixels; m++, x += strip.column) {
#pragma GCC unroll 5
      for (int s = 1; s < Columns; s++) codes[s - 1] = codes[s];
      codes[Columns - 1] = _mm512_load_si512(x);
      __m512i sum = _mm512_setzero_si512(), sum_below = sum;
#pragma GCC unroll 5
      for (int s = 0; s < Columns; s++) {
        sum = dot(sum, codes[s], w[s]);
        if (Below) sum_below = dot(sum_below, codes[s], below[s]);
      }
      _mm512_store_si512(acc + m * outputs, sum);
      if (Below) _mm512_store_si512(acc_below + m * outputs, sum_below);
    }
  }
}

template <bool Below>
void depthwise_strip(const DepthwiseArgs& a, const Strip& strip) {
  if (a.parts == 1 && a.row_quads == 1 && strip.pixel == strip.column) {
    if (a.columns == 3) return depthwise_held<Below, 3>(a, strip);
    if (a.columns == 5) return depthwise_held<Below, 5>(a, strip);
  }
  const int outputs = a.panels * kPanel;
  const ptrdiff_t tap = outputs * 4;
  for (int panel = 0; panel < a.panels; panel++)
    for (int m = 0; m < strip.pixels; m++) {
      const uint8_t* const x = strip.codes + m * strip.pixel + panel * 64;
      const int8_t* w = a.w + panel * 64;
      __m512i sum = _mm512_setzero_si512(), sum_below = sum;
      for (int part = 0; part < a.parts; part++)
        for (int s = 0; s < a.columns; s++)
          for (int q = 0; q < a.row_quads; q++, w += tap) {
            const __m512i codes = _mm512_load_si512(x + s * strip.column + q * tap), weights = _mm512_load_si512(w);
            sum = dot(sum, codes, weights);
            if (Below) sum_below = dot(sum_below, codes, _mm512_slli_epi32(weights, 8));
          }
      const ptrdiff_t at = static_cast<ptrdiff_t>(strip.first + m) * outputs + panel * kPanel;
      _mm512_store_si512(a.acc + at, sum);
      if (Below) _mm512_store_si512(a.below + at, sum_below);
    }
}

// The sums of both inner row taps stay in registers and are combined there (transform_sums<2> of transforms.inc); then the products of the
// outer taps are added. This saves half of the stores of products and all of the transform along the rows.
template <int Tiles, int Panels>
void row_product_block(const RowProductArgs& a) {
  constexpr int kQuad = 64 * Panels;  // bytes of the weights of one quad
  constexpr int kRows = 2;
  __m512i c[Tiles][Panels][kRows];
#pragma GCC unroll 12
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++)
#pragma GCC unroll 2
      for (int i = 0; i < kRows; i++) c[m][p][i] = _mm512_load_si512(a.start + i * a.start_stride + p * kPanel);
  const int8_t* w = a.w;
#pragma GCC unroll 2
  for (int outer = 0; outer < 2; outer++) {
    const int parts = a.parts[outer ? kRows : 0];
    const ptrdiff_t stride = a.tile_stride, tap_stride = a.tap_stride, quads = a.quads, tap = parts * quads * kQuad;
    for (int part = 0; part < parts; part++) {
      const uint8_t* x = a.x + outer * kRows * tap_stride;
      for (ptrdiff_t k = 0; k < quads; k++, x += 4, w += kQuad) {
#pragma GCC unroll 2
        for (int i = 0; i < kRows; i++) {
          __m512i weights[Panels];
#pragma GCC unroll 4
          for (int p = 0; p < Panels; p++) weights[p] = _mm512_load_si512(w + i * tap + p * 64);
#pragma GCC unroll 12
          for (int m = 0; m < Tiles; m++) {
            const __m512i codes = broadcast4(x + i * tap_stride + m * stride);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; p++) c[m][p][i] = dot(c[m][p][i], codes, weights[p]);
          }
        }
      }
    }
    w += tap;
    if (outer) break;
#pragma GCC unroll 12
    for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
      for (int p = 0; p < Panels; p++) {
        const __m512i sum = _mm512_add_epi32(c[m][p][0], c[m][p][1]), difference = _mm512_sub_epi32(c[m][p][0], c[m][p][1]);
        c[m][p][0] = _mm512_srai_epi32(sum, 1), c[m][p][1] = _mm512_srai_epi32(difference, 1);
      }
  }
#pragma GCC unroll 12
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++)
#pragma GCC unroll 2
      for (int i = 0; i < kRows; i++) _mm512_store_si512(a.sums + i * a.row_stride + (m * Panels + p) * kPanel, c[m][p][i]);
}

// Adds the products of `Taps` row taps with equally many parts, one tap after the other in turns, as the products of one tap wait for each
// other. Returns the address behind their weights.
template <int Taps, int Tiles, int Panels>
inline __attribute__((always_inline)) const int8_t* add_row_taps(const RowProductArgs& a, int first_tap, const int8_t* w, __m512i (*const (&c)[Taps])[Panels]) {
  const ptrdiff_t stride = a.tile_stride, tap_stride = a.tap_stride, quads = a.quads, tap = a.parts[first_tap] * quads * 64 * Panels;
  for (int part = 0; part < a.parts[first_tap]; part++) {
    const uint8_t* x = a.x + first_tap * tap_stride;
    for (ptrdiff_t k = 0; k < quads; k++, x += 4, w += 64 * Panels) {
#pragma GCC unroll 2
      for (int i = 0; i < Taps; i++) {
        __m512i weights[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; p++) weights[p] = _mm512_load_si512(w + i * tap + p * 64);
#pragma GCC unroll 8
        for (int m = 0; m < Tiles; m++) {
          const __m512i codes = broadcast4(x + i * tap_stride + m * stride);
#pragma GCC unroll 4
          for (int p = 0; p < Panels; p++) c[i][m][p] = dot(c[i][m][p], codes, weights[p]);
        }
      }
    }
  }
  return w + (Taps - 1) * tap;
}

template <int Tiles, int Panels>
inline __attribute__((always_inline)) void store_row(const RowProductArgs& a, int row, const __m512i (&c)[Tiles][Panels]) {
#pragma GCC unroll 8
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) _mm512_store_si512(a.sums + row * a.row_stride + (m * Panels + p) * kPanel, c[m][p]);
}

// Does the same for tiles of three rows (transform_sums<3>).
template <int Tiles, int Panels>
void row_product_block_of_3(const RowProductArgs& a) {
  __m512i first[Tiles][Panels], middle[Tiles][Panels], last[Tiles][Panels];
#pragma GCC unroll 8
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) {
      const int32_t* const start = a.start + p * kPanel;
      first[m][p] = _mm512_load_si512(start), middle[m][p] = _mm512_load_si512(start + a.start_stride);
      last[m][p] = _mm512_load_si512(start + 2 * a.start_stride);
    }
  const int8_t* w = add_row_taps<2, Tiles, Panels>(a, 0, a.w, {first, middle});
  w = add_row_taps<1, Tiles, Panels>(a, 2, w, {last});
  const __m512i third = _mm512_set1_epi32(static_cast<int>(kThird));
#pragma GCC unroll 8
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) {
      const __m512i m0x3 = _mm512_add_epi32(_mm512_slli_epi32(first[m][p], 1), first[m][p]), m2x2 = _mm512_slli_epi32(last[m][p], 1);
      const __m512i low = _mm512_sub_epi32(_mm512_sub_epi32(last[m][p], middle[m][p]), m0x3);
      const __m512i between = _mm512_add_epi32(_mm512_sub_epi32(middle[m][p], m0x3), m2x2);
      const __m512i high = _mm512_add_epi32(low, _mm512_add_epi32(m2x2, last[m][p]));
      first[m][p] = _mm512_mullo_epi32(low, third);
      middle[m][p] = _mm512_mullo_epi32(_mm512_srai_epi32(between, 1), third);
      last[m][p] = _mm512_mullo_epi32(_mm512_srai_epi32(high, 1), third);
    }
  store_row(a, 1, middle);
  add_row_taps<2, Tiles, Panels>(a, 3, w, {first, last});
#pragma GCC unroll 8
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) first[m][p] = _mm512_srai_epi32(first[m][p], 1);
  store_row(a, 0, first);
  store_row(a, 2, last);
}

template <int Panels, int... Tiles>
void row_product_of(const RowProductArgs& a) {
  using Block = void (*)(const RowProductArgs&);
  static constexpr Block blocks[] = {row_product_block<Tiles, Panels>...};
  blocks[a.tiles - 1](a);
}

template <int Panels, int... Tiles>
void row_product_of_3(const RowProductArgs& a) {
  using Block = void (*)(const RowProductArgs&);
  static constexpr Block blocks[] = {row_product_block_of_3<Tiles, Panels>...};
  blocks[a.tiles - 1](a);
}

void row_product(const RowProductArgs& a) {
  if (a.rows == 3) {
    switch (a.panels) {
      case 1: return row_product_of_3<1, 1, 2, 3, 4, 5, 6, 7, 8>(a);
      case 2: return row_product_of_3<2, 1, 2, 3, 4>(a);
      case 3: return row_product_of_3<3, 1, 2>(a);
      default: return row_product_of_3<4, 1, 2>(a);
    }
  }
  switch (a.panels) {
    case 1: return row_product_of<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>(a);
    case 2: return row_product_of<2, 1, 2, 3, 4, 5, 6>(a);
    case 3: return row_product_of<3, 1, 2, 3, 4>(a);
    default: return row_product_of<4, 1, 2, 3>(a);
  }
}

// Int16 features in registers. Values are clamped first; bounds scaled by a power of two are exact. Then the sum with 1.5 * 2^23 rounds half
// to even and holds the integer in its low bits, and the difference, scaled back, is exact.
struct Fixed {
  __m512 least, most, per_one, step, rounder, back;

  explicit Fixed(const FeatureFormat& format)
      : least(_mm512_set1_ps(-32767 * format.step)), most(_mm512_set1_ps(32767 * format.step)), per_one(_mm512_set1_ps(format.per_one)),
        step(_mm512_set1_ps(format.step)), rounder(_mm512_set1_ps(12582912.0f)), back(_mm512_set1_ps(-12582912.0f * format.step)) {}

  // Returns the integers that stand for v, each in 32 bits; v becomes the values that they hold. max gives its second operand where one is NaN.
  inline __attribute__((always_inline)) __m512i hold(__m512& v) const {
    const __m512 sum = _mm512_fmadd_ps(_mm512_min_ps(_mm512_max_ps(v, least), most), per_one, rounder);
    v = _mm512_fmadd_ps(sum, step, back);
    return _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(rounder));
  }
  // Returns the integers as floats; their products with `step` are the values.
  static inline __attribute__((always_inline)) __m512 load(const int16_t* at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
  }
  static inline __attribute__((always_inline)) __m512 load(const int16_t* at, __mmask16 mask) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, at)));
  }
};

// Feature is the type of residual and y: float or int16_t.
template <bool Box, int Activation, bool Residual, class Feature>
void epilogue_of(const EpilogueArgs& a) {
  constexpr bool kFixed = sizeof(Feature) == sizeof(int16_t);
  const Fixed fixed(a.features);
  const Feature* const residual = static_cast<const Feature*>(a.residual);
  Feature* const y = static_cast<Feature*>(a.y);
  const __m512 scale = _mm512_set1_ps(a.scale), offset = _mm512_set1_ps(a.offset), top = _mm512_set1_ps(a.top);
  for (int p = 0; p < a.panels; p++) {
    const int lanes = a.lanes - p * kPanel < kPanel ? a.lanes - p * kPanel : kPanel;
    const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1);
    const __m512 alpha = _mm512_maskz_loadu_ps(mask, a.alpha + p * kPanel);
    for (int m = 0; m < a.pixels; m++) {
      __m512i sum = _mm512_load_si512(a.acc + (m * a.panels + p) * kPanel);
      if (Box) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 1), _mm512_set1_epi32(a.box[m]));
      __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), alpha, _mm512_maskz_loadu_ps(mask, a.beta[m] + p * kPanel));
      if (Activation == ADABM_ACT_RELU) v = _mm512_max_ps(v, _mm512_setzero_ps());
      if (Activation == ADABM_ACT_PRELU)
        v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, _mm512_maskz_loadu_ps(mask, a.slope + p * kPanel));
      const ptrdiff_t y_at = m * a.y_stride + a.y_lane[p * kPanel];
      if constexpr (kFixed) {
        if (Residual) v = _mm512_fmadd_ps(Fixed::load(residual + y_at, mask), fixed.step, v);
        const __m512i held = fixed.hold(v);
        if (y) _mm256_mask_storeu_epi16(y + y_at, mask, _mm512_cvtepi32_epi16(held));
      } else {
        if (Residual) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, residual + y_at), v);
        if (y) _mm512_mask_storeu_ps(y + y_at, mask, v);
      }
      if (a.y_acc) _mm512_mask_storeu_epi32(a.y_acc + y_at, mask, sum);
      if (a.y_q) {
        __m512 t = _mm512_fmadd_ps(v, scale, offset);
        t = _mm512_min_ps(_mm512_max_ps(t, _mm512_setzero_ps()), top);
        _mm_mask_storeu_epi8(a.y_q + m * a.q_stride + a.q_lane[p * kPanel], mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(t)));
      }
    }
  }
}

template <bool Box, int Activation, class Feature>
void epilogue_residual(const EpilogueArgs& a) {
  a.residual ? epilogue_of<Box, Activation, true, Feature>(a) : epilogue_of<Box, Activation, false, Feature>(a);
}

template <bool Box, class Feature>
void epilogue_activation(const EpilogueArgs& a) {
  switch (a.activation) {
    case ADABM_ACT_RELU: return epilogue_residual<Box, ADABM_ACT_RELU, Feature>(a);
    case ADABM_ACT_PRELU: return epilogue_residual<Box, ADABM_ACT_PRELU, Feature>(a);
    default: return epilogue_residual<Box, ADABM_ACT_NONE, Feature>(a);
  }
}

template <class Feature>
void epilogue_box(const EpilogueArgs& a) {
  a.box ? epilogue_activation<true, Feature>(a) : epilogue_activation<false, Feature>(a);
}

void epilogue(const EpilogueArgs& a) { a.features.int16 ? epilogue_box<int16_t>(a) : epilogue_box<float>(a); }

// Takes four pixels at a time; each is summed into 16 parts, which are then added up for all four together.
void pixel_sums(const uint8_t* row, int width, int pixel_bytes, int32_t* sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int j = 0; j < width; j += 4) {
    __m512i parts[4] = {};
    const int pixels = width - j < 4 ? width - j : 4;
    for (int c = 0; c < pixel_bytes; c += 64) {
      const __mmask64 mask = pixel_bytes - c < 64 ? (1ull << (pixel_bytes - c)) - 1 : ~0ull;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        if (i < pixels) parts[i] = dot(parts[i], _mm512_maskz_loadu_epi8(mask, row + static_cast<ptrdiff_t>(j + i) * pixel_bytes + c), ones);
    }
    const __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(parts[0], parts[1]), _mm512_unpackhi_epi32(parts[0], parts[1]));
    const __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(parts[2], parts[3]), _mm512_unpackhi_epi32(parts[2], parts[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_mask_storeu_epi32(sums + j, static_cast<__mmask8>((1u << pixels) - 1), _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }
}

template <class Feature>
void quantize_row_of(const QuantizeArgs& a) {
  const __m512 scale = _mm512_set1_ps(a.scale), offset = _mm512_set1_ps(a.offset), top = _mm512_set1_ps(a.top);
  const __m512i along =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(static_cast<int>(a.stride_c)));
  for (int i = 0; i < a.width; i++) {
    const Feature* x = static_cast<const Feature*>(a.x) + i * a.stride_w;
    for (int c = 0; c < a.padded_channels; c += kPanel) {
      const int stored = a.padded_channels - c < kPanel ? a.padded_channels - c : kPanel;
      const int left = a.channels - c, lanes = left < 0 ? 0 : left < kPanel ? left : kPanel;
      const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1), store = static_cast<__mmask16>((1u << stored) - 1);
      __m512 v;
      if constexpr (sizeof(Feature) == sizeof(int16_t)) {
        // The instruction set has no gather of 16-bit elements.
        alignas(32) int16_t apart[kPanel] = {};
        for (int o = 0; a.stride_c != 1 && o < lanes; o++) apart[o] = x[(c + o) * a.stride_c];
        v = _mm512_mul_ps(Fixed::load(a.stride_c == 1 ? x + c : apart, mask), _mm512_set1_ps(a.features.step));
      } else {
        v = a.stride_c == 1 ? _mm512_maskz_loadu_ps(mask, x + c) : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, along, x + c * a.stride_c, 4);
      }
      if (a.shift) v = _mm512_sub_ps(v, _mm512_maskz_loadu_ps(mask, a.shift + c));
      const __m512 t = _mm512_min_ps(_mm512_max_ps(_mm512_fmadd_ps(v, scale, offset), _mm512_setzero_ps()), top);
      const __m512i codes = _mm512_maskz_cvtps_epi32(mask, t);
      _mm_mask_storeu_epi8(a.y_q + static_cast<ptrdiff_t>(i) * a.y_stride + c, store, _mm512_cvtepi32_epi8(codes));
    }
  }
}

void quantize_row(const QuantizeArgs& a) { a.features.int16 ? quantize_row_of<int16_t>(a) : quantize_row_of<float>(a); }

#include "cpu/isa/words.inc"

constexpr int kWordTiles = 6;  // with four panels these are 24 sums, as in `product`

template <int Tiles, int Panels>
void word_product_block(const WordProductArgs& a) {
  __m512i c[Tiles][Panels];
#pragma GCC unroll 6
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) c[m][p] = _mm512_setzero_si512();
  const ptrdiff_t stride = a.tile_stride;
  const int8_t* w = a.w;
  for (const uint8_t *x = a.x, *const end = x + 4 * static_cast<ptrdiff_t>(a.pairs); x < end; x += 4, w += 64 * Panels) {
    __m512i weights[Panels];
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) weights[p] = _mm512_load_si512(w + p * 64);
#pragma GCC unroll 6
    for (int m = 0; m < Tiles; m++) {
      const __m512i codes = broadcast4(x + m * stride);
#pragma GCC unroll 4
      for (int p = 0; p < Panels; p++) c[m][p] = dot_words(c[m][p], codes, weights[p]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) _mm512_store_si512(a.acc + (m * Panels + p) * kPanel, c[m][p]);
}

template <int Panels, int... Tiles>
void word_product_of(const WordProductArgs& a) {
  using Block = void (*)(const WordProductArgs&);
  static constexpr Block blocks[] = {word_product_block<Tiles, Panels>...};
  WordProductArgs block = a;
  for (int left = a.tiles; left > 0; left -= kWordTiles) {
    blocks[(left < kWordTiles ? left : kWordTiles) - 1](block);
    block.x += kWordTiles * a.tile_stride, block.acc += kWordTiles * Panels * kPanel;
  }
}

void word_product(const WordProductArgs& a) {
  switch (a.panels) {
    case 1: return word_product_of<1, 1, 2, 3, 4, 5, 6>(a);
    case 2: return word_product_of<2, 1, 2, 3, 4, 5, 6>(a);
    case 3: return word_product_of<3, 1, 2, 3, 4, 5, 6>(a);
    default: return word_product_of<4, 1, 2, 3, 4, 5, 6>(a);
  }
}

// Untiling and epilogue in one, without a trip through memory, for the common case: 64 adjacent outputs of every pixel.
template <int Outputs, bool OfWords, int Activation, bool Residual, bool Codes, class Feature>
void full_of(const UntileArgs& u, const EpilogueArgs& e) {
  // Neighbouring pixels share the loads of alpha: the pixels of a tile, or three pixels where the products are the sums.
  constexpr int kPixels = Outputs == 1 ? 3 : Outputs, kTaps = Outputs == 1 ? kPixels : ColumnSums<Outputs, OfWords>::kTaps, kPanels = kMaxPanels;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(Outputs == 1 ? 1 : u.tiles) * kPanels * kPanel;
  const ptrdiff_t step = (Outputs == 1 ? kPixels : 1) * kPanels * kPanel;
  const __m512 scale = _mm512_set1_ps(e.scale), offset = _mm512_set1_ps(e.offset), top = _mm512_set1_ps(e.top);
  // Packing works within 128-bit lanes: these permutations bring the groups of four panels, and of two, back into their order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i order_of_2 = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  // residual and y are cast where they are used: pointers to them would take registers, which are scarce.
  constexpr bool kFixed = sizeof(Feature) == sizeof(int16_t);
  const Fixed fixed(e.features);
  const int32_t* products = u.products;
  for (int first = 0; first < e.pixels; first += kPixels, products += step) {
    // The last pixels may lie beyond the image: they are computed as well, with the data of the last one inside, and not stored.
    const int exist = e.pixels - first < kPixels ? e.pixels - first : kPixels;
    ptrdiff_t pixel[kPixels], at[kPixels];
#pragma GCC unroll 4
    for (int i = 0; i < kPixels; i++) pixel[i] = first + (i < exist ? i : exist - 1), at[i] = pixel[i] * e.y_stride + e.y_lane[0];
    __m512i words[kPixels][kPanels], before[kPixels], held[kPixels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; p++) {
      Words m[kTaps], y[kPixels];
#pragma GCC unroll 8
      for (int j = 0; j < kTaps; j++) m[j] = *reinterpret_cast<const Words*>(products + j * plane + p * kPanel);
      if (Outputs > 1) ColumnSums<Outputs, OfWords>::transform(m, u.row, y);
#pragma GCC unroll 4
      for (int i = 0; Outputs == 1 && i < kPixels; i++) y[i] = m[i];
      if (e.box) {
#pragma GCC unroll 4
        for (int i = 0; i < kPixels; i++) y[i] = y[i] + y[i] + static_cast<uint32_t>(e.box[pixel[i]]);
      }
      const __m512 alpha = _mm512_loadu_ps(e.alpha + p * kPanel);
      __m512 v[kPixels];
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; i++) {
        v[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)y[i]), alpha, _mm512_loadu_ps(e.beta[pixel[i]] + p * kPanel));
        if (Activation == ADABM_ACT_RELU) v[i] = _mm512_max_ps(v[i], _mm512_setzero_ps());
        if (Activation == ADABM_ACT_PRELU)
          v[i] = _mm512_mask_mul_ps(v[i], _mm512_cmp_ps_mask(v[i], _mm512_setzero_ps(), _CMP_LT_OQ), v[i], _mm512_loadu_ps(e.slope + p * kPanel));
        if constexpr (kFixed) {
          if (Residual) v[i] = _mm512_fmadd_ps(Fixed::load(static_cast<const Feature*>(e.residual) + at[i] + p * kPanel), fixed.step, v[i]);
          held[i] = fixed.hold(v[i]);
        } else {
          if (Residual) v[i] = _mm512_add_ps(_mm512_loadu_ps(static_cast<const Feature*>(e.residual) + at[i] + p * kPanel), v[i]);
        }
        // NaN and values below 0 become 0 when they are packed; min gives its second operand where one is NaN.
        if (Codes) words[i][p] = _mm512_cvtps_epi32(_mm512_min_ps(top, _mm512_fmadd_ps(v[i], scale, offset)));
      }
      if (!Codes || e.y) {
#pragma GCC unroll 4
        for (int i = 0; i < kPixels; i++) {
          if constexpr (kFixed) {
            // Two panels are stored together.
            if (p % 2 && i < exist) {
              const __m512i both = _mm512_permutexvar_epi64(order_of_2, _mm512_packs_epi32(before[i], held[i]));
              _mm512_storeu_si512(static_cast<Feature*>(e.y) + at[i] + (p - 1) * kPanel, both);
            }
            before[i] = held[i];
          } else {
            if (i < exist) _mm512_storeu_ps(static_cast<Feature*>(e.y) + at[i] + p * kPanel, v[i]);
          }
        }
      }
    }
    if (Codes) {
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; i++) {
        const __m512i low = _mm512_packs_epi32(words[i][0], words[i][1]), high = _mm512_packs_epi32(words[i][2], words[i][3]);
        if (i < exist) _mm512_storeu_si512(e.y_q + pixel[i] * e.q_stride + e.q_lane[0], _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
      }
    }
  }
}

#include "cpu/isa/untile_epilogue.inc"

// Depthwise convolution and epilogue in one, for kernels of three columns and at most four rows: two panels at a time, whose weights and
// codes of three columns stay in registers. Where only codes are stored ReLU comes last, as a lower bound, the code of 0: every step after
// ReLU rises with its argument.
template <bool Below, int Activation, bool CodesAlone>
void depthwise_fused(const DepthwiseArgs& a, const EpilogueArgs* const (&e)[2]) {
  constexpr int kRows = Below ? 2 : 1, kColumns = 3;
  // By how many columns of its kernel a pixel lies behind the one computed before it; kColumns where the two have none in common. With
  // dilation the neighbours that have some in common lie `turns` pixels apart, so that the pixels are gone through in so many turns. Two
  // rows are computed together only where both steps are equal.
  int slide = 1, turns = 1;
  if (!Below && a.column_step % a.pixel_step == 0) turns = a.column_step / a.pixel_step;
  if (!Below && a.column_step < a.pixel_step) slide = a.pixel_step == 2 * a.column_step ? 2 : kColumns;
  if (!Below && a.column_step > a.pixel_step && a.column_step % a.pixel_step) slide = kColumns;
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i order_of_2 = _mm512_setr_epi32(0, 4, 0, 0, 1, 5, 0, 0, 2, 6, 0, 0, 3, 7, 0, 0);
  const __m512 scale = _mm512_set1_ps(e[0]->scale), offset = _mm512_set1_ps(e[0]->offset), top = _mm512_set1_ps(e[0]->top);
  const __m512i zero_code = _mm512_cvtps_epi32(_mm512_min_ps(top, _mm512_max_ps(offset, _mm512_setzero_ps())));
  const __m512i least = _mm512_set1_epi8(Activation == ADABM_ACT_RELU ? static_cast<char>(_mm_cvtsi128_si32(_mm512_castsi512_si128(zero_code))) : 0);
  for (int panel = 0; panel < a.panels; panel += 2) {
    const int lane = panel * kPanel;
    const uint8_t* const rows[4] = {a.rows[0] + lane, a.rows[1] + lane, a.rows[2] + lane, a.rows[3] + lane};
    __m512i w[kColumns][2], w_below[kColumns][2], codes[kColumns][2];
#pragma GCC unroll 3
    for (int s = 0; s < kColumns; s++)
#pragma GCC unroll 2
      for (int p = 0; p < 2; p++) {
        w[s][p] = _mm512_load_si512(a.w + (s * a.panels + panel + p) * 64);
        w_below[s][p] = _mm512_slli_epi32(w[s][p], 8);
      }
    const auto column = [&](int at, __m512i(&into)[2]) __attribute__((always_inline)) {
      if (at < 0 || at >= a.width) {
        into[0] = into[1] = _mm512_setzero_si512();
        return;
      }
      __m512i r[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + at * a.column_bytes));
        r[i] = _mm512_permutexvar_epi32(order_of_2, _mm512_castsi256_si512(row));
      }
      const __m512i first = _mm512_unpacklo_epi8(r[0], r[1]), second = _mm512_unpacklo_epi8(r[2], r[3]);
      into[0] = _mm512_unpacklo_epi16(first, second), into[1] = _mm512_unpackhi_epi16(first, second);
    };
    const ptrdiff_t y_at = e[0]->y_lane[lane], q_at = e[0]->q_lane[lane];
    for (int turn = 0; turn < turns; turn++) {
      // What a pixel before the first would have left.
      const int first = a.first_column + turn * a.pixel_step;
      if (slide == 1) column(first, codes[1]), column(first + a.column_step, codes[2]);
      if (slide == 2) column(first, codes[2]);
      for (int m = turn; m < a.pixels; m += turns) {
        const int at_column = a.first_column + m * a.pixel_step;
        if (slide == 1) {
#pragma GCC unroll 2
          for (int p = 0; p < 2; p++) codes[0][p] = codes[1][p], codes[1][p] = codes[2][p];
        } else {
          if (slide == 2) {
            codes[0][0] = codes[2][0], codes[0][1] = codes[2][1];
          } else {
            column(at_column, codes[0]);
          }
          column(at_column + a.column_step, codes[1]);
        }
        column(at_column + 2 * a.column_step, codes[2]);
        __m512i values[kRows][2];
#pragma GCC unroll 2
        for (int row = 0; row < kRows; row++)
#pragma GCC unroll 2
          for (int p = 0; p < 2; p++) {
            __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 3
            for (int s = 0; s < kColumns; s++) sum = dot(sum, codes[s][p], row ? w_below[s][p] : w[s][p]);
            __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(e[0]->alpha + lane + p * kPanel),
                                       _mm512_loadu_ps(e[row]->beta[m] + lane + p * kPanel));
            if (Activation == ADABM_ACT_RELU && !CodesAlone) v = _mm512_max_ps(v, _mm512_setzero_ps());
            if (Activation == ADABM_ACT_PRELU)
              v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, _mm512_loadu_ps(e[0]->slope + lane + p * kPanel));
            const ptrdiff_t at = m * e[0]->y_stride + y_at + p * kPanel;
            if (!CodesAlone && e[row]->residual) v = _mm512_add_ps(_mm512_loadu_ps(static_cast<const float*>(e[row]->residual) + at), v);
            if (!CodesAlone && e[row]->y) _mm512_storeu_ps(static_cast<float*>(e[row]->y) + at, v);
            // As in full_of.
            values[row][p] = _mm512_cvtps_epi32(_mm512_min_ps(top, _mm512_fmadd_ps(v, scale, offset)));
          }
        if (!CodesAlone && !e[0]->y_q) continue;
        const __m512i words = _mm512_packs_epi32(values[0][0], values[0][1]), words_below = _mm512_packs_epi32(values[kRows - 1][0], values[kRows - 1][1]);
        __m512i both = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words, words_below));
        if (Activation == ADABM_ACT_RELU && CodesAlone) both = _mm512_max_epu8(both, least);
        const ptrdiff_t at = m * e[0]->q_stride + q_at;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(e[0]->y_q + at), _mm512_castsi512_si256(both));
        if (Below) _mm256_storeu_si256(reinterpret_cast<__m256i*>(e[1]->y_q + at), _mm512_extracti64x4_epi64(both, 1));
      }
    }
  }
}

template <int Activation>
void depthwise_fused_rows(const DepthwiseArgs& a, const EpilogueArgs* const (&e)[2]) {
  const bool rising = e[0]->scale > 0 && e[0]->scale <= 3.4028234e38f;
  const bool codes_alone = e[0]->y_q && !e[0]->y && !e[0]->residual && rising;
  if (e[1])
    codes_alone ? depthwise_fused<true, Activation, true>(a, e) : depthwise_fused<true, Activation, false>(a, e);
  else
    codes_alone ? depthwise_fused<false, Activation, true>(a, e) : depthwise_fused<false, Activation, false>(a, e);
}

bool depthwise_epilogue(const DepthwiseArgs& a, const EpilogueArgs& row, const EpilogueArgs* below) {
  const bool kernel = a.columns == 3 && a.row_quads == 1 && a.parts == 1;
  const bool outputs = a.panels % 2 == 0 && row.lanes == a.panels * kPanel && row.together && !row.y_acc && !row.features.int16;
  if (!kernel || !outputs) return false;
  const EpilogueArgs* const e[2] = {&row, below};
  switch (row.activation) {
    case ADABM_ACT_RELU: depthwise_fused_rows<ADABM_ACT_RELU>(a, e); break;
    case ADABM_ACT_PRELU: depthwise_fused_rows<ADABM_ACT_PRELU>(a, e); break;
    default: depthwise_fused_rows<ADABM_ACT_NONE>(a, e);
  }
  return true;
}

}  // namespace

const Kernels* kernels_avx512vnni() {
  static const Kernels kernels = {
      .name = "avx512vnni",
      .pixels = {0, 16, 12, 8, 6},
      .tiles = {{0, 12, 6, 4, 3}, {0, 8, 4, 2, 2}},
      .peak = peak,
      .product = product,
      .depthwise = depthwise,
      .row_product = row_product,
      .pixel_sums = pixel_sums,
      .gather_columns = gather_columns,
      .slide = slide,
      .quantize_row = quantize_row,
      .transform = transform,
      .untile_epilogue = untile_epilogue,
      .depthwise_epilogue = depthwise_epilogue,
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

#else

namespace adabm {
const Kernels* kernels_avx512vnni() { return nullptr; }
}  // namespace adabm

#endif
