// AVX512-VNNI: vpdpbusd multiplies 64 unsigned codes by 64 signed weights into 16 sums.
#include "adabm/adabm.h"
#include "cpu/kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>

namespace adabm {
namespace {

// In asm, since GCC 12 keeps the accumulators in memory when it is fed _mm512_dpbusd_epi32 (half the speed).
inline __attribute__((always_inline)) __m512i dot(__m512i acc, __m512i codes, __m512i weights) {
  asm("vpdpbusd %2,%1,%0" : "+v"(acc) : "v"(codes), "v"(weights));
  return acc;
}

inline __attribute__((always_inline)) __m512i broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
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

template <bool Box, int Activation, bool Residual>
void epilogue_of(const EpilogueArgs& a) {
  const __m512 scale = _mm512_set1_ps(a.scale), offset = _mm512_set1_ps(a.offset), top = _mm512_set1_ps(a.top);
  for (int p = 0; p < a.panels; p++) {
    const int lanes = a.lanes - p * kPanel < kPanel ? a.lanes - p * kPanel : kPanel;
    const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1);
    const __m512 alpha = _mm512_maskz_loadu_ps(mask, a.alpha + p * kPanel);
    const __m512i y_lane = _mm512_maskz_loadu_epi32(mask, a.y_lane + p * kPanel);
    for (int m = 0; m < a.pixels; m++) {
      __m512i sum = _mm512_load_si512(a.acc + (m * a.panels + p) * kPanel);
      if (Box) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 1), _mm512_set1_epi32(a.box[m]));
      __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), alpha, _mm512_maskz_loadu_ps(mask, a.beta[m] + p * kPanel));
      if (Activation == ADABM_ACT_RELU) v = _mm512_max_ps(v, _mm512_setzero_ps());
      if (Activation == ADABM_ACT_PRELU)
        v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v,
                               _mm512_maskz_loadu_ps(mask, a.slope + p * kPanel));
      const ptrdiff_t y_at = m * a.y_stride + a.y_lane[p * kPanel];
      if (a.contiguous) {
        if (Residual) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, a.residual + y_at), v);
        if (a.y) _mm512_mask_storeu_ps(a.y + y_at, mask, v);
        if (a.y_acc) _mm512_mask_storeu_epi32(a.y_acc + y_at, mask, sum);
      } else {
        if (Residual)
          v = _mm512_add_ps(_mm512_mask_i32gather_ps(v, mask, y_lane, a.residual + m * a.y_stride, 4), v);
        if (a.y) _mm512_mask_i32scatter_ps(a.y + m * a.y_stride, mask, y_lane, v, 4);
        if (a.y_acc) _mm512_mask_i32scatter_epi32(a.y_acc + m * a.y_stride, mask, y_lane, sum, 4);
      }
      if (a.y_q) {
        __m512 t = _mm512_fmadd_ps(v, scale, offset);
        t = _mm512_min_ps(_mm512_max_ps(t, _mm512_setzero_ps()), top);
        const __m128i codes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(t));
        if (a.contiguous) {
          _mm_mask_storeu_epi8(a.y_q + m * a.q_stride + a.q_lane[p * kPanel], mask, codes);
        } else {
          alignas(16) uint8_t bytes[kPanel];
          _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes);
          for (int o = 0; o < lanes; o++) a.y_q[m * a.q_stride + a.q_lane[p * kPanel + o]] = bytes[o];
        }
      }
    }
  }
}

template <bool Box, int Activation>
void epilogue_residual(const EpilogueArgs& a) {
  a.residual ? epilogue_of<Box, Activation, true>(a) : epilogue_of<Box, Activation, false>(a);
}

template <bool Box>
void epilogue_activation(const EpilogueArgs& a) {
  switch (a.activation) {
    case ADABM_ACT_RELU: return epilogue_residual<Box, ADABM_ACT_RELU>(a);
    case ADABM_ACT_PRELU: return epilogue_residual<Box, ADABM_ACT_PRELU>(a);
    default: return epilogue_residual<Box, ADABM_ACT_NONE>(a);
  }
}

void epilogue(const EpilogueArgs& a) { a.box ? epilogue_activation<true>(a) : epilogue_activation<false>(a); }

int32_t byte_sum(const uint8_t* bytes, ptrdiff_t count) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  ptrdiff_t i = 0;
  for (; i + 64 <= count; i += 64) sum = dot(sum, _mm512_loadu_si512(bytes + i), ones);
  if (i < count) sum = dot(sum, _mm512_maskz_loadu_epi8((1ull << (count - i)) - 1, bytes + i), ones);
  return _mm512_reduce_add_epi32(sum);
}

void quantize_row(const QuantizeArgs& a) {
  const __m512 scale = _mm512_set1_ps(a.scale), offset = _mm512_set1_ps(a.offset), top = _mm512_set1_ps(a.top);
  const __m512i along = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(static_cast<int>(a.stride_c)));
  for (int i = 0; i < a.width; i++) {
    const float* x = a.x + i * a.stride_w;
    for (int c = 0; c < a.padded_channels; c += kPanel) {
      const int stored = a.padded_channels - c < kPanel ? a.padded_channels - c : kPanel;
      const int lanes = a.channels - c < kPanel ? a.channels - c : kPanel;
      const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1), store = static_cast<__mmask16>((1u << stored) - 1);
      __m512 v = a.stride_c == 1 ? _mm512_maskz_loadu_ps(mask, x + c)
                                 : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, along, x + c * a.stride_c, 4);
      if (a.shift) v = _mm512_sub_ps(v, _mm512_maskz_loadu_ps(mask, a.shift + c));
      const __m512 t = _mm512_min_ps(_mm512_max_ps(_mm512_fmadd_ps(v, scale, offset), _mm512_setzero_ps()), top);
      const __m512i codes = _mm512_maskz_cvtps_epi32(mask, t);
      _mm_mask_storeu_epi8(a.y_q + static_cast<ptrdiff_t>(i) * a.y_stride + c, store, _mm512_cvtepi32_epi8(codes));
    }
  }
}

#include "cpu/transforms.inc"

// The common case of both steps in one, without a trip through memory: 64 adjacent outputs of every pixel.
struct FullArgs {
  const UntileArgs& u;
  const EpilogueArgs& e;
};

inline __attribute__((always_inline)) __m512i code_words(__m512 v, __m512 scale, __m512 offset, __m512 top) {
  const __m512 t = _mm512_fmadd_ps(v, scale, offset);
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(t, _mm512_setzero_ps()), top));
}

template <int Outputs, int Activation, bool Residual, bool Codes>
void full_of(const FullArgs& f) {
  typedef int32_t Signed __attribute__((vector_size(64), aligned(64), may_alias));
  constexpr int kTaps = Outputs == 1 ? 1 : Outputs + 2, kPanels = kMaxPanels;
  const EpilogueArgs& e = f.e;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(f.u.tiles) * kPanels * kPanel;
  const __m512 scale = _mm512_set1_ps(e.scale), offset = _mm512_set1_ps(e.offset), top = _mm512_set1_ps(e.top);
  // Packing works within 128-bit lanes: this brings the 16-byte groups of the four panels back into their order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int t = 0; t < f.u.tiles; t++) {
    Words y[kPanels][Outputs];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; p++) {
      const int32_t* from = f.u.products + (t * kPanels + p) * kPanel;
      if (Outputs == 1) {
        y[p][0] = *reinterpret_cast<const Words*>(from);
      } else {
        Words m[kTaps];
#pragma GCC unroll 8
        for (int j = 0; j < kTaps; j++) m[j] = *reinterpret_cast<const Words*>(from + j * plane);
        transform_sums<Outputs, Words, Signed>(m, y[p]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Outputs; i++) {
      const int pixel = t * Outputs + i;
      if (Outputs > 1 && pixel >= e.pixels) break;
      const float* beta = e.beta[pixel];
      const ptrdiff_t at = pixel * e.y_stride + e.y_lane[0];
      __m512i words[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; p++) {
        __m512i sum = (__m512i)y[p][i];
        if (e.box) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 1), _mm512_set1_epi32(e.box[pixel]));
        __m512 v = _mm512_cvtepi32_ps(sum);
        v = _mm512_fmadd_ps(v, _mm512_loadu_ps(e.alpha + p * kPanel), _mm512_loadu_ps(beta + p * kPanel));
        if (Activation == ADABM_ACT_RELU) v = _mm512_max_ps(v, _mm512_setzero_ps());
        if (Activation == ADABM_ACT_PRELU)
          v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, _mm512_loadu_ps(e.slope + p * kPanel));
        if (Residual) v = _mm512_add_ps(_mm512_loadu_ps(e.residual + at + p * kPanel), v);
        if (e.y) _mm512_storeu_ps(e.y + at + p * kPanel, v);
        if (Codes) words[p] = code_words(v, scale, offset, top);
      }
      if (Codes) {
        const __m512i low = _mm512_packs_epi32(words[0], words[1]), high = _mm512_packs_epi32(words[2], words[3]);
        _mm512_storeu_si512(e.y_q + pixel * e.q_stride + e.q_lane[0], _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
      }
    }
  }
}

template <int Outputs, int Activation>
void full_activation(const FullArgs& f) {
  if (f.e.residual) f.e.y_q ? full_of<Outputs, Activation, true, true>(f) : full_of<Outputs, Activation, true, false>(f);
  else f.e.y_q ? full_of<Outputs, Activation, false, true>(f) : full_of<Outputs, Activation, false, false>(f);
}

template <int Outputs>
void full(const FullArgs& f) {
  switch (f.e.activation) {
    case ADABM_ACT_RELU: return full_activation<Outputs, ADABM_ACT_RELU>(f);
    case ADABM_ACT_PRELU: return full_activation<Outputs, ADABM_ACT_PRELU>(f);
    default: return full_activation<Outputs, ADABM_ACT_NONE>(f);
  }
}

void untile_epilogue(const UntileArgs& u, const EpilogueArgs& e) {
  if (u.panels < kMaxPanels || e.lanes < kMaxPanels * kPanel || !e.together || e.y_acc) {
    untile(u);
    return epilogue(e);
  }
  switch (u.outputs) {
    case 1: return full<1>({u, e});
    case 2: return full<2>({u, e});
    case 3: return full<3>({u, e});
    default: return full<4>({u, e});
  }
}

}  // namespace

const Kernels* kernels_avx512vnni() {
  static const Kernels kernels = {ADABM_ISA_AVX512VNNI, "avx512vnni", {0, 16, 12, 8, 6}, product, byte_sum, quantize_row, transform_row, untile_epilogue};
  return &kernels;
}

}  // namespace adabm

#else

namespace adabm {
const Kernels* kernels_avx512vnni() { return nullptr; }
}  // namespace adabm

#endif
