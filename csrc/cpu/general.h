// How the weights lie in memory where the geometry is not plain: with strides, dilation, groups, kernels of even size or any padding.
//
// The order is that of the direct form (cpu/packed.h) but for two things. First, outputs of different groups read different channels. The
// 16 outputs of a panel may lie in several groups; the panel then reads the channels of all of them, and an output has weights of 0 for the
// channels of other groups. Neighbouring panels of one block that read the same channels are a run (PanelRun), which one product takes:
//
//   run of panels, tap, channel quad, panel:  [16 outputs][4 channels] int8
//
// Its taps are [part][kernel row][kernel column]. Second, weights 2w + 1 of a box filter have nine bits: they are stored as the sum of
// parts of eight bits each, because there is no separate sum of codes here as the plain geometry has it.
//
// Where every output has one channel (depthwise), a quad of channels would have three zeros. There the rows of the kernel take the place of
// channels, four at a time (cpu/conv2d_depthwise.cpp):
//
//   block of up to 4 panels, tap, panel:  [16 outputs][4 kernel rows] int8
//
// Its taps are [part][kernel column][quad of kernel rows].
#pragma once

#include <vector>

#include "cpu/packed.h"

namespace adabm {

// Panels of one block whose outputs read the same channels.
struct PanelRun {
  int first_panel, panels;
  int channel, quads;  // the first channel that is read, and how many quads from there; all of them exist in memory
  size_t weights;      // bytes from the weights of the first panel to those of this run
};

// The runs of all panels of a layer, in ascending order.
std::vector<PanelRun> panel_runs(const PackedHeader& header);

// The group of an output, where outputs are counted in the order in which a PixelShuffle stores them.
int group_of(const PackedHeader& header, int output);

// How many neighbouring taps of a kernel row have adjacent channels in codes and in weights: all of the row, or one.
inline int adjacent_taps(const PackedHeader& header) { return header.geometry.groups == 1 && header.geometry.dilation_w == 1 ? header.kernel_w : 1; }

// How many quads the kernel rows of a depthwise convolution fill.
inline int row_quads(const PackedHeader& header) { return (header.kernel_h + 3) / 4; }

// Returns whether two rows of outputs are computed together: the kernels of both then cover at most four rows of codes.
inline bool by_two_rows(const PackedHeader& header) {
  return header.depthwise() && header.kernel_h <= 3 && header.geometry.stride_h == 1 && header.geometry.dilation_h == 1;
}

// Fills in the fields of the header for weights that obey the rules: geometry, parts, offset and bytes. Throws where a tile is asked for.
void lay_out_general(const adabm_weights& weights, PackedHeader& header);
// Writes the weights behind the header, and the depths into it. `base` points to the header; all bytes behind it must be 0.
void pack_general(const adabm_weights& weights, PackedHeader& header, int8_t* base);

}  // namespace adabm
