// Rounding and clamping of one code. g++ and nvcc compile the same text, so that every backend rounds alike.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define ADABM_HOST_DEVICE __host__ __device__
#else
#define ADABM_HOST_DEVICE
#endif

namespace adabm {

// Returns the code clamp(round_half_even(fma(value, scale, offset)), 0, top), where top = 2^bits - 1. Clamping before rounding gives the
// same code and keeps the conversion in range.
ADABM_HOST_DEVICE inline unsigned char quantize_value(float value, float scale, float offset, float top) {
  float t = fmaf(value, scale, offset);
  t = t > 0.0f ? t : 0.0f;  // also turns NaN into 0, as the vector forms do
  t = t < top ? t : top;
  return static_cast<unsigned char>(rintf(t));
}

// Returns the int16 feature that stands for a value, in units of 2^-fraction: clamp(round_half_even(value * 2^fraction), -32767, 32767);
// NaN gives -32767. per_one is 2^fraction: the product with it is exact, or too small to matter.
ADABM_HOST_DEVICE inline short fixed_point(float value, float per_one) {
  float t = value * per_one;
  t = t > -32767.0f ? t : -32767.0f;
  t = t < 32767.0f ? t : 32767.0f;
  return static_cast<short>(rintf(t));
}

}  // namespace adabm
