// AVX-VNNI: vpdpbusd on 256 bits, for processors without AVX-512. It sums in 32 bits without saturation, so products of 8-bit codes are exact.
#include "adabm/adabm.h"
#include "cpu/isa/kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#include <immintrin.h>

namespace adabm {
namespace {

constexpr int kLanes = 8;
constexpr int kPixels = 6;  // 12 sums, 2 vectors of weights and one of codes fit 16 registers

inline __attribute__((always_inline)) void add_word_products(__m256i& sums, __m256i codes, __m256i weights) {
  sums = _mm256_dpwssd_avx_epi32(sums, codes, weights);
}

#include "cpu/isa/interpolate.inc"
#include "cpu/isa/ymm.inc"

int64_t peak(int64_t rounds) {
  __m256i c[kPixels * 2] = {}, one = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (int v = 0; v < kPixels * 2; v++) {
      __m256i codes = one;
      asm volatile("" : "+x"(codes));  // otherwise the compiler multiplies only once
      c[v] = _mm256_dpbusd_avx_epi32(c[v], codes, one);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kPixels * 2; v++) asm volatile("" : : "x"(c[v]));
  return kPixels * 2 * 32;
}

template <int Pixels>
void product_block(const ProductArgs& a, int panel) {
  __m256i c[Pixels][2];
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++) {
    const auto* start = reinterpret_cast<const __m256i*>(a.start + panel * kPanel);
    c[m][0] = a.start ? _mm256_load_si256(start) : _mm256_setzero_si256();
    c[m][1] = a.start ? _mm256_load_si256(start + 1) : _mm256_setzero_si256();
  }
  const int8_t* w = a.w + panel * 64;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k++, x += 4, w += 64 * a.panels) {
      const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 6
      for (int m = 0; m < Pixels; m++) {
        const __m256i codes = broadcast4(x + m * a.pixel_stride);
        c[m][0] = _mm256_dpbusd_avx_epi32(c[m][0], codes, w0);
        c[m][1] = _mm256_dpbusd_avx_epi32(c[m][1], codes, w1);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++)
    for (int h = 0; h < 2; h++) _mm256_store_si256(reinterpret_cast<__m256i*>(a.acc + (m * a.panels + panel) * kPanel + h * kLanes), c[m][h]);
}

void product(const ProductArgs& a) {
  for (int panel = 0; panel < a.panels; panel++) switch (a.pixels) {
      case 1: product_block<1>(a, panel); break;
      case 2: product_block<2>(a, panel); break;
      case 3: product_block<3>(a, panel); break;
      case 4: product_block<4>(a, panel); break;
      case 5: product_block<5>(a, panel); break;
      default: product_block<kPixels>(a, panel); break;
    }
}

struct DotSum {
  __m256i sum = _mm256_setzero_si256();
  inline __attribute__((always_inline)) void add(__m256i codes, __m256i weights) { sum = _mm256_dpbusd_avx_epi32(sum, codes, weights); }
  inline __attribute__((always_inline)) __m256i total() const { return sum; }
};

template <bool Below>
void depthwise_strip(const DepthwiseArgs& a, const Strip& strip) {
  depthwise_of<DotSum, Below>(a, strip);
}

}  // namespace

const Kernels* kernels_avxvnni() {
  static const Kernels kernels = {
      .name = "avxvnni",
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
const Kernels* kernels_avxvnni() { return nullptr; }
}  // namespace adabm

#endif
