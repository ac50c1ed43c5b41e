// The parameters that the launchers hand to the kernels of a convolution, and the addresses of a pixel that follow from them. Kernels on
// mma.sync take Conv2dParams alone; kernels of compute capability 9.0 take more beside it (tile_sm90.cuh, resblock_sm90.cuh).
#pragma once

#include <cstdint>

#include "adabm/adabm.h"
#include "cuda/divide.cuh"
#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/region.cuh"

namespace adabm {
namespace cuda {

// Tiles of pixels have other columns in memory, with their halo, where they lie along a border with kernels of its own.
enum TileShape { kInner, kAlongRow, kAlongColumn, kTileShapes };

struct Conv2dParams {
  const uint8_t* x_q;
  const int32_t* x_bits;
  const uint8_t* packed;
  const float *alpha, *beta, *slope, *out_grid;
  const void* residual;  // float32, or int16 where y_int16 is set; y has the same format
  const int32_t* out_bits;
  void* y;
  uint8_t* y_q;
  int32_t* y_acc;
  uint8_t* y_image;
  int batch, height, width, code_channels;
  int out_channels, kernel_h, kernel_w;
  int taps_w;  // columns of the kernel that are taps: 1 where the image is unfolded, else all
  int activation, shuffle, y_pitch;
  int packed_codes;  // ADABM_PACKED_*
  int config;        // read by conv2d_sm90.cuh alone: 1 + the named row of conv2d_configs.cuh, 0 where none is named
  int border_kernels;
  int box;         // 1 where the 8-bit form needs the sum of the codes
  int four_bits;   // 1 where images of up to 4 bits take the 4-bit form
  int unused;      // where what follows lies four bytes earlier, ptxas 13.0 serialises the products of conv2d_sm90<false, 2>
  RegionParams region;
  int by_pixel;    // 1 where pixels outside the region must stay as they are or be passed on
  int y_pairs;     // neighbouring outputs of even and odd number lie in aligned pairs in y and residual
  int y_int16;     // 1 where results become features of 16 bits: those in y and residual, and those from which codes are made
  float y_units, y_unit;  // 2^fraction of 16-bit features, and its inverse; 1 and 1 otherwise
  OutputTiling tiling;
  Form forms[2];     // the 8-bit form and the 4-bit form
  int column_shift;  // log2 of the columns of a tile of pixels
  int edge;          // pixels of a tile along a border, with border_kernels
  int plane_pixels;  // pixels for which a plane of shared memory has room (16 bytes of every pixel of the tile and its halo)
  int tiles, inner_tiles, inner_across, row_edge_tiles, column_edge_tiles;  // numbers of tiles of one image; the last two along one row or column
  // The fields below are read by the kernels on mma.sync alone.
  uint32_t x_image, y_image_features, y_q_image;  // elements from one image to the next: of x_q, of y and residual, of y_q
  int straight;      // 1 where tiles of outputs may take the straight forms of epilogue_sm80.cuh
  Divisor by_tiles, by_inner_across, by_halo[kTileShapes], by_group, by_shuffle;
};

ADABM_DEVICE int border_class(int position, int size, int pad) {
  const int before = pad - position, after = position + pad - (size - 1);
  return (before > 0 ? before : 0) * (pad + 1) + (after > 0 ? after : 0);
}

}  // namespace cuda
}  // namespace adabm
