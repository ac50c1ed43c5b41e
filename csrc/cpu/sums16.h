// How many products may be summed in 16 bits, found from the actual weights (PackedHeader::depth).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/packed.h"

namespace adabm {

// [n]: the largest sum of 2^n quads, for codes of 1 bit.
using Sums = std::array<int64_t, kDepths>;

// Raises `sums` to the largest sums of a run of `count` quads of weights, which lie quad_bytes apart. Its codes are at most `reach` where
// the codes of the layer are at most 1.
void add_largest_sums(const int8_t* w, ptrdiff_t quad_bytes, int count, int reach, Sums& sums);

// Returns PackedHeader::depth for codes of `bits` bits.
uint16_t sum_depth(const Sums& sums, int bits);

}  // namespace adabm
