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

#include "cpu/ymm.inc"

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
