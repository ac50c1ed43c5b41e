// Tiles of the convolution on mma.sync: which 128 pixels a block computes, and where they lie in shared memory.
//
// Inner pixels are cut into tiles of 16 x 8 or 8 x 16, whichever takes fewer. Columns are a power of two, so that a pixel's row and column
// are a shift and a mask of its number, and so that eight neighbouring numbers, which is what one ldmatrix reads, lie side by side.
//
//   without border kernels            with border kernels of a 3x3 kernel (the collapsed upsampler)
//   +------+------+------+            c--------row---------c      c: a corner of one pixel
//   | tile | tile | tile |            |+------+------+----+|      row: lines of `edge` pixels along the top and the bottom
//   +------+------+------+            ||inner |inner |    |col    col: the same along both sides
//   | tile | tile | cut off           ||      |      |    ||
//   +------+------+------+            c--------------------c
//
// A kernel of its own for each class of border pixels means that a tile has one class throughout, which is why borders have tiles of one
// row, one column or one pixel. They are numbered behind the inner ones in the same launch: first all of rows, then columns, then corners.
// There are few of them, and place_tile finds theirs by counting where inner tiles take a reciprocal.
#pragma once

#include "cuda/conv2d_params.cuh"

namespace adabm {
namespace cuda {

constexpr int kWarpPixels = 32, kWarps = 4, kTilePixels = kWarps * kWarpPixels, kThreads = kWarps * 32;

// One tile of pixels.
struct Place {
  int row, column;    // the first pixel
  int rows, columns;  // size of the tile in memory; columns are a power of two
  int end_row, end_column;  // the row and column behind the last pixel of this tile
  int shift;          // log2 of columns
  int kernel;         // class of kernel, with border_kernels
  TileShape shape;
};

// Returns number / length by counting, which is shorter than a division where the quotient is less than the rows of a kernel, as along borders.
ADABM_DEVICE int line_of(int number, int length) {
  int line = 0;
#pragma unroll 1
  for (; number >= length; number -= length) line++;
  return line;
}

ADABM_DEVICE Place place_tile(const Conv2dParams& p, int tile) {
  Place at;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2;
  // Without border_kernels the borders are part of the inner area.
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

// Returns the pixels of a tile.
ADABM_DEVICE Rectangle pixels_of(const Place& at) {
  const int end_row = at.row + at.rows, end_column = at.column + at.columns;
  return {at.row, at.column, end_row < at.end_row ? end_row : at.end_row, end_column < at.end_column ? end_column : at.end_column};
}

}  // namespace cuda
}  // namespace adabm
