// vpdpbusd and vpdpwssd on 256 bits in AVX2, for the twins of tests/cpu/test_twins.py on processors without it.
#pragma once

#include <immintrin.h>

static inline __m256i dpbusd_on_avx2(__m256i sum, __m256i codes, __m256i weights) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(weights, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
#define _mm256_dpbusd_avx_epi32 dpbusd_on_avx2
#define _mm256_dpwssd_avx_epi32(sum, codes, weights) _mm256_add_epi32(sum, _mm256_madd_epi16(codes, weights))
