// One convolution being computed: where its rows go and how a finished block of accumulators leaves.
//
// The work is divided three times, each time so that what is read again is still near:
//
//   call  ->  bands of rows      one after the other for each thread (cpu/bands.h)
//   band  ->  groups of rows     the rows of one tile: one row in the direct form, two to four in tiles
//   group ->  blocks of pixels   as many pixels as have room for their sums in registers (cpu/isa/kernels.h)
//
// A block goes through the same stations in every form: codes are brought into the order in which products read them, products
// are summed in 32 bits, and the epilogue turns the sums into what the call asks for (features, codes of the next layer, pixels),
// without a trip through memory beyond the nearest cache. The forms differ in the first two stations alone:
//
//   conv2d_direct.cpp   reads the codes where they lie, a tap at a time, and copies them only at the border of the image
//   conv2d_tiled.cpp    transforms the codes of a group of tiles; sums are transformed back on their way out
//   conv2d_kn2row.cpp   for few outputs: takes the columns of the kernel as outputs too, and adds them up where they belong
//   conv2d_general.cpp  where the geometry is not plain: reads taps wherever strides and dilation put them
//   conv2d_depthwise.cpp  where every output has one channel: kernel rows take the place of channels
//
// The image has no border in memory. Zeros around it would be wrong anyway: a code of 0 stands for the least value of the grid and
// not for the value 0. Products at the border take codes of 0 for the missing pixels, which add nothing, and `beta`, which differs by
// border class, holds the offset of the grid times the weights of only the taps that lie inside (docs/numerics.md).
#pragma once

#include <cstdint>
#include <vector>

#include "common/geometry.h"
#include "cpu/bands.h"
#include "cpu/features.h"
#include "cpu/isa/kernels.h"
#include "cpu/packed.h"
#include "cpu/spans.h"

namespace adabm {

// How many tiles are transformed and multiplied together: weights are read once for each group, and codes and sums stay in the nearest
// caches meanwhile.
constexpr int kGroupTiles = 18;
// How many product blocks of the direct form go through the epilogue together.
constexpr int kDirectBlocks = 3;
constexpr int kMaxBlockPixels = kGroupTiles * kMaxTileOutputs;
static_assert(kMaxBlockPixels >= kDirectBlocks * kMaxPixels, "a group of the direct form must fit too");

constexpr int kSparePixels = 4096 / (sizeof(int32_t) * kMaxPanels * kPanel);

// Scratch memory of one thread. It grows to the size that the channels and widths of the layers need, and is kept.
struct Scratch {
  std::vector<uint8_t> patch, codes;  // codes copied at the border of the image; transformed codes
  std::vector<uint8_t> zeros;  // stands for a row outside the image
  std::vector<int32_t> box, pixel_sums;
  // The sums of kn2row: for each row of a tile a group of pixels and the columns beside it.
  alignas(64) int32_t columns[kMaxTileOutputs][(kMaxBlockPixels + kMaxKernel) * kMaxPanels * kPanel];
  alignas(64) int32_t products[kMaxTileOutputs * kMaxTaps * kGroupTiles * kMaxPanels * kPanel];
  // Vector forms read one pixel more than they write. The array is a whole page longer, so that the arrays after it keep their places within
  // pages: at other places convolutions took up to 5 % longer.
  alignas(64) int32_t acc[(kMaxBlockPixels + kSparePixels) * kMaxPanels * kPanel];
  // Values and codes that a PixelShuffle takes apart, on their way to memory.
  alignas(64) float values[kMaxBlockPixels * kMaxPanels * kPanel];
  alignas(64) uint8_t value_codes[kMaxBlockPixels * kMaxPanels * kPanel];
};
Scratch& thread_scratch();

// One call of the convolution: its arguments and the numbers that follow from them. Threads share it and do not change it.
struct Convolution {
  const adabm_conv2d_args& a;
  const Kernels& kernels;
  const PackedHeader& header;
  Axes axes;
  int out_height, out_width;   // size of the output before a PixelShuffle
  int row_bytes, pixel_bytes;  // bytes of a row and of a pixel of x_q
  int box_stride;              // elements of a row of box_rows: the width, and a vector that may begin in its last column
  int out_channels, code_channels;  // channels of one output pixel in y, and in codes
  uint8_t* codes;                   // y_q, or y_image, which is treated as codes of 8 bits on the grid 0..255, without padding channels
  int y_pitch;                      // elements from one output pixel to the next
  FeatureFormat features;           // format of y and residual
  bool contiguous;                  // true where the outputs of every panel are adjacent in memory
  std::vector<int32_t> y_lane, q_lane;  // element of each output in y and in codes, counted from the first of its pixel
  // Adjacent outputs of a product block, listed where whole panels are not adjacent: `length` outputs from output `first` of the block on go
  // to the elements of the pixel from `to` on.
  struct Run {
    int first, length;
    int32_t to;
  };
  std::vector<std::vector<Run>> y_runs, q_runs;  // the runs of each block
  bool exact;  // true where nothing may be written beside the region
  Bands bands;

  Convolution(const adabm_conv2d_args& args, const Kernels& kernels, const PackedHeader& header);

  void run_band(const Band& band) const;
  // The columns of one of a group's rows that are written.
  const Spans& written(const RowGroup& group, int row) const { return exact ? group.computed(row) : *group.spans; }

 private:
  // Groups of rows of an image, and the columns to which they are limited; of these only the columns in the region are computed.
  struct Part {
    int image;
    const RowGroup *begin, *end;
    Span columns;
  };
  void run_groups(const Band& band) const;
  // The RowOutput of each row of a group; rows that a shorter group lacks get that of its last row.
  struct Rows;
  // Returns SUM of the codes under the kernel for the pixels of a group within `columns`, [rows][box_stride], in the scratch of the thread;
  // null without box_filter.
  const int32_t* box_rows(int image, const RowGroup& group, Span columns) const;
  void run_direct(const Part& part) const;
  // These two compute where the geometry is not plain.
  void run_general(const Part& part) const;
  void run_depthwise(const Part& part) const;
  // Computes one of the outer columns with border_kernels; its pixels share one kernel in all rows that are not outer rows too.
  void run_outer_column(const Part& part, int column) const;
  void run_outer_pixels(int image, int first_row, int end_row, int column) const;
  void run_kn2row(const Part& part) const;
  void run_kn2row_tiled(const Part& part) const;
  void run_tiled(const Part& part) const;
  // Writes the pixels of a band that are passed on.
  void pass_on(const Band& band) const;
  // Writes zeros, and their codes on `grid`, to `pixels` pixels from `pixel` on.
  void pass_zeros_on(ptrdiff_t pixel, int pixels, const QuantizeArgs& grid) const;
};

// Outputs of a row from `column` on, at most `end - column`. With `inner` all their taps lie inside the image; otherwise taps of each may lie
// outside. rows_inside: true where the rows of the kernel lie inside the image.
struct Stretch {
  bool inner;
  int pixels;
};
Stretch stretch_of(const Axis& columns, int width, bool rows_inside, int column, int end);

// Copies the rows and columns under a block into `patch`, with zeros where they fall outside the image.
void copy_patch(const uint8_t* image, int height, int width, int pixel_bytes, int row, int column, int rows, int columns, uint8_t* patch);

// The kernel class of a row or column in a layer with border_kernels.
int kernel_class(int position, int size, int pad);

// Takes the outputs of one row to memory: runs the epilogue of its blocks and pads its codes.
class RowOutput {
 public:
  // written: the columns that may be written; results beside them are dropped.
  RowOutput(const Convolution& convolution, int image, int row, const Spans& written);

  // Brings the residual of a block into the caches while its products run; the prefetcher of the processor does not foresee these reads.
  void prefetch(int first_panel, int panels, int column, int pixels) const;
  // Runs the epilogue of `pixels` pixels from `column` on. products.acc is scratch for the accumulators, or the products themselves where
  // products.outputs is 1. box: [pixels] from box_rows, or null.
  void write(const UntileArgs& products, int first_panel, int column, int pixels, const int32_t* box);
  // Returns the epilogue of a block of pixels whose sums are not in memory; null where some of the pixels must not be written, or where their
  // outputs are not adjacent.
  const EpilogueArgs* epilogue_of(int first_panel, int panels, int column, int pixels);
  // Zeros the padding channels of the row's codes.
  void finish() const;

 private:
  const Convolution& c_;
  const Spans& written_;
  void set_epilogue(int first_panel, int panels, int column, int pixels);
  void write_pixels(const UntileArgs& products, int first_panel, int column, int pixels, const int32_t* box);
  void write_parted(const UntileArgs& products, int first_panel);

  EpilogueArgs e_ = {};
  const float* beta_[kMaxBlockPixels];
  const float* row_beta_;
  const float* row_alpha_;
  ptrdiff_t out_row_;  // number of output pixels before this row
};

struct Convolution::Rows {
  RowOutput output[kMaxTileOutputs];

  Rows(const Convolution& c, int image, const RowGroup& group)
      : output{of(c, image, group, 0), of(c, image, group, 1), of(c, image, group, 2), of(c, image, group, 3)} {}

 private:
  static RowOutput of(const Convolution& c, int image, const RowGroup& group, int i) {
    const int row = group.row + std::min(i, group.rows - 1);
    return {c, image, row, c.written(group, row)};
  }
};

}  // namespace adabm
