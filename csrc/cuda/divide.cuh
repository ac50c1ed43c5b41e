// Divisions by numbers that are known only at run time, without the twenty instructions of one.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace adabm {
namespace cuda {

// Divides numbers of 0..2^31 - 1 by one that the host knows, without the twenty instructions of a division. The factor is
// 2^(31 + s) / divisor, rounded up, where 2^s is at least the divisor: too large by less than 1, which makes less than 2^-s of a quotient.
struct Divisor {
  uint32_t divisor, factor;
  int shift;
  ADABM_DEVICE int quotient(int number) const { return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(number)) * factor >> shift); }
  ADABM_DEVICE int rest(int number) const { return number - quotient(number) * static_cast<int>(divisor); }
};

inline Divisor make_divisor(int divisor) {
  int log = 0;
  while ((int64_t{1} << log) < divisor) log++;
  return {static_cast<uint32_t>(divisor), static_cast<uint32_t>(((int64_t{1} << (31 + log)) + divisor - 1) / divisor), 31 + log};
}

// Divides by a number that only the block knows: exact while number times divisor stays below 2^20, as pixels and words of a tile do.
struct BlockDivisor {
  unsigned divisor, reciprocal;
  ADABM_DEVICE explicit BlockDivisor(int d) : divisor(d), reciprocal(((1u << 20) + d - 1) / d) {}
  ADABM_DEVICE int quotient(int number) const { return number * reciprocal >> 20; }
  ADABM_DEVICE int rest(int number) const { return number - quotient(number) * divisor; }
};

}  // namespace cuda
}  // namespace adabm
