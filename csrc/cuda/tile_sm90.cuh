// Tiles and strips of the kernels of compute capability 9.0: which pixels they are, and how those lie in shared memory.
//
// The product wgmma takes 64 outputs by up to 256 pixels, and reads the pixels from shared memory by a descriptor: a first address, a
// stride from one group of eight pixels to the next, and a stride from one 16 bytes of channels to the next. A strip has the pixels of one such
// product here, 8 columns by 16 rows.
//
//   a tile of two strips with the halo of a 3x3 kernel, one plane (16 bytes of every pixel):
//
//     row -1   x|xxxxxxxx|xxxxxxxx|x      halo_columns = 18 pixels in a row
//     row 0    x|00000000|11111111|x      a group of strip 0 is eight pixels side by side: 128 bytes
//     row 1    x|00000000|11111111|x      the next group is one row of the tile further: the stride of the descriptor
//      ...
//     row 16   x|xxxxxxxx|xxxxxxxx|x
//
// A tap of the kernel is the same strip, begun some pixels later: it only moves the first address. So the tile lies in memory once, all
// taps read it in place, and there is no im2col. The next 16 channels are the next plane.
//
// Borders with kernels of their own are one strip along the border: groups of eight follow one another along it, and a tile along a column
// lies upright, column by column, so that its groups too are 128 bytes in a row. Tile holds these strides; all later code uses them and does
// not depend on how a tile lies.
#pragma once

#include "cuda/conv2d_configs.cuh"
#include "cuda/conv2d_params.cuh"
#include "cuda/ptx_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

constexpr int kGroupThreads = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kStepBytes = 32;           // bytes of every pixel and output in one product: its depth
constexpr int kSharedBytes = 227 << 10;
// Descriptors of strips move by whole taps and planes. Neither their addresses nor their strides reach beyond shared memory, and shared memory
// does not reach beyond the largest address of a descriptor.
static_assert(kSharedBytes + (1 << 10) <= ptx::kDescriptorBytes, "descriptors must reach all of shared memory, and what the system keeps of it");
constexpr int kGroupBytes = 8 * kRowBytes;  // bytes of eight rows of a matrix in shared memory
// Ones for 64 outputs, as weights lie: [half of the depth][output][16 bytes].
constexpr int kOnesBytes = 2 * kMaxTileOutputs * kRowBytes;
constexpr int kBarrierBytes = (2 * kMaxStages * ptx::kBarrierBytes + 127) / 128 * 128, kBarrierRoom = kBarrierBytes + kOnesBytes;
constexpr int kWeightRoom = 2 * kGroupBytes;  // spare bytes behind the weights of a stage
// Bytes from one pixel to the next where its codes, or the sums of 16 outputs, are staged: stores and loads then meet no bank twice.
constexpr int kStagedPitch = 80;
constexpr int kResidentTaps = 9, kResidentSteps = 2;

// The straight form that the strips of a launch can take (epilogue_sm90.cuh), named after what is read and written besides codes. Apart: the
// features of neighbouring pixels are not 64 elements apart, as pixels have more features or a PixelShuffle separates them. Fours: any of these
// and images of bytes, four outputs at a time, in the kernel whose weights are staged (epilogue_staged_sm90.cuh).
enum class Straight { kNone, kCodes, kFloat32, kInt16, kFloat32Apart, kFours };

struct Conv2dParams90 {
  Conv2dParams c;    // with forms[0] alone, and with the tiles of this kernel
  int steps;         // number of steps of 32 channels in all
  int stages, stage_bytes, code_bytes;  // stages in shared memory, bytes of a stage, and bytes of its codes, which its weights follow
  int stage_steps;   // steps in a stage
  int blocks;        // blocks along x of the grid
  int tensor_bytes;  // bytes of a box of codes; 0 where threads copy
  ptx::TensorMap map;
};

// One tile of pixels: how its pixels lie in shared memory, and which pixel of a strip lies where. Inner tiles are rows of the
// image; a border of one pixel with a kernel of its own is one strip along it.
struct Tile {
  int row, column, end_row, end_column, kernel;
  int halo_rows, halo_columns, row_step, column_step;          // steps are counted in pixels of shared memory
  int group_rows, group_columns, pixel_rows, pixel_columns;    // from one group of 8 to the next, from one pixel to the next
  int strips, strip_columns;
};

// kBorderKernels: false where the kernel has none.
template <int kStrips, bool kBorderKernels = true>
ADABM_DEVICE Tile place(const Conv2dParams& p, int tile) {
  Tile at;
  const int pad_h = p.kernel_h / 2, pad_w = p.kernel_w / 2;
  const bool border_kernels = kBorderKernels && p.border_kernels;
  const int top = border_kernels ? pad_h : 0, left = border_kernels ? pad_w : 0;
  int row_class = pad_h, column_class = pad_w, rows = kStripRows, columns = kStrips * kStripColumns;
  bool upright = false;
  at.end_row = p.height - top, at.end_column = p.width - left;
  at.group_rows = 1, at.group_columns = 0, at.pixel_rows = 0, at.pixel_columns = 1, at.strips = kStrips, at.strip_columns = kStripColumns;
  if (!border_kernels || tile < p.inner_tiles) {
    at.row = top + p.by_inner_across.quotient(tile) * kStripRows, at.column = left + p.by_inner_across.rest(tile) * columns;
  } else {
    const int row_edges = 2 * pad_h * p.row_edge_tiles, column_edges = 2 * pad_w * p.column_edge_tiles;
    int i = tile - p.inner_tiles, row_edge = -1, column_edge = -1;
    at.strips = 1, at.strip_columns = 0;
    if (i < row_edges) {
      row_edge = i / p.row_edge_tiles;
      at.column = left + i % p.row_edge_tiles * p.edge;
      at.group_rows = 0, at.group_columns = 8, rows = 1, columns = p.edge;
    } else if ((i -= row_edges) < column_edges) {
      column_edge = i / p.column_edge_tiles;
      at.row = top + i % p.column_edge_tiles * p.edge;
      at.group_rows = 8, at.pixel_rows = 1, at.pixel_columns = 0, rows = p.edge, columns = 1, upright = true;
    } else {
      i -= column_edges;
      row_edge = i / (2 * pad_w), column_edge = i % (2 * pad_w);
      at.group_rows = 0, at.group_columns = 8, rows = 1, columns = p.edge;
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
  at.halo_rows = rows + 2 * pad_h, at.halo_columns = columns + 2 * pad_w;
  at.row_step = upright ? 1 : at.halo_columns, at.column_step = upright ? at.halo_rows : 1;
  return at;
}

// Returns the pixels of a tile.
ADABM_DEVICE Rectangle pixels_of(const Conv2dParams& p, const Tile& at) {
  const int end_row = at.row + at.halo_rows - p.kernel_h / 2 * 2, end_column = at.column + at.halo_columns - p.kernel_w / 2 * 2;
  return {at.row, at.column, end_row < at.end_row ? end_row : at.end_row, end_column < at.end_column ? end_column : at.end_column};
}

// Returns the pixels of a strip that begins inside the image, in an inner tile.
ADABM_DEVICE Rectangle pixels_of_strip(const Conv2dParams& p, const Tile& at, int strip) {
  Rectangle pixels = pixels_of(p, at);
  pixels.column += strip * kStripColumns;
  if (pixels.column + kStripColumns < pixels.end_column) pixels.end_column = pixels.column + kStripColumns;
  return pixels;
}

// Returns the descriptor of the pixels of a strip in the first 32 channels at `codes`, for the first tap.
ADABM_DEVICE uint64_t strip_descriptor(const Tile& at, uint32_t codes, uint32_t plane_bytes, int strip) {
  const int group = at.group_rows * at.row_step + at.group_columns * at.column_step;
  return ptx::matrix_descriptor(codes + strip * at.strip_columns * at.column_step * kRowBytes, plane_bytes, group * kRowBytes);
}

// Returns the share of a strip that begins inside the image, in an inner tile whose share is `tile`.
ADABM_DEVICE Share share_of_strip(const Conv2dParams& p, const Tile& at, int image, Share tile, int strip) {
  return tile == Share::kAllComputed ? tile : share_inside(p.region, image, pixels_of_strip(p, at, strip));
}

// Finds which strips of this warpgroup, every second of the first `strips`, have a pixel to compute or pass on, and which have one to compute:
// bit i for strip i. `share` is the share of the whole tile.
struct Strips {
  uint32_t with_work, computed;
};

ADABM_DEVICE Strips strips_with_work(const Conv2dParams& p, const Tile& at, int image, Share share, int consumer, int strips) {
  Strips found = {0, 0};
#pragma unroll 1
  for (int strip = consumer; strip < strips; strip += kConsumers) {
    const Share here = share_of_strip(p, at, image, share, strip);
    found.with_work |= static_cast<uint32_t>(here != Share::kNone) << strip, found.computed |= static_cast<uint32_t>(computes(here)) << strip;
  }
  return found;
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
