// Codes of 2, 4 and 8 bits in 32-bit words: how many bits a code takes in memory, and how codes go from one width to another.
//
// The first code of a word is lowest. A pixel is a whole number of words, so a pixel's last word may end in codes that are zeros.
//
//   bits of a word:  31      24 23      16 15       8 7        0
//   8 bits:         | code 3   | code 2   | code 1   | code 0   |
//   4 bits:         | c7 | c6  | c5 | c4  | c3 | c2  | c1 | c0  |
//   2 bits:         |f|e|d|c   |b|a|9|8   |7|6|5|4   |3|2|1|0   |
//
// Widths are changed for a whole word at once: moving the upper half away from the lower one and masking doubles the room of every code,
// and each further step does so within the halves. Two steps make four bytes of four nibbles, and the same steps in the other order take
// them back. No code is handled by itself.
//
// A value becomes a code by a sum with kAnchor, 1.5 * 2^23: the unit in the last place is 1 there, so the sum rounds half to even, and the
// code stands in its low bits. Conversions between floats and integers run at a quarter of that rate.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace adabm {
namespace cuda {

// The bit-width of an image, brought into 2..8: memory on the device cannot be checked before the launch.
ADABM_DEVICE int image_bits(const int32_t* bits, int image) {
  const int b = ptx::load_constant(bits + image);
  return b < 2 ? 2 : b > 8 ? 8 : b;
}

ADABM_DEVICE int storage_bits(int bits, bool packed) { return !packed || bits > 4 ? 8 : bits > 2 ? 4 : 2; }

// Bytes of one pixel of `channels` codes, a multiple of 4.
ADABM_DEVICE int pixel_bytes(int channels, int storage) { return (channels * storage + 31) / 32 * 4; }

// Conversions between integers and floats run at a quarter of the rate of sums. The low bits of 1.5 * 2^23 + n are n where |n| < 2^22, so a
// sum converts in both directions.
constexpr float kAnchor = 12582912.0f;

// The number that leaves a residual unchanged when added: -0 plus either zero is that zero.
constexpr float kNothing = -0.0f;

// Returns the code of quantize_value (quant_math.h) in the lowest byte: the sum with the anchor rounds half to even.
ADABM_DEVICE uint32_t quantize_low_byte(float value, float scale, float offset, float top) {
  return ptx::bits_of(fminf(fmaxf(fmaf(value, scale, offset), 0.0f), top) + kAnchor);
}

// Turns the lowest four codes of 4 bits into bytes, and back.
ADABM_DEVICE uint32_t bytes_of_nibbles(uint32_t x) {
  x &= 0xffffu;
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}
ADABM_DEVICE uint32_t nibbles_of_bytes(uint32_t x) {
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0xffffu;
}

// Turns the lowest eight codes of 2 bits into codes of 4 bits, and back.
ADABM_DEVICE uint32_t nibbles_of_pairs(uint32_t x) {
  x &= 0xffffu;
  x = (x | x << 8) & 0x00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0fu;
  return (x | x << 2) & 0x33333333u;
}
ADABM_DEVICE uint32_t pairs_of_nibbles(uint32_t x) {
  x = (x | x >> 2) & 0x0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0xffffu;
}

// Turns four codes from bytes into their stored form, in the low 4 * storage bits.
ADABM_DEVICE uint32_t narrow_four(int storage, uint32_t bytes) {
  if (storage == 8) return bytes;
  const uint32_t nibbles = nibbles_of_bytes(bytes);
  return storage == 4 ? nibbles : pairs_of_nibbles(nibbles);
}

// Returns 16 bytes of codes of kBits, 8 or 4, made of codes that are stored at another width; word(i) is the i-th word of the source.
template <int kBits, class Word>
ADABM_DEVICE ptx::Words4 convert_row(int storage, Word&& word) {
  ptx::Words4 out;
  if (kBits == 8 && storage == 4) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t x = word(i);
      out.w[2 * i] = bytes_of_nibbles(x), out.w[2 * i + 1] = bytes_of_nibbles(x >> 16);
    }
  } else if (kBits == 8) {
    const uint32_t x = word(0), low = nibbles_of_pairs(x), high = nibbles_of_pairs(x >> 16);
    out.w[0] = bytes_of_nibbles(low), out.w[1] = bytes_of_nibbles(low >> 16);
    out.w[2] = bytes_of_nibbles(high), out.w[3] = bytes_of_nibbles(high >> 16);
  } else if (storage == 2) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t x = word(i);
      out.w[2 * i] = nibbles_of_pairs(x), out.w[2 * i + 1] = nibbles_of_pairs(x >> 16);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) out.w[i] = nibbles_of_bytes(word(2 * i)) | nibbles_of_bytes(word(2 * i + 1)) << 16;
  }
  return out;
}

}  // namespace cuda
}  // namespace adabm
