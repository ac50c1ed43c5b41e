// The pieces of which the epilogues of all architectures are made: from a value to its code, features of 16 bits, and codes packed for storage.
//
// Every piece gives the bits of docs/numerics.md, and none takes a slow pipe: conversions between integers and floats run at a
// quarter of the rate of sums or less (I2F on compute capability 8.0, F2I everywhere), while I2FP (8.6 and newer) and F2FP, from
// float to float16, run at half of it like comparisons do.
#pragma once

#include <cstdint>

#include "adabm/adabm.h"
#include "adabm/quant_math.h"
#include "cuda/codes.cuh"
#include "cuda/ptx.cuh"

namespace adabm {
namespace cuda {

ADABM_DEVICE float activate(int activation, float value, float slope) {
  if (activation == ADABM_ACT_RELU) return value > 0.0f ? value : 0.0f;  // NaN becomes 0 too
  if (activation == ADABM_ACT_PRELU) return value < 0.0f ? value * slope : value;
  return value;
}

// ---- codes

// A grid as code_pair takes it. A code t of 0..255 is the float16 t * 2^-24, whose bits are t, and numbers between two codes round
// to one of them, half to even, where float16 are made. So `scale` and `offset` are those of the table times 2^-24, and `scale` also
// times the unit in which values are given; `top`, in both halves, is the highest code. An offset that becomes denormal on the way
// is so small that its code is 0 with it or without it.
struct CodeGrid {
  float scale, offset;
  uint32_t top;
  bool exact;  // whether code_pair equals quantize_value: `scale` as it is used is neither denormal nor nearly infinite
};

// unit: the unit in which values are given, a power of two up to 1.
ADABM_DEVICE CodeGrid code_grid(float scale, float offset, int bits, float unit) {
  CodeGrid grid;
  grid.scale = scale * 0x1p-24f * unit, grid.offset = offset * 0x1p-24f;
  grid.top = ((1u << bits) - 1) * 0x10001u;
  grid.exact = fabsf(grid.scale) >= 0x1p-124f && fabsf(grid.scale) <= 0x1p76f;
  return grid;
}

// Reads the grid from the table [7, 2] of a layer.
ADABM_DEVICE CodeGrid code_grid(const float* out_grid, int bits, float unit) {
  const float* row = out_grid + (bits - ADABM_MIN_BITS) * 2;
  return code_grid(ptx::load_constant(row), ptx::load_constant(row + 1), bits, unit);
}

// Returns whether max(v, 0) and v always have the same code: the smallest code then stands for 0 and for all values below.
ADABM_DEVICE bool codes_need_no_relu(const CodeGrid& grid) { return grid.scale > 0.0f && grid.offset <= 0.0f; }

// Returns quantize_value of two values, in the low and the high 16 bits: two sums, one conversion and one comparison for both.
ADABM_DEVICE uint32_t code_pair(float low, float high, const CodeGrid& grid) {
  return ptx::min_halves(ptx::pack_halves(ptx::fma_saturate(low, grid.scale, grid.offset), ptx::fma_saturate(high, grid.scale, grid.offset)), grid.top);
}

// Returns units on their way to memory: a unit is two neighbouring codes of a pixel in the low 2 * storage bits of 16. Makes those of two
// pixels at once, from their even and their odd codes as code_pair gives them; unit_factor: 2^storage.
ADABM_DEVICE uint32_t unit_pair(uint32_t even, uint32_t odd, uint32_t unit_factor) { return odd * unit_factor + even; }

// Returns 16 bytes of stored codes, made of the 8, 16 or 32 units that they hold.
template <int kStorage>
ADABM_DEVICE ptx::Words4 pack_units(const ptx::Words4 (&units)[8 / kStorage]) {
  static_assert(kStorage == 8 || kStorage == 4 || kStorage == 2, "");
  ptx::Words4 out;
  const auto bytes = [&](int i) { return ptx::byte_perm(units[i / 2].w[i % 2 * 2], units[i / 2].w[i % 2 * 2 + 1], 0x6420); };  // the bytes of four units
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (kStorage == 8) {
      out.w[i] = units[0].w[i];
    } else if constexpr (kStorage == 4) {
      out.w[i] = bytes(i);
    } else {
      const uint32_t low = bytes(2 * i), high = bytes(2 * i + 1);  // each byte is one unit of four bits
      out.w[i] = ptx::byte_perm((low | low >> 4) & 0x00ff00ffu, (high | high >> 4) & 0x00ff00ffu, 0x6420);
    }
  }
  return out;
}

// ---- features of 16 bits: v * 2^fraction, rounded half to even and clamped to -32767..32767; NaN gives -32767

// The values in the functions below are in units of 2^-fraction. Scaling by a power of two is exact, so it may be done to alpha, beta and the grid's
// scale in place of every value.

// Returns the feature that stands for a value, in the low 16 bits of the bits of a float; stored_value turns it into a float again.
ADABM_DEVICE float round_feature(float value) { return fminf(fmaxf(value, -32767.0f), 32767.0f) + kAnchor; }
ADABM_DEVICE float stored_value(float rounded) { return rounded - kAnchor; }

// Packs two features as they lie in memory.
ADABM_DEVICE uint32_t pack_features(float first, float second) { return ptx::byte_perm(ptx::bits_of(first), ptx::bits_of(second), 0x5410); }

// Adds two features as they lie in memory; each is exact as a float, so that the sum rounds once.
ADABM_DEVICE void add_features(uint32_t word, float& first, float& second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 860
  // The float is 2^23 + 32768 + n, whose low bits are n + 32768.
  const uint32_t biased = word ^ 0x80008000u;
  first = (ptx::float_of(ptx::byte_perm(biased, 0x4b00u, 0x5410)) - 8421376.0f) + first;
  second = (ptx::float_of(ptx::byte_perm(biased, 0x4b00u, 0x5432)) - 8421376.0f) + second;
#else
  first = fmaf(static_cast<float>(static_cast<int32_t>(word << 16)), 0x1p-16f, first);
  second = fmaf(static_cast<float>(static_cast<int32_t>(word & 0xffff0000u)), 0x1p-16f, second);
#endif
}

// Returns one feature for the general forms, whose values are not scaled: `units` is 2^fraction and `unit` its inverse.
ADABM_DEVICE int16_t feature_of(float value, float units) { return static_cast<int16_t>(ptx::bits_of(round_feature(value * units))); }
ADABM_DEVICE float value_of(int16_t feature, float unit) { return static_cast<float>(feature) * unit; }

}  // namespace cuda
}  // namespace adabm
