// Convolutions whose geometry is not plain: strides, dilation, groups, kernels of even size, any padding. How their weights lie.
//
//   panels of a block that read the same channels, tap, channel quad, panel:  [16 outputs][4 channels] int8
//
// where taps are [part][kernel row][kernel column], a weight of nine bits being the sum of parts. A panel reads the channels of its
// outputs' groups, with zeros for those of the groups that an output is not of. Where every output has one channel (depthwise) the
// kernel's rows take the place of channels:
//
//   block of up to 4 panels, tap, panel:  [16 outputs][4 kernel rows] int8
//
// where taps are [part][kernel column][four kernel rows].
#pragma once

#include <vector>

#include "cpu/packed.h"

namespace adabm {

// Panels of one block whose outputs read the same channels.
struct PanelRun {
  int first_panel, panels;
  int channel, quads;  // read from this channel on, which all exist in memory
  size_t weights;      // bytes from the first panel's
};

std::vector<PanelRun> panel_runs(const PackedHeader& header);

// The group that an output belongs to, in the order in which a PixelShuffle has them stored.
int group_of(const PackedHeader& header, int output);

// Taps of a kernel row whose channels are adjacent in codes as in weights: all of them, or one.
inline int adjacent_taps(const PackedHeader& header) { return header.geometry.groups == 1 && header.geometry.dilation_w == 1 ? header.kernel_w : 1; }

inline int row_quads(const PackedHeader& header) { return (header.kernel_h + 3) / 4; }

// Whether two rows of outputs are computed together: their kernels' rows are four at most.
inline bool by_two_rows(const PackedHeader& header) {
  return header.depthwise() && header.kernel_h <= 3 && header.geometry.stride_h == 1 && header.geometry.dilation_h == 1;
}

// Fills in what the header holds of weights that obey the rules: offsets, parts and bytes.
void lay_out_general(const adabm_weights& weights, PackedHeader& header);
// Writes the weights behind their header, and its depths. `base` is where the header is, and zero otherwise.
void pack_general(const adabm_weights& weights, PackedHeader& header, int8_t* base);

}  // namespace adabm
