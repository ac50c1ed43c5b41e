// The packed form of one layer's weights: a header, then for each tile in use its panels.
//
//   kernel b, panel p, product tap t, channel quad k:  [16 outputs][4 channels] int8, 64 bytes, 64-byte aligned
//
// with missing outputs and channels zero. It is the same for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "adabm/adabm.h"
#include "cpu/kernels.h"

namespace adabm {

constexpr uint32_t kPackedMagic = 0x4d424441u;  // "ADBM"

struct PackedHeader {
  uint32_t magic, version;
  int32_t out_channels, channels, kernel_h, kernel_w, border_kernels;
  int32_t tile_for_bits[ADABM_BIT_WIDTHS];
  uint64_t tile_offset[ADABM_TILE_COUNT];  // bytes from the header; 0 where the tile is not in use
  uint64_t bytes;

  int quads() const { return (channels + 3) / 4; }
  int panels() const { return (out_channels + kPanel - 1) / kPanel; }
  int kernels() const { return border_kernels ? kernel_h * kernel_w : 1; }
};

constexpr size_t kPackedHeaderBytes = 192;  // a multiple of 64, so that panels stay aligned
static_assert(sizeof(PackedHeader) <= kPackedHeaderBytes, "the header has outgrown its place");

inline size_t panel_bytes(const PackedHeader& header, int taps) {
  return static_cast<size_t>(taps) * header.quads() * kPanel * 4;
}

}  // namespace adabm
