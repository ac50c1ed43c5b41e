// How many products may be summed in 16 bits, found from the actual weights (PackedHeader::depth).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/packed.h"

namespace adabm {

// The largest sums of 2^n quads, [n], for codes of 1 bit.
using Sums = std::array<int64_t, kDepths>;

// Takes in a run of `count` quads of weights, quad_bytes apart, whose codes are at most `reach` where those of the layer are at most 1.
void add_largest_sums(const int8_t* w, ptrdiff_t quad_bytes, int count, int reach, Sums& sums);

// PackedHeader::depth for codes of so many bits.
uint16_t sum_depth(const Sums& sums, int bits);

}  // namespace adabm
