// Rounding and clamping of one code: one text for g++ and nvcc, so that every backend rounds alike.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define ADABM_HOST_DEVICE __host__ __device__
#else
#define ADABM_HOST_DEVICE
#endif

namespace adabm {

// clamp(round_half_even(fma(value, scale, offset)), 0, top), top = 2^bits - 1. Clamping first gives the same code and
// keeps the conversion in range.
ADABM_HOST_DEVICE inline unsigned char quantize_value(float value, float scale, float offset, float top) {
  float t = fmaf(value, scale, offset);
  t = t > 0.0f ? t : 0.0f;  // also turns NaN into 0, as the vector forms do
  t = t < top ? t : top;
  return static_cast<unsigned char>(rintf(t));
}

}  // namespace adabm
