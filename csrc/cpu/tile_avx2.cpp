// AVX2: vpmaddubsw multiplies 32 unsigned codes by 32 signed weights and adds neighbours into 16 bits.
//
// How many of these sums fit 16 bits together, PackedHeader::depth says: the fewer the bits of codes and weights, the more of them
// are added there before they are widened, at two instructions for 32 products instead of three. Where a single one can saturate,
// codes and weights are widened first.
#include "adabm/adabm.h"
#include "cpu/kernels.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace adabm {
namespace {

constexpr int kLanes = 8;
constexpr int kPixels = 6;

// Adds the products of two words each to sums of 32 bits. In asm, as below, since GCC 12 otherwise keeps some of the sums in memory and
// copies the others round.
inline __attribute__((always_inline)) void add_word_products(__m256i& sums, __m256i codes, __m256i weights) {
  __m256i pairs;
  asm("vpmaddwd %3,%2,%1\n\tvpaddd %1,%0,%0" : "+x"(sums), "=&x"(pairs) : "x"(codes), "x"(weights));
}

#include "cpu/ymm.inc"

inline __attribute__((always_inline)) __m256i dot(__m256i acc, __m256i codes, __m256i weights, __m256i factor) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, weights), factor));
}

inline __attribute__((always_inline)) void add_products(__m256i& sums, __m256i codes, __m256i weights) {
  __m256i pairs;
  asm("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0" : "+x"(sums), "=&x"(pairs) : "x"(codes), "x"(weights));
}

// What few bits allow: nothing is widened.
int64_t peak(int64_t rounds) {
  __m256i s[kPixels * 2] = {}, codes = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (int v = 0; v < kPixels * 2; v++) {
      asm volatile("" : "+x"(codes));  // or the compiler multiplies once
      add_products(s[v], codes, codes);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kPixels * 2; v++) asm volatile("" : : "x"(s[v]));
  return kPixels * 2 * 32;
}

// Where sums start: from the arguments the first time, from what was stored after that.
inline __attribute__((always_inline)) __m256i resume(const int32_t* from) {
  return from ? _mm256_load_si256(reinterpret_cast<const __m256i*>(from)) : _mm256_setzero_si256();
}

// s = the 16-bit sums of the next `quads` quads of `Pixels` pixels and 16 outputs.
template <int Pixels>
inline __attribute__((always_inline)) void sum_products(const uint8_t* x, ptrdiff_t stride, const int8_t* w, ptrdiff_t w_stride, ptrdiff_t quads,
                                                       __m256i (&s)[Pixels][2]) {
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++) s[m][0] = s[m][1] = _mm256_setzero_si256();
  for (const uint8_t* const end = x + 4 * quads; x < end; x += 4, w += w_stride) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 6
    for (int m = 0; m < Pixels; m++) {
      const __m256i codes = broadcast4(x + m * stride);
      add_products(s[m][0], codes, w0);
      add_products(s[m][1], codes, w1);
    }
  }
}

// Sums of 16 bits over `depth` quads, which then join those of 32 bits in memory.
template <int Pixels>
void product_block_deep(const ProductArgs& a, int panel) {
  const int8_t* w = a.w + panel * 64;
  int32_t* const acc = a.acc + panel * kPanel;
  const int32_t* from = a.start ? a.start + panel * kPanel : nullptr;
  const ptrdiff_t stride = a.pixel_stride, acc_stride = a.panels * kPanel, w_stride = a.panels * 64;
  const int taps = a.taps, quads = a.quads, depth = a.depth;
  const __m256i one = _mm256_set1_epi16(1);
  ptrdiff_t from_stride = 0;
  for (int t = 0; t < taps; t++)
    for (int k = 0; k < quads; k += depth) {
      const int count = quads - k < depth ? quads - k : depth;
      __m256i s[Pixels][2];
      sum_products<Pixels>(a.x + a.tap_offset[t] + 4 * k, stride, w, w_stride, count, s);
      w += count * w_stride;
#pragma GCC unroll 6
      for (int m = 0; m < Pixels; m++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
          _mm256_store_si256(reinterpret_cast<__m256i*>(acc + m * acc_stride + h * kLanes),
                             _mm256_add_epi32(resume(from ? from + m * from_stride + h * kLanes : nullptr), _mm256_madd_epi16(s[m][h], one)));
      from = acc, from_stride = acc_stride;
    }
}

template <int Pixels>
void product_block(const ProductArgs& a, int panel) {
  __m256i c[Pixels][2];
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) c[m][h] = resume(a.start ? a.start + panel * kPanel + h * kLanes : nullptr);
  const __m256i one = _mm256_set1_epi16(1);
  const int8_t* w = a.w + panel * 64;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k++, x += 4, w += 64 * a.panels) {
      const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 6
      for (int m = 0; m < Pixels; m++) {
        const __m256i codes = broadcast4(x + m * a.pixel_stride);
        c[m][0] = dot(c[m][0], codes, w0, one);
        c[m][1] = dot(c[m][1], codes, w1, one);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++)
    for (int h = 0; h < 2; h++)
      _mm256_store_si256(reinterpret_cast<__m256i*>(a.acc + (m * a.panels + panel) * kPanel + h * kLanes), c[m][h]);
}

// Words of even and of odd bytes: each pair of products, of channels 0 and 2 and of 1 and 3, ends in 32 bits.
template <int Pixels>
void product_block_wide(const ProductArgs& a, int panel) {
  __m256i c[Pixels][2];
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) c[m][h] = resume(a.start ? a.start + panel * kPanel + h * kLanes : nullptr);
  const int8_t* w = a.w + panel * 64;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k++, x += 4, w += 64 * a.panels) {
      __m256i even[2], odd[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m256i weights = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32 * h));
        even[h] = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8), odd[h] = _mm256_srai_epi16(weights, 8);
      }
#pragma GCC unroll 6
      for (int m = 0; m < Pixels; m++) {
        const __m256i codes = broadcast4(x + m * a.pixel_stride);
        const __m256i even_codes = _mm256_and_si256(codes, _mm256_set1_epi16(255)), odd_codes = _mm256_srli_epi16(codes, 8);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
          c[m][h] = _mm256_add_epi32(c[m][h], _mm256_add_epi32(_mm256_madd_epi16(even_codes, even[h]), _mm256_madd_epi16(odd_codes, odd[h])));
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < Pixels; m++)
    for (int h = 0; h < 2; h++)
      _mm256_store_si256(reinterpret_cast<__m256i*>(a.acc + (m * a.panels + panel) * kPanel + h * kLanes), c[m][h]);
}

template <int Pixels>
void product_of(const ProductArgs& a, int panel) {
  a.depth > 1 ? product_block_deep<Pixels>(a, panel) : a.depth ? product_block<Pixels>(a, panel) : product_block_wide<Pixels>(a, panel);
}

// Panel by panel, so that its weights stay in the nearest cache for all blocks of pixels.
void product(const ProductArgs& a) {
  for (int panel = 0; panel < a.panels; panel++) {
    ProductArgs block = a;
    for (int left = a.pixels; left > 0; left -= kPixels) {
      switch (left) {
        case 1: product_of<1>(block, panel); break;
        case 2: product_of<2>(block, panel); break;
        case 3: product_of<3>(block, panel); break;
        case 4: product_of<4>(block, panel); break;
        case 5: product_of<5>(block, panel); break;
        default: product_of<kPixels>(block, panel); break;
      }
      block.x += kPixels * a.pixel_stride, block.acc += kPixels * a.panels * kPanel;
    }
  }
}

inline __attribute__((always_inline)) __m256i* vector_at(int32_t* at) { return reinterpret_cast<__m256i*>(at); }

// A row tap's products in 16 bits altogether: the sums of the taps are combined on their way to memory.
template <int Tiles>
void row_product_block_whole(const RowProductArgs& a, int panel) {
  const ptrdiff_t stride = a.tile_stride, w_stride = a.panels * 64, quads = a.quads, row_stride = a.row_stride, sums_stride = a.panels * kPanel;
  const __m256i one = _mm256_set1_epi16(1);
  int32_t* const sums = a.sums + panel * kPanel;
  for (int i = 0; i < kRowTaps; i++) {
    __m256i s[Tiles][2];
    sum_products<Tiles>(a.x + i * a.tap_stride, stride, a.w + i * quads * w_stride + panel * 64, w_stride, quads, s);
    const int32_t* const start = a.start + i * a.start_stride + panel * kPanel;
#pragma GCC unroll 6
    for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m256i products = _mm256_madd_epi16(s[m][h], one);
        __m256i* const row = vector_at(sums + m * sums_stride + h * kLanes);
        __m256i* const next_row = vector_at(sums + row_stride + m * sums_stride + h * kLanes);
        if (i == 0) {
          *row = _mm256_add_epi32(products, resume(start + h * kLanes));
        } else if (i == 1) {  // transform_sums<2> of cpu/transforms.inc
          const __m256i first = *row, second = _mm256_add_epi32(products, resume(start + h * kLanes));
          *row = _mm256_srai_epi32(_mm256_add_epi32(first, second), 1);
          *next_row = _mm256_srai_epi32(_mm256_sub_epi32(first, second), 1);
        } else {
          __m256i* const into = i == 2 ? row : next_row;
          *into = _mm256_add_epi32(*into, products);
        }
      }
  }
}

// The same with split weights, or where only some of the quads fit 16 bits together.
template <int Tiles>
void row_product_block(const RowProductArgs& a, int panel) {
  const ptrdiff_t stride = a.tile_stride, w_stride = a.panels * 64, row_stride = a.row_stride, sums_stride = a.panels * kPanel;
  const int quads = a.quads, depth = a.depth;
  const __m256i one = _mm256_set1_epi16(1);
  int32_t* const sums = a.sums + panel * kPanel;
  const int8_t* w = a.w + panel * 64;
  for (int i = 0; i < kRowTaps; i++) {
    const int parts = i < kTileRows ? a.parts : a.outer_parts;
    int32_t* const into = sums + i % kTileRows * row_stride;
    const int32_t* from = i < kTileRows ? a.start + i * a.start_stride + panel * kPanel : into;
    ptrdiff_t from_stride = i < kTileRows ? 0 : sums_stride;
    for (int part = 0; part < parts; part++)
      for (int k = 0; k < quads; k += depth) {
        const int count = quads - k < depth ? quads - k : depth;
        __m256i s[Tiles][2];
        sum_products<Tiles>(a.x + i * a.tap_stride + 4 * k, stride, w, w_stride, count, s);
        w += count * w_stride;
#pragma GCC unroll 6
        for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
          for (int h = 0; h < 2; h++)
            *vector_at(into + m * sums_stride + h * kLanes) =
                _mm256_add_epi32(resume(from + m * from_stride + h * kLanes), _mm256_madd_epi16(s[m][h], one));
        from = into, from_stride = sums_stride;
      }
    for (int v = 0; i == 1 && v < 2 * Tiles; v++) {
      __m256i* const row = vector_at(sums + v / 2 * sums_stride + v % 2 * kLanes);
      __m256i* const next_row = vector_at(sums + row_stride + v / 2 * sums_stride + v % 2 * kLanes);
      const __m256i first = *row, second = *next_row;
      *row = _mm256_srai_epi32(_mm256_add_epi32(first, second), 1);
      *next_row = _mm256_srai_epi32(_mm256_sub_epi32(first, second), 1);
    }
  }
}

template <int Tiles>
void row_product_of(const RowProductArgs& a) {
  const bool whole = a.depth >= a.quads && a.parts == 1 && a.outer_parts == 1;
  for (int panel = 0; panel < a.panels; panel++) whole ? row_product_block_whole<Tiles>(a, panel) : row_product_block<Tiles>(a, panel);
}

void row_product(const RowProductArgs& a) {
  if (a.depth < 2) return row_product_by_taps<product>(a);
  switch (a.tiles) {
    case 1: return row_product_of<1>(a);
    case 2: return row_product_of<2>(a);
    case 3: return row_product_of<3>(a);
    case 4: return row_product_of<4>(a);
    case 5: return row_product_of<5>(a);
    default: return row_product_of<kPixels>(a);
  }
}

}  // namespace

const Kernels* kernels_avx2() {
  static const Kernels kernels = {ADABM_ISA_AVX2,
                                  "avx2",
                                  {0, 3 * kPixels, 3 * kPixels, 3 * kPixels, 3 * kPixels},
                                  {0, kPixels, kPixels, kPixels, kPixels},
                                  peak,
                                  product,
                                  row_product,
                                  pixel_sums,
                                  gather_columns,
                                  slide,
                                  quantize_row,
                                  transform,
                                  untile_epilogue,
                                  word_transform,
                                  word_transform_rows,
                                  word_row_product<1, word_product>};
  return &kernels;
}

}  // namespace adabm

#else

namespace adabm {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace adabm

#endif
