// The packed weights of one layer: a header, then the panels of each tile in use, then for each bit-width that uses a tile other than
// direct the sums from which its accumulators start.
//
// Weights are packed once and read by every block of pixels, so they lie in the order in which a block reads them, from the first
// byte to the last, and one instruction takes 64 of them: four channels of 16 outputs, which is what a dot product of bytes
// multiplies by four codes that it has 16 times over.
//
//   kernel, block of up to 4 panels, product tap, channel quad, panel:  [16 outputs][4 channels] int8, 64 bytes, aligned
//
// The product taps of the direct form are the taps of the kernel, or with kn2row its rows. The product taps of a tile on bytes are
// [column tap][row tap][part], where a weight that does not fit a byte is the sum of its parts. F(1, 3) along the columns accumulates the
// three kernel columns, so there they come last: [row tap][part][kernel column]. Tiles on words have int16
// [column tap][row tap][pair of channels][panel][16][2] instead, which takes as many bytes as two parts, or with kn2row
// [row tap][three rows of the kernel][pair of channels]. The sums are int32 [column tap][output row][panels * 16]: they undo the shift
// that makes transformed codes unsigned. Outputs and channels that do not exist have weights of zero. The packed weights are the same for
// every instruction set.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "adabm/adabm.h"
#include "common/geometry.h"
#include "common/rules.h"
#include "cpu/isa/kernels.h"

namespace adabm {

constexpr uint32_t kPackedMagic = 0x4d424441u;  // "ADBM"
constexpr int kPartGroups = 3;

struct PackedHeader {
  uint32_t magic, version;
  int32_t out_channels, channels, kernel_h, kernel_w, border_kernels;
  int32_t kn2row;  // 1 where the direct form takes the columns of the kernel as outputs too, see kernel_columns_out
  int32_t tile_for_bits[ADABM_BIT_WIDTHS];
  uint64_t tile_offset[ADABM_TILE_COUNT];  // bytes from the header; 0 where the tile is not in use
  uint64_t start_offset[ADABM_BIT_WIDTHS];  // bytes from the header to the sums; 0 where there are none
  uint64_t bytes;
  uint8_t parts[ADABM_TILE_COUNT][kMaxTaps][kPartGroups];  // parts of the row taps of a tile, for every column tap, by part_group
  // For codes of each bit-width and each tap of its tile, [column tap][row tap]: how many consecutive quads, counted from the start of the
  // tap, may be summed in 16 bits. Channels 0 and 1 of a quad have one such sum, channels 2 and 3 another. The number is a power of two, or
  // 0 where a single quad can overflow.
  uint16_t depth[ADABM_BIT_WIDTHS][kMaxTaps][kMaxRowTaps];
  uint16_t direct_depth[ADABM_BIT_WIDTHS];  // the same for the direct form, whose taps all have one depth
  // The fields below are read only where the geometry is not plain, which has a direct form of its own (cpu/general.h).
  adabm_geometry geometry;
  int32_t shuffle, box_filter;  // as in adabm_weights
  int32_t weight_parts;         // how many bytes have one weight as their sum

  int quads() const { return (channels + 3) / 4; }
  int panels() const { return (out_channels + kPanel - 1) / kPanel; }
  int kernels() const { return border_kernels ? kernel_h * kernel_w : 1; }
  bool general() const { return !is_plain(geometry); }
  // Tells whether every output has one channel.
  bool depthwise() const { return general() && geometry.groups == channels; }
};

constexpr int kDepths = 13;  // how many depths there are: 1, 2, 4, ... quads
constexpr size_t kPackedHeaderBytes = 1024;  // a multiple of 64, so that panels stay aligned
static_assert(sizeof(PackedHeader) <= kPackedHeaderBytes, "the header has outgrown its place");

// F(outputs, kernel) along one axis: `codes` is B^T and `weights` is G of adabm_kernels/planning/tiles.py. F(1, 3) has one tap for codes
// and three for weights.
struct Line {
  int outputs, kernel, taps;
  int run;  // how many kernel columns accumulate within a tap: 3 for F(1, 3), else 1
  int codes[kMaxTaps][kMaxTaps];
  int weights[kMaxTaps][kMaxTileKernel];  // [tap * run]
};

struct TileTables {
  Line rows, columns;  // kernels are as wide as high, but with kn2row
  bool words;  // true where operands have 16 bits, which hold any transformed code and weight without a shift or parts
  // True where the columns of the kernel are outputs too, see kernel_columns_out; its rows are taken three at a time, and the products add up.
  bool kn2row;
};
extern const TileTables kTiles[ADABM_TILE_COUNT];  // the entry of ADABM_TILE_DIRECT is empty

// The group of a row tap. Weights of one group have equally many parts: the taps at 1 and -1 are a group, the tap at 2, whose weights are
// the largest, is another, and the outer taps are the third.
inline int part_group(const Line& rows, int tap) { return tap >= rows.outputs ? 2 : tap / 2; }

// The number that is added to a tap of transformed codes of `bits` bits so that the smallest becomes 0; `largest` gets the largest shifted
// code.
int tap_shift(const TileTables& tile, int row_tap, int column_tap, int bits, int* largest);

// The number of product taps of a tile.
int product_taps(const PackedHeader& header, int tile);

// The byte at which the weight of output `o`, tap `tap` and channel `c` stands in the packed weights of a tile.
inline size_t weight_offset(const PackedHeader& header, int taps, int o, int tap, int c) {
  const int panel = o / kPanel, block = panel / kMaxPanels * kMaxPanels, panels = std::min(kMaxPanels, header.panels() - block);
  return (static_cast<size_t>(block) * taps * header.quads() + (static_cast<size_t>(tap) * header.quads() + c / 4) * panels + panel - block) * (kPanel * 4) +
         (o % kPanel) * 4 + c % 4;
}

// The layer with the columns of its kernel as outputs. Few outputs leave most lanes of a panel idle; then every kernel column gets lanes of
// its own (kn2row: Vasudevan et al., ASAP 2017, along the columns): output s * K + o of the kernel R x 1 is what kernel column s adds to
// output o of the pixel that lies s - S / 2 columns before.
inline PackedHeader kernel_columns_out(const PackedHeader& header) {
  PackedHeader form = header;
  form.out_channels *= header.kernel_w, form.kernel_w = 1;
  return form;
}

// The layer in the form in which the weights of a tile are packed: with or without the columns of the kernel as outputs.
inline PackedHeader form_of(const PackedHeader& header, int tile) {
  const bool columns_out = tile == ADABM_TILE_DIRECT ? header.kn2row : kTiles[tile].kn2row;
  return columns_out ? kernel_columns_out(header) : header;
}

inline size_t panel_bytes(const PackedHeader& header, int taps) { return static_cast<size_t>(taps) * header.quads() * kPanel * 4; }

}  // namespace adabm
