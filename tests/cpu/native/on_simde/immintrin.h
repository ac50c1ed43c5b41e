// AVX-512 in portable C++ for the twins of tests/cpu/test_twins.py, in place of the compiler's header of this name: SIMDe, and what it
// lacks of the intrinsics that csrc/cpu/isa/avx512vnni.cpp uses.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

using __mmask8 = uint8_t;
using __mmask16 = uint16_t;
using __mmask64 = uint64_t;

namespace on_simde {

template <class Vector, class T, int N>
struct Lanes {
  T v[N];
  Lanes() = default;
  explicit Lanes(Vector x) { std::memcpy(v, &x, sizeof v); }
  Vector vector() const {
    Vector x;
    std::memcpy(&x, v, sizeof x);
    return x;
  }
};
using Ints = Lanes<simde__m512i, int32_t, 16>;
using Floats = Lanes<simde__m512, float, 16>;
using Bytes = Lanes<simde__m512i, uint8_t, 64>;

template <class L, class Vector, class T>
Vector load(uint64_t mask, const T* from) {
  L out = {};
  for (size_t i = 0; i < sizeof out.v / sizeof out.v[0]; i++)
    if (mask >> i & 1) std::memcpy(&out.v[i], from + i, sizeof out.v[i]);
  return out.vector();
}

template <class L, class Vector, class T>
void store(T* to, uint64_t mask, Vector x) {
  const L lanes(x);
  for (size_t i = 0; i < sizeof lanes.v / sizeof lanes.v[0]; i++)
    if (mask >> i & 1) std::memcpy(to + i, &lanes.v[i], sizeof lanes.v[i]);
}

inline simde__m512i round(simde__mmask16 mask, simde__m512 x) {
  Ints out = {};
  const Floats lanes(x);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) out.v[i] = std::fabs(lanes.v[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyintf(lanes.v[i])) : INT32_MIN;
  return out.vector();
}

}  // namespace on_simde

#define _mm512_maskz_loadu_ps(mask, from) on_simde::load<on_simde::Floats, simde__m512>(mask, from)
#define _mm512_maskz_loadu_epi32(mask, from) on_simde::load<on_simde::Ints, simde__m512i>(mask, from)
#define _mm512_maskz_loadu_epi8(mask, from) on_simde::load<on_simde::Bytes, simde__m512i>(mask, from)
#define _mm256_maskz_loadu_epi16(mask, from) on_simde::load<on_simde::Lanes<simde__m256i, int16_t, 16>, simde__m256i>(mask, from)
#define _mm512_mask_storeu_ps(to, mask, x) on_simde::store<on_simde::Floats>(to, mask, x)
#define _mm512_mask_storeu_epi32(to, mask, x) on_simde::store<on_simde::Ints>(to, mask, x)
#define _mm256_mask_storeu_epi16(to, mask, x) on_simde::store<on_simde::Lanes<simde__m256i, int16_t, 16>>(to, mask, x)
#define _mm_mask_storeu_epi32(to, mask, x) on_simde::store<on_simde::Lanes<simde__m128i, int32_t, 4>>(to, mask, x)
#define _mm_mask_storeu_epi8(to, mask, x) on_simde::store<on_simde::Lanes<simde__m128i, uint8_t, 16>>(to, mask, x)
#define _mm512_cvtps_epi32(x) on_simde::round(0xffff, x)
#define _mm512_maskz_cvtps_epi32(mask, x) on_simde::round(mask, x)

inline simde__m128i _mm512_cvtepi32_epi8(simde__m512i x) {
  const on_simde::Ints lanes(x);
  on_simde::Lanes<simde__m128i, uint8_t, 16> out;
  for (int i = 0; i < 16; i++) out.v[i] = static_cast<uint8_t>(lanes.v[i]);
  return out.vector();
}

inline simde__m256i _mm512_cvtepi32_epi16(simde__m512i x) {
  const on_simde::Ints lanes(x);
  on_simde::Lanes<simde__m256i, int16_t, 16> out;
  for (int i = 0; i < 16; i++) out.v[i] = static_cast<int16_t>(lanes.v[i]);
  return out.vector();
}

inline simde__m512i _mm512_cvtepi16_epi32(simde__m256i x) {
  const on_simde::Lanes<simde__m256i, int16_t, 16> lanes(x);
  on_simde::Ints out;
  for (int i = 0; i < 16; i++) out.v[i] = lanes.v[i];
  return out.vector();
}

inline simde__m512i _mm512_cvtepu8_epi16(simde__m256i x) {
  const on_simde::Lanes<simde__m256i, uint8_t, 32> lanes(x);
  on_simde::Lanes<simde__m512i, int16_t, 32> out;
  for (int i = 0; i < 32; i++) out.v[i] = lanes.v[i];
  return out.vector();
}

inline simde__m512 _mm512_cvtepi32_ps(simde__m512i x) {
  const on_simde::Ints lanes(x);
  on_simde::Floats out;
  for (int i = 0; i < 16; i++) out.v[i] = static_cast<float>(lanes.v[i]);
  return out.vector();
}

// SIMDe's rounds twice.
inline simde__m512 fused_multiply_add(simde__m512 a, simde__m512 b, simde__m512 c) {
  const on_simde::Floats x(a), y(b), z(c);
  on_simde::Floats out;
  for (int i = 0; i < 16; i++) out.v[i] = fmaf(x.v[i], y.v[i], z.v[i]);
  return out.vector();
}
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps fused_multiply_add

inline simde__m512i _mm512_srai_epi32(simde__m512i x, unsigned by) {
  on_simde::Ints lanes(x);
  for (int32_t& lane : lanes.v) lane >>= by;
  return lanes.vector();
}

inline simde__m512 _mm512_mask_i32gather_ps(simde__m512 otherwise, simde__mmask16 mask, simde__m512i index, const float* base, int) {
  on_simde::Floats out(otherwise);
  const on_simde::Ints at(index);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) out.v[i] = base[at.v[i]];
  return out.vector();
}

template <class T, class Vector>
void scatter(T* base, simde__mmask16 mask, simde__m512i index, Vector x) {
  const on_simde::Lanes<Vector, T, 16> lanes(x);
  const on_simde::Ints at(index);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) base[at.v[i]] = lanes.v[i];
}
#define _mm512_mask_i32scatter_ps(base, mask, index, x, scale) scatter(base, mask, index, x)
#define _mm512_mask_i32scatter_epi32(base, mask, index, x, scale) scatter(base, mask, index, x)
