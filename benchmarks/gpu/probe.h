// Entries of the probes' library, build/on_card/libadabm_probe.so. All pointers are device memory; probes.py fills the structs. Entries
// launch on the legacy default stream and wait for nothing; a launch that fails is their status, described by adabm_last_error().
#pragma once

#include <cstdint>

#include "adabm/adabm.h"

// Products of 64 rows by 128 columns by a depth of 32 on compute capability 9.0, 16 * rounds of them in a row by each warpgroup.
struct adabm_probe_products {
  int32_t shared_left;   // 1: the left matrix comes from shared memory too, 0: from registers
  int32_t zero_strides;  // 1: both strides of the left matrix are 0, so that its first eight rows of 16 bytes stand for all
  int32_t unit;          // where in shared memory the right matrix begins, in units of 16 bytes
  int32_t half_bytes, group_bytes;  // of the right matrix: from one half of the depth to the other, from eight columns to the next
  int32_t warpgroups;    // of a block, 1 or 2
  int32_t rounds, blocks;
  int32_t right_bytes;   // a multiple of 16
  const uint8_t* right;  // [right_bytes]
  const int8_t* left;    // [2, 64, 16]
  int32_t* sums;         // [64, 128]: 16 * rounds times the product, by the first warpgroup of the first block
  int64_t* clocks;       // [warpgroups], of the first block
};

// 128 threads copy 16 bytes each, `copies` times, and wait for them; `rounds` times.
struct adabm_probe_copies {
  int32_t copies;  // at most 112
  int32_t fence;   // 1: fence.proxy.async after the wait
  int32_t rounds, blocks;
  const uint8_t* source;  // [copies * 2048]
  int64_t* clocks;        // [1], of the first block
};

// Products of one warp, 16 rows by 8 columns by 32 bytes of depth, on compute capability 8.0 and newer: `rounds` times 8 by each of four
// warps of each block.
struct adabm_probe_warp_products {
  int32_t bits;  // of the operands: 8, or 4
  int32_t rounds, blocks;
  int32_t* sums;  // [128], what is left of the results, so that none is left out
};

extern "C" {
ADABM_API int32_t adabm_probe_products_cuda(const adabm_probe_products* args);
ADABM_API int32_t adabm_probe_copies_cuda(const adabm_probe_copies* args);
ADABM_API int32_t adabm_probe_warp_products_cuda(const adabm_probe_warp_products* args);
}
