// AVX2: vpmaddubsw multiplies 32 unsigned codes by 32 signed weights and adds neighbours into 16 bits.
//
// PackedHeader::depth says how many of these sums may be added up in 16 bits: the fewer the bits of codes and weights, the more sums are
// added before they are widened, which takes two instructions for 32 products instead of three. Where a single sum can saturate, codes and
// weights are widened first.
#include "adabm/adabm.h"
#include "cpu/isa/kernels.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace adabm {
namespace {

constexpr int kLanes = 8;
constexpr int kPixels = 6;

// Adds the products of two words each to sums of 32 bits. This is asm, as below, because GCC 12 otherwise keeps some of the sums in memory
// and copies the others between registers.
inline __attribute__((always_inline)) void add_word_products(__m256i& sums, __m256i codes, __m256i weights) {
  __m256i pairs;
  asm("vpmaddwd %3,%2,%1\n\tvpaddd %1,%0,%0" : "+x"(sums), "=&x"(pairs) : "x"(codes), "x"(weights));
}

#include "cpu/isa/interpolate.inc"
#include "cpu/isa/ymm.inc"

inline __attribute__((always_inline)) __m256i dot(__m256i acc, __m256i codes, __m256i weights, __m256i factor) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, weights), factor));
}

inline __attribute__((always_inline)) void add_products(__m256i& sums, __m256i codes, __m256i weights) {
  __m256i pairs;
  asm("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0" : "+x"(sums), "=&x"(pairs) : "x"(codes), "x"(weights));
}

// The peak for few bits, where nothing is widened.
int64_t peak(int64_t rounds) {
  __m256i s[kPixels * 2] = {}, codes = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (int v = 0; v < kPixels * 2; v++) {
      asm volatile("" : "+x"(codes));  // otherwise the compiler multiplies only once
      add_products(s[v], codes, codes);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kPixels * 2; v++) asm volatile("" : : "x"(s[v]));
  return kPixels * 2 * 32;
}

// Loads the numbers from which sums start: those of the arguments the first time, and the stored sums after that.
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

// Sums in 16 bits over `depth` quads, which are then added to the sums of 32 bits in memory.
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
    for (int h = 0; h < 2; h++) _mm256_store_si256(reinterpret_cast<__m256i*>(a.acc + (m * a.panels + panel) * kPanel + h * kLanes), c[m][h]);
}

// Bytes become words, even and odd ones apart: each pair of products, of channels 0 and 2 or of channels 1 and 3, is summed in 32 bits.
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
    for (int h = 0; h < 2; h++) _mm256_store_si256(reinterpret_cast<__m256i*>(a.acc + (m * a.panels + panel) * kPanel + h * kLanes), c[m][h]);
}

template <int Pixels>
void product_of(const ProductArgs& a, int panel) {
  a.depth > 1 ? product_block_deep<Pixels>(a, panel) : a.depth ? product_block<Pixels>(a, panel) : product_block_wide<Pixels>(a, panel);
}

// Goes panel by panel, so that the weights of a panel stay in the nearest cache for all blocks of pixels.
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
inline __attribute__((always_inline)) const __m256i* vector_at(const int32_t* at) { return reinterpret_cast<const __m256i*>(at); }

// Transforms the sums of the inner row taps in place: transform_sums<Rows> of transforms.inc without the outer taps. With three rows the
// first result is not yet halved; this is done once its outer tap has been added.
template <int Rows>
inline __attribute__((always_inline)) void combine_taps(__m256i (&m)[Rows]) {
  if (Rows == 2) {
    const __m256i sum = _mm256_add_epi32(m[0], m[1]), difference = _mm256_sub_epi32(m[0], m[1]);
    m[0] = _mm256_srai_epi32(sum, 1), m[1] = _mm256_srai_epi32(difference, 1);
  } else {
    const __m256i third = _mm256_set1_epi32(static_cast<int>(kThird)), m0x3 = _mm256_add_epi32(_mm256_add_epi32(m[0], m[0]), m[0]);
    const __m256i m2x2 = _mm256_add_epi32(m[2], m[2]), low = _mm256_sub_epi32(_mm256_sub_epi32(m[2], m[1]), m0x3);
    const __m256i middle = _mm256_add_epi32(_mm256_sub_epi32(m[1], m0x3), m2x2), high = _mm256_add_epi32(low, _mm256_add_epi32(m2x2, m[2]));
    m[0] = _mm256_mullo_epi32(low, third);
    m[1] = _mm256_mullo_epi32(_mm256_srai_epi32(middle, 1), third);
    m[2] = _mm256_mullo_epi32(_mm256_srai_epi32(high, 1), third);
  }
}

// Sums all products of a row tap in 16 bits; the sums of the taps are combined on their way to memory.
template <int Rows, int Tiles>
void row_product_block_whole(const RowProductArgs& a, int panel) {
  const ptrdiff_t stride = a.tile_stride, w_stride = a.panels * 64, quads = a.quads, row_stride = a.row_stride, sums_stride = a.panels * kPanel;
  const __m256i one = _mm256_set1_epi16(1);
  int32_t* const sums = a.sums + panel * kPanel;
  for (int i = 0; i < Rows + 2; i++) {
    __m256i s[Tiles][2];
    sum_products<Tiles>(a.x + i * a.tap_stride, stride, a.w + i * quads * w_stride + panel * 64, w_stride, quads, s);
    const __m256i* const start = vector_at(a.start + i * a.start_stride + panel * kPanel);
    if (i < Rows - 1) {
#pragma GCC unroll 6
      for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
          *vector_at(sums + i * row_stride + m * sums_stride + h * kLanes) = _mm256_add_epi32(start[h], _mm256_madd_epi16(s[m][h], one));
    } else if (i == Rows - 1) {
#pragma GCC unroll 6
      for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          int32_t* const row = sums + m * sums_stride + h * kLanes;
          __m256i taps[Rows];
          taps[Rows - 1] = _mm256_add_epi32(start[h], _mm256_madd_epi16(s[m][h], one));
#pragma GCC unroll 2
          for (int r = 0; r < Rows - 1; r++) taps[r] = *vector_at(row + r * row_stride);
          combine_taps<Rows>(taps);
#pragma GCC unroll 3
          for (int r = 0; r < Rows; r++) *vector_at(row + r * row_stride) = taps[r];
        }
    } else {
      int32_t* const into = sums + (i == Rows ? 0 : Rows - 1) * row_stride;
      const __m128i halved = _mm_cvtsi32_si128(Rows == 3 && i == Rows);
#pragma GCC unroll 6
      for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          __m256i* const row = vector_at(into + m * sums_stride + h * kLanes);
          const __m256i sum = _mm256_add_epi32(*row, _mm256_madd_epi16(s[m][h], one));
          *row = Rows == 3 ? _mm256_sra_epi32(sum, halved) : sum;
        }
    }
  }
}

// Adds the 16-bit sums of a row tap to its 32-bit sums, which stand in its row of a block, `into`. With First these begin with `start`, two
// vectors of outputs; otherwise with the numbers that stand in `into`.
template <int Tiles, bool First>
inline __attribute__((always_inline)) void add_sums(const __m256i (&s)[Tiles][2], const __m256i* start, int32_t* into, ptrdiff_t stride, __m128i halved) {
  const __m256i one = _mm256_set1_epi16(1);
#pragma GCC unroll 6
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      __m256i* const at = vector_at(into + m * stride + h * kLanes);
      const __m256i sum = _mm256_add_epi32(First ? start[h] : *at, _mm256_madd_epi16(s[m][h], one));
      *at = First ? sum : _mm256_sra_epi32(sum, halved);
    }
}

// Does the same for the last inner tap, whose sums are combined with the earlier ones on their way to memory. into: the first row.
template <int Rows, int Tiles, bool First>
inline __attribute__((always_inline)) void combine_sums(const __m256i (&s)[Tiles][2], const __m256i* start, int32_t* into, ptrdiff_t stride,
                                                        ptrdiff_t row_stride) {
  const __m256i one = _mm256_set1_epi16(1);
#pragma GCC unroll 6
  for (int m = 0; m < Tiles; m++)
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      int32_t* const row = into + m * stride + h * kLanes;
      __m256i taps[Rows];
      taps[Rows - 1] = _mm256_add_epi32(First ? start[h] : *vector_at(row + (Rows - 1) * row_stride), _mm256_madd_epi16(s[m][h], one));
#pragma GCC unroll 2
      for (int r = 0; r < Rows - 1; r++) taps[r] = *vector_at(row + r * row_stride);
      combine_taps<Rows>(taps);
#pragma GCC unroll 3
      for (int r = 0; r < Rows; r++) *vector_at(row + r * row_stride) = taps[r];
    }
}

// Computes the same as row_product_block_whole for weights with several parts, or where only some quads of a tap may be summed in 16 bits.
// (Where all may be, it takes 8 % longer than row_product_block_whole.)
template <int Rows, int Tiles>
void row_product_block(const RowProductArgs& a, int panel) {
  const ptrdiff_t stride = a.tile_stride, w_stride = a.panels * 64, row_stride = a.row_stride, sums_stride = a.panels * kPanel;
  const int quads = a.quads;
  int32_t* const sums = a.sums + panel * kPanel;
  const int8_t* w = a.w + panel * 64;
  for (int i = 0; i < Rows + 2; i++) {
    int32_t* const into = sums + (i < Rows ? i : i == Rows ? 0 : Rows - 1) * row_stride;
    const __m256i* start = i < Rows ? vector_at(a.start + i * a.start_stride + panel * kPanel) : nullptr;
    const int depth = a.depth[i];
    for (int parts = a.parts[i], k = 0; parts > 0; start = nullptr) {
      const int count = quads - k < depth ? quads - k : depth;
      __m256i s[Tiles][2];
      sum_products<Tiles>(a.x + i * a.tap_stride + 4 * k, stride, w, w_stride, count, s);
      w += count * w_stride, k += count;
      if (k == quads) k = 0, parts--;
      if (parts == 0 && i == Rows - 1)
        start ? combine_sums<Rows, Tiles, true>(s, start, sums, sums_stride, row_stride)
              : combine_sums<Rows, Tiles, false>(s, start, sums, sums_stride, row_stride);
      else
        start ? add_sums<Tiles, true>(s, start, into, sums_stride, __m128i{})
              : add_sums<Tiles, false>(s, start, into, sums_stride, _mm_cvtsi32_si128(Rows == 3 && i == Rows && parts == 0));
    }
  }
}

template <int Rows, int Tiles>
void row_product_of(const RowProductArgs& a) {
  bool whole = true;
  for (int i = 0; i < Rows + 2; i++) whole &= a.parts[i] == 1 && a.depth[i] >= a.quads;
  for (int panel = 0; panel < a.panels; panel++) whole ? row_product_block_whole<Rows, Tiles>(a, panel) : row_product_block<Rows, Tiles>(a, panel);
}

template <int Rows>
void row_product_of_rows(const RowProductArgs& a) {
  switch (a.tiles) {
    case 1: return row_product_of<Rows, 1>(a);
    case 2: return row_product_of<Rows, 2>(a);
    case 3: return row_product_of<Rows, 3>(a);
    case 4: return row_product_of<Rows, 4>(a);
    case 5: return row_product_of<Rows, 5>(a);
    default: return row_product_of<Rows, kPixels>(a);
  }
}

void row_product(const RowProductArgs& a) {
  for (int i = 0; i < a.rows + 2; i++)
    if (a.depth[i] < 2) return row_product_by_taps<product>(a);
  a.rows == 3 ? row_product_of_rows<3>(a) : row_product_of_rows<2>(a);
}

// Sums all quads of a kernel in 16 bits.
struct WholeSum {
  __m256i pairs = _mm256_setzero_si256();
  inline __attribute__((always_inline)) void add(__m256i codes, __m256i weights) { pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, weights)); }
  inline __attribute__((always_inline)) __m256i total() const { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};

// Sums the two pairs of products of each quad in 16 bits.
struct PairSum {
  __m256i sum = _mm256_setzero_si256();
  inline __attribute__((always_inline)) void add(__m256i codes, __m256i weights) { sum = dot(sum, codes, weights, _mm256_set1_epi16(1)); }
  inline __attribute__((always_inline)) __m256i total() const { return sum; }
};

// Widens codes and weights first, even and odd bytes apart.
struct WideSum {
  __m256i sum = _mm256_setzero_si256();
  inline __attribute__((always_inline)) void add(__m256i codes, __m256i weights) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(weights, 8));
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
  inline __attribute__((always_inline)) __m256i total() const { return sum; }
};

template <bool Below>
void depthwise_strip(const DepthwiseArgs& a, const Strip& strip) {
  if (a.depth >= a.parts * a.columns * a.row_quads) return depthwise_of<WholeSum, Below>(a, strip);
  a.depth ? depthwise_of<PairSum, Below>(a, strip) : depthwise_of<WideSum, Below>(a, strip);
}

}  // namespace

const Kernels* kernels_avx2() {
  static const Kernels kernels = {
      .name = "avx2",
      .pixels = {0, 3 * kPixels, 3 * kPixels, 3 * kPixels, 3 * kPixels},
      .tiles = {{0, kPixels, kPixels, kPixels, kPixels}, {0, kPixels, kPixels, kPixels, kPixels}},
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
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace adabm

#endif
