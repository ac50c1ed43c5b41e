// AVX2: vpmaddubsw multiplies 32 unsigned codes by 32 signed weights and adds neighbours into 16 bits.
//
// A pair sum is at most 2 * 127 * 128 = 32512 for codes of up to 7 bits: exact. With 8 bits it can pass 32767 and
// saturate, so the code is taken as 2 * (q >> 1) + (q & 1), two exact products.
#include "adabm/adabm.h"
#include "cpu/kernels.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace adabm {
namespace {

constexpr int kLanes = 8;
constexpr int kPixels = 4;

inline __attribute__((always_inline)) __m256i broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

inline __attribute__((always_inline)) __m256i dot(__m256i acc, __m256i codes, __m256i weights, __m256i factor) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, weights), factor));
}

int64_t peak(int64_t rounds) {
  __m256i c[kPixels * 2] = {}, one = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 8
    for (int v = 0; v < kPixels * 2; v++) {
      __m256i codes = one;
      asm volatile("" : "+x"(codes));  // or the compiler multiplies once
      c[v] = dot(c[v], codes, one, one);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kPixels * 2; v++) asm volatile("" : : "x"(c[v]));
  return kPixels * 2 * 32;
}

template <int Pixels, bool EightBits>
void product_block(const ProductArgs& a, int panel) {
  __m256i c[Pixels][2];
#pragma GCC unroll 4
  for (int m = 0; m < Pixels; m++) {
    const auto* start = reinterpret_cast<const __m256i*>(a.start + panel * kPanel);
    c[m][0] = a.start ? _mm256_load_si256(start) : _mm256_setzero_si256();
    c[m][1] = a.start ? _mm256_load_si256(start + 1) : _mm256_setzero_si256();
  }
  const __m256i one = _mm256_set1_epi16(1);
  const int8_t* w = a.w + panel * 64;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k++, x += 4, w += 64 * a.panels) {
      const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 4
      for (int m = 0; m < Pixels; m++) {
        const __m256i codes = broadcast4(x + m * a.pixel_stride);
        if (EightBits) {
          const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 1), _mm256_set1_epi8(127));
          const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(1)), two = _mm256_add_epi16(one, one);
          c[m][0] = dot(dot(c[m][0], high, w0, two), low, w0, one);
          c[m][1] = dot(dot(c[m][1], high, w1, two), low, w1, one);
        } else {
          c[m][0] = dot(c[m][0], codes, w0, one);
          c[m][1] = dot(c[m][1], codes, w1, one);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Pixels; m++)
    for (int h = 0; h < 2; h++)
      _mm256_store_si256(reinterpret_cast<__m256i*>(a.acc + (m * a.panels + panel) * kPanel + h * kLanes), c[m][h]);
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

inline __m256i lane_mask(int lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Eight codes in the low bytes, one for each 32-bit lane.
inline __m128i code_bytes(__m256 v, __m256 scale, __m256 offset, __m256 top) {
  const __m256 t = _mm256_min_ps(_mm256_max_ps(_mm256_fmadd_ps(v, scale, offset), _mm256_setzero_ps()), top);
  const __m256i q = _mm256_cvtps_epi32(t);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  return _mm_packus_epi16(words, words);
}

void epilogue(const EpilogueArgs& a) {
  const __m256 scale = _mm256_set1_ps(a.scale), offset = _mm256_set1_ps(a.offset), top = _mm256_set1_ps(a.top);
  for (int first = 0; first < a.lanes; first += kLanes) {
    const int lanes = a.lanes - first < kLanes ? a.lanes - first : kLanes;
    const bool whole = lanes == kLanes && a.contiguous;
    const __m256i mask = lane_mask(lanes);
    const __m256 alpha = _mm256_maskload_ps(a.alpha + first, mask);
    for (int m = 0; m < a.pixels; m++) {
      __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.acc + m * a.panels * kPanel + first));
      if (a.box) sum = _mm256_add_epi32(_mm256_slli_epi32(sum, 1), _mm256_set1_epi32(a.box[m]));
      __m256 v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), alpha, _mm256_maskload_ps(a.beta[m] + first, mask));
      if (a.activation == ADABM_ACT_RELU) v = _mm256_max_ps(v, _mm256_setzero_ps());
      if (a.activation == ADABM_ACT_PRELU)
        v = _mm256_blendv_ps(v, _mm256_mul_ps(v, _mm256_maskload_ps(a.slope + first, mask)),
                             _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
      const ptrdiff_t base = m * a.y_stride;
      if (whole) {
        const ptrdiff_t at = base + a.y_lane[first];
        if (a.residual) v = _mm256_add_ps(_mm256_loadu_ps(a.residual + at), v);
        if (a.y) _mm256_storeu_ps(a.y + at, v);
        if (a.y_acc) _mm256_storeu_si256(reinterpret_cast<__m256i*>(a.y_acc + at), sum);
        if (a.y_q)
          _mm_storel_epi64(reinterpret_cast<__m128i*>(a.y_q + m * a.q_stride + a.q_lane[first]), code_bytes(v, scale, offset, top));
        continue;
      }
      alignas(32) float values[kLanes];
      alignas(32) int32_t sums[kLanes];
      alignas(16) uint8_t codes[16];
      if (a.residual) {
        for (int o = 0; o < lanes; o++) values[o] = a.residual[base + a.y_lane[first + o]];
        for (int o = lanes; o < kLanes; o++) values[o] = 0;
        v = _mm256_add_ps(_mm256_load_ps(values), v);
      }
      _mm256_store_ps(values, v);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums), sum);
      _mm_store_si128(reinterpret_cast<__m128i*>(codes), code_bytes(v, scale, offset, top));
      for (int o = 0; o < lanes; o++) {
        if (a.y) a.y[base + a.y_lane[first + o]] = values[o];
        if (a.y_acc) a.y_acc[base + a.y_lane[first + o]] = sums[o];
        if (a.y_q) a.y_q[m * a.q_stride + a.q_lane[first + o]] = codes[o];
      }
    }
  }
}

void pixel_sums(const uint8_t* row, int width, int pixel_bytes, int32_t* sums) {
  for (int j = 0; j < width; j++, row += pixel_bytes) {
    __m256i sum = _mm256_setzero_si256();
    int c = 0;
    for (; c + 32 <= pixel_bytes; c += 32)
      sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + c)), _mm256_setzero_si256()));
    alignas(32) int64_t parts[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum);
    sums[j] = static_cast<int32_t>(parts[0] + parts[1] + parts[2] + parts[3]);
    for (; c < pixel_bytes; c++) sums[j] += row[c];
  }
}

void quantize_row(const QuantizeArgs& a) {
  const __m256 scale = _mm256_set1_ps(a.scale), offset = _mm256_set1_ps(a.offset), top = _mm256_set1_ps(a.top);
  for (int i = 0; i < a.width; i++) {
    const float* x = a.x + i * a.stride_w;
    uint8_t* out = a.y_q + static_cast<ptrdiff_t>(i) * a.y_stride;
    for (int c = 0; c < a.padded_channels; c += kLanes) {
      alignas(32) float values[kLanes] = {};
      alignas(16) uint8_t codes[16];
      const int lanes = a.channels - c < kLanes ? a.channels - c : kLanes;
      __m256 v;
      if (lanes == kLanes && a.stride_c == 1) {
        v = _mm256_loadu_ps(x + c);
      } else {
        for (int o = 0; o < lanes; o++) values[o] = x[(c + o) * a.stride_c];
        v = _mm256_load_ps(values);
      }
      if (a.shift) v = _mm256_sub_ps(v, _mm256_maskload_ps(a.shift + c, lane_mask(lanes)));
      _mm_store_si128(reinterpret_cast<__m128i*>(codes), code_bytes(v, scale, offset, top));
      const int stored = a.padded_channels - c < kLanes ? a.padded_channels - c : kLanes;
      for (int o = 0; o < stored; o++) out[c + o] = o < lanes ? codes[o] : 0;
    }
  }
}

#include "cpu/transforms.inc"

void untile_epilogue(const UntileArgs& u, const EpilogueArgs& e) {
  untile(u);
  epilogue(e);
}

}  // namespace

const Kernels* kernels_avx2() {
  static const Kernels kernels = {ADABM_ISA_AVX2,
                                  "avx2",
                                  {0, kPixels, kPixels, kPixels, kPixels},
                                  {0, kPixels, kPixels, kPixels, kPixels},
                                  peak,
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

#else

namespace adabm {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace adabm

#endif
