// Parameters and tiles of the convolution on mma.sync: what the launcher hands over, and which pixels a block computes.
#pragma once

#include <cstdint>

#include "adabm/adabm.h"
#include "cuda/divide.cuh"
#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/region.cuh"

namespace adabm {
namespace cuda {

constexpr int kWarpPixels = 32, kWarps = 4, kTilePixels = kWarps * kWarpPixels, kThreads = kWarps * 32;

// Tiles of pixels have other columns in memory, with their halo, where they lie along a border with kernels of its own.
enum TileShape { kInner, kAlongRow, kAlongColumn, kTileShapes };

struct Conv2dParams {
  const uint8_t* x_q;
  const int32_t* x_bits;
  const uint8_t* packed;
  const float *alpha, *beta, *slope, *out_grid;
  const void* residual;  // float32, or int16 where y_int16 is set, and so is y
  const int32_t* out_bits;
  void* y;
  uint8_t* y_q;
  int32_t* y_acc;
  uint8_t* y_image;
  int batch, height, width, code_channels;
  int out_channels, kernel_h, kernel_w;
  int taps_w;  // columns of the kernel that are taps: 1 where it is unfolded, else all
  int activation, shuffle, y_pitch;
  int packed_codes;  // ADABM_PACKED_*
  int config;        // conv2d_sm90.cuh alone: one more than a row of conv2d_configs.cuh, 0 for none named
  int border_kernels;
  int box;         // whether the 8-bit form needs the sum of the codes
  int four_bits;   // whether images of up to 4 bits take the 4-bit form
  int unused;      // where what follows lies four bytes earlier, ptxas 13.0 serialises the products of conv2d_sm90<false, 2>
  RegionParams region;
  int by_pixel;    // whether pixels that the region leaves out must stay as they are or are passed on
  int y_pairs;     // neighbouring outputs of even and odd number lie in aligned pairs in y and residual
  int y_int16;     // whether results become features of 16 bits, those in y and residual and those that codes are made of
  float y_units, y_unit;  // 2^fraction of them, and its inverse; 1 and 1 otherwise
  OutputTiling tiling;
  Form forms[2];     // 8 bits, 4 bits
  int column_shift;  // log2 of the columns of a tile of pixels
  int edge;          // pixels of a tile along a border with kernels of its own
  int plane_pixels;  // of shared memory for one row of 16 bytes of every pixel of the tile and its halo
  int tiles, inner_tiles, inner_across, row_edge_tiles, column_edge_tiles;  // of one image; the last two: along one row or column
  // Of the kernels on mma.sync alone:
  uint32_t x_image, y_image_features, y_q_image;  // elements from one image to the next: of x_q, of y and residual, of y_q
  int straight;      // whether tiles of outputs may take the straight-line forms of epilogue_sm80.cuh
  Divisor by_tiles, by_inner_across, by_halo[kTileShapes], by_group, by_shuffle;
};

// One tile of pixels.
struct Place {
  int row, column;    // first
  int rows, columns;  // of the tile in memory, columns being a power of two
  int end_row, end_column;  // where pixels of this tile end
  int shift;          // log2 of columns
  int kernel;         // class of kernel, with border_kernels
  TileShape shape;
};

ADABM_DEVICE int border_class(int position, int size, int pad) {
  const int before = pad - position, after = position + pad - (size - 1);
  return (before > 0 ? before : 0) * (pad + 1) + (after > 0 ? after : 0);
}

// number / length where that is less than the rows of a kernel, as along its borders: counted, which is shorter than a division.
ADABM_DEVICE int line_of(int number, int length) {
  int line = 0;
#pragma unroll 1
  for (; number >= length; number -= length) line++;
  return line;
}

ADABM_DEVICE Place place_tile(const Conv2dParams& p, int tile) {
  Place at;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2;
  // Without kernels of their own the borders are part of the inner area.
  const int top = p.border_kernels ? pad_h : 0, left = p.border_kernels ? pad_w : 0;
  int row_class = pad_h, column_class = pad_w;
  at.shape = kInner, at.shift = p.column_shift, at.columns = 1 << at.shift, at.rows = kTilePixels >> at.shift;
  at.end_row = p.height - top, at.end_column = p.width - left;
  if (tile < p.inner_tiles) {
    at.row = top + p.by_inner_across.quotient(tile) * at.rows, at.column = left + p.by_inner_across.rest(tile) * at.columns;
  } else {
    const int row_edges = 2 * pad_h * p.row_edge_tiles, column_edges = 2 * pad_w * p.column_edge_tiles;
    int i = tile - p.inner_tiles, row_edge = -1, column_edge = -1, along = 0;
    at.shape = kAlongColumn;
    if (i < row_edges) {
      row_edge = line_of(i, p.row_edge_tiles), along = i - row_edge * p.row_edge_tiles;
      at.shape = kAlongRow, at.rows = 1, at.columns = p.edge, at.shift = 31 - __builtin_clz(p.edge);
      at.column = left + along * p.edge;
    } else if ((i -= row_edges) < column_edges) {
      column_edge = line_of(i, p.column_edge_tiles), along = i - column_edge * p.column_edge_tiles;
      at.rows = p.edge, at.columns = 1, at.shift = 0;
      at.row = top + along * p.edge;
    } else {
      i -= column_edges;
      row_edge = line_of(i, 2 * pad_w), column_edge = i - row_edge * 2 * pad_w;
      at.rows = 1, at.columns = 1, at.shift = 0;
    }
    if (row_edge >= 0) {
      at.row = row_edge < pad_h ? row_edge : p.height - 2 * pad_h + row_edge, at.end_row = at.row + 1;
      row_class = row_edge < pad_h ? row_edge : row_edge + 1;
    }
    if (column_edge >= 0) {
      at.column = column_edge < pad_w ? column_edge : p.width - 2 * pad_w + column_edge, at.end_column = at.column + 1;
      column_class = column_edge < pad_w ? column_edge : column_edge + 1;
    }
  }
  at.kernel = row_class * p.kernel_w + column_class;
  return at;
}

// The pixels of a tile.
ADABM_DEVICE Rectangle pixels_of(const Place& at) {
  const int end_row = at.row + at.rows, end_column = at.column + at.columns;
  return {at.row, at.column, end_row < at.end_row ? end_row : at.end_row, end_column < at.end_column ? end_column : at.end_column};
}

}  // namespace cuda
}  // namespace adabm
