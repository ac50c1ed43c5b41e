// How a convolution is cut up, for the packing on the host, the launcher and the kernels alike: which outputs a block computes, and in
// which order the weights lie in memory.
//
// The idea: a kernel never computes where a weight is. It walks through the packed bytes from first to last, because they lie in the order
// in which products take them.
//
//   packed:   | header | 8-bit form | 4-bit form, where the weights fit |
//   a form:   | kernel of border class 0 | class 1 | ...        one class where borders have no kernels of their own
//   a class:  | output tile 0 | output tile 1 | ...             at most 64 outputs each
//   a tile:   | chunk 0 | chunk 1 | ...                         `planes` rows of 16 bytes of every pixel's channels
//   a chunk:  | step, tap 0 | step, tap 1 | ...                 slices: what one matrix product reads
//   a slice:  | 16 bytes of output 0 | of output 1 | ... |      the first 16 bytes of channels,
//             | 16 bytes of output 0 | of output 1 | ... |      and the second
//
// Rows have 16 bytes because ldmatrix and the descriptors of wgmma both read matrices of eight such rows. A slice takes 32 bytes of every
// output, so that it is 32 channels of 8 bits or 64 of 4: the same bytes, half the products.
//
// A tile of outputs never shares a word of packed codes with another: with a PixelShuffle it holds whole sub-pixels, or 64 channels of
// one. Blocks can then store codes of 2 and 4 bits without asking one another.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ADABM_HD __host__ __device__
#else
#define ADABM_HD
#endif

namespace adabm {
namespace cuda {

constexpr uint32_t kPackedMagic = 0x41424755;  // "UGBA"
constexpr int kPackedHeaderBytes = 64;
constexpr int kBoxBytes = 128;           // bytes at the end of packed weights whose 8-bit form needs the sum of the codes
constexpr int kMaxTileOutputs = 64;
constexpr int kRowBytes = 16;            // a row of an 8x8 matrix of 16-bit elements, which ldmatrix reads at once
constexpr int kSliceBytes = 2 * kRowBytes;  // bytes of every pixel and output in one matrix product: 32 codes of 8 bits or 64 of 4 bits
constexpr int kStages = 3;               // stages of weights in shared memory

struct PackedHeader {
  uint32_t magic;
  int32_t version;
  int32_t box[2];  // by form (8 bits, 4 bits): the sum of the codes is to be added to twice the products
  // The largest, over all outputs, of the sum of positive weights and the sum of magnitudes of negative weights; at least 1. 0 stands for
  // unknown, as in weights that older libraries of the same version have packed.
  int32_t reach;
};

// The outputs of one tile. With a PixelShuffle a tile holds whole sub-pixels, or 64 channels of one: then no 32-bit word of packed
// codes is shared between blocks.
struct OutputTiling {
  int group;          // channels of a sub-pixel
  int subs_per_tile;  // how many sub-pixels a tile holds
  int tiles_per_sub;  // how many tiles a sub-pixel needs
  int tiles;
  int width;          // outputs that are computed, a multiple of 16; those that do not exist have weights 0
};

ADABM_HD inline OutputTiling output_tiling(int out_channels, int shuffle) {
  OutputTiling t;
  const int subs = shuffle * shuffle;
  t.group = out_channels / subs;
  t.tiles_per_sub = (t.group + kMaxTileOutputs - 1) / kMaxTileOutputs;
  t.subs_per_tile = t.tiles_per_sub > 1 ? 1 : kMaxTileOutputs / t.group < subs ? kMaxTileOutputs / t.group : subs;
  t.tiles = (subs + t.subs_per_tile - 1) / t.subs_per_tile * t.tiles_per_sub;
  const int most = t.tiles_per_sub > 1 ? kMaxTileOutputs : t.subs_per_tile * t.group;
  t.width = (most + 15) / 16 * 16;
  return t;
}

struct OutputTile {
  int first, count;  // the first output and how many there are
  int sub, subs;     // the first sub-pixel and how many there are
  int channel;       // channel of the first output within its sub-pixel
};

// Returns the outputs of tile whole * tiles_per_sub + part.
ADABM_HD inline OutputTile output_tile(const OutputTiling& t, int shuffle, int whole, int part) {
  OutputTile o;
  o.sub = whole * t.subs_per_tile;
  o.channel = part * kMaxTileOutputs;
  const int left = shuffle * shuffle - o.sub;
  o.subs = left < t.subs_per_tile ? left : t.subs_per_tile;
  o.first = o.sub * t.group + o.channel;
  o.count = t.tiles_per_sub == 1 ? o.subs * t.group : t.group - o.channel < kMaxTileOutputs ? t.group - o.channel : kMaxTileOutputs;
  return o;
}

ADABM_HD inline OutputTile output_tile(const OutputTiling& t, int shuffle, int tile) {
  const int whole = t.tiles_per_sub == 1 ? tile : tile / t.tiles_per_sub;  // most layers need no division
  return output_tile(t, shuffle, whole, tile - whole * t.tiles_per_sub);
}

// An image of up to 4 channels (pixels) would leave most of a slice empty: its columns of the kernel are then taken for channels,
// [kernel_w][4], of a kernel one column wide, and each pixel is stored with the neighbours those columns meet.
ADABM_HD inline bool unfolds(int channels, int kernel_w) { return channels <= 4 && kernel_w > 1; }

// One arithmetic width: codes and weights of 8 or 4 bits. Channels come in chunks of `planes` rows of 16 bytes; each chunk's slices
// of weights follow one another, [planes / 2][taps], each [2][width outputs][16 bytes].
struct Form {
  int planes, plane_shift;  // a power of two, and its logarithm
  int chunks;
  int slices;        // slices of a chunk
  int stage_slices;  // how many slices are copied and waited for together
  int64_t offset;    // bytes from the start of the packed weights
  int64_t tile_bytes;  // bytes of all weights of one tile of outputs
};

ADABM_HD inline Form make_form(int bits, int channels, int kernel_h, int kernel_w, int width) {
  Form f;
  const bool unfolded = unfolds(channels, kernel_w);
  const int bytes = unfolded ? kernel_w * 4 : (channels * bits + 7) / 8, taps = kernel_h * (unfolded ? 1 : kernel_w);
  f.plane_shift = 1;
  // A single tap is one product a chunk: take more channels at once, so that a barrier is paid for by more than one.
  while (taps == 1 && f.plane_shift < 3 && (kRowBytes << f.plane_shift) < bytes) f.plane_shift++;
  f.planes = 1 << f.plane_shift;
  f.chunks = (bytes + f.planes * kRowBytes - 1) / (f.planes * kRowBytes);
  f.slices = taps * f.planes / 2;
  f.stage_slices = taps == 1 ? 4 : 3;
  f.offset = 0;
  f.tile_bytes = static_cast<int64_t>(f.chunks) * f.slices * width * kSliceBytes;
  return f;
}

}  // namespace cuda
}  // namespace adabm
