// Which pixels a region (adabm_region) computes, passes on or leaves as they are. This is read from the map of depths in device memory while
// a kernel runs: nothing on the host depends on what the map holds, so that a recorded graph stays right for every picture.
//
// The map has a byte for each square of `tile` pixels, which is called a tile here; a kernel's own tiles are rectangles of pixels. The
// picture may begin within the first tile (`top`, `left`).
//
//        left                          One pixel is computed where the depth of its own tile is in own_least..own_most and some tile
//      +--+-----+-----+                with a depth in near_least..near_most has a pixel at most `reach` away. It is passed on, to
//  top |  :     |     |                become the residual or 0, where it is not computed and a tile with a depth in
//      |..+-----+-----+                pass_least..pass_most is at most pass_reach away. Else it is left as it is.
//      |  |  0  |  16 |
//      +--+-----+-----+
//
// Both questions are about rectangles of tiles, which tiles_around finds by one product with the reciprocal of the side. A block asks them
// for its whole rectangle first (share_of): most are computed everywhere, or nowhere and end at once. Only where a rectangle is mixed
// are single pixels asked for (pixel_use). Where a kernel for rectangles that are computed everywhere is faster, two launches share
// them (TilesTaken).
//
// All lanes of a warp call share_inside together. Its answer is a vote, because the compiler then knows that it is the same for all lanes, and
// branches on it cost no reconvergence.
#pragma once

#include <cstdint>

#include "adabm/adabm.h"
#include "cuda/ptx.cuh"

namespace adabm {
namespace cuda {

// Which tiles of its own a kernel takes. Where some pixels stay as they are and a kernel for tiles that are computed everywhere is
// faster, two kernels share the tiles.
enum class TilesTaken { kAll, kAllComputed, kOthers };

struct RegionParams {
  adabm_region region;
  int height, width;     // pixels of an image
  int rows, columns;     // tiles of an image
  uint64_t reciprocal;   // reciprocal of the side of a tile, for tile_of
  TilesTaken taken;
};

// Returns the parameters of a region that obeys the rules of adabm.h.
inline RegionParams region_params(const adabm_region& region, int height, int width) {
  RegionParams p = {};
  p.region = region;
  if (!region.depth) return p;
  p.height = height, p.width = width;
  p.rows = (region.top + height + region.tile - 1) / region.tile, p.columns = (region.left + width + region.tile - 1) / region.tile;
  p.reciprocal = ((uint64_t{1} << 42) + region.tile - 1) / region.tile;
  return p;
}

// A rectangle of pixels or tiles: rows and columns from the first up to but without the end; never empty.
struct Rectangle {
  int row, column, end_row, end_column;
};

// The use that is made of one pixel.
enum class PixelUse : uint32_t { kUntouched, kComputed, kPassedOn };

// How many pixels of a rectangle are computed or passed on. kPassedOn: none is computed, and at least one is passed on. kSome may also stand
// for none where a region depends on both the depth of the own tile of a pixel and the depths of tiles near it.
enum class Share { kNone, kPassedOn, kSome, kAllComputed };

// Returns whether a pixel may be computed, so that products are needed.
ADABM_DEVICE bool computes(Share share) { return share == Share::kSome || share == Share::kAllComputed; }

// Returns the tile of a row or column of pixels, which is counted from the first one of the first tile. Such numbers are below 2^21 and tiles at most 2^20
// wide, so the reciprocal, too large by less than 1, adds less than one in 2^42 / tile.
ADABM_DEVICE int tile_of(const RegionParams& p, int position) { return static_cast<int>(static_cast<uint64_t>(position) * p.reciprocal >> 42); }

// Returns the tiles with a pixel at most `reach` rows and columns away from a pixel of the rectangle.
ADABM_DEVICE Rectangle tiles_around(const RegionParams& p, const Rectangle& pixels, int reach) {
  const int row = pixels.row > reach ? pixels.row - reach : 0, column = pixels.column > reach ? pixels.column - reach : 0;
  const int end_row = pixels.end_row + reach < p.height ? pixels.end_row + reach : p.height;
  const int end_column = pixels.end_column + reach < p.width ? pixels.end_column + reach : p.width;
  return {tile_of(p, p.region.top + row), tile_of(p, p.region.left + column), tile_of(p, p.region.top + end_row - 1) + 1,
          tile_of(p, p.region.left + end_column - 1) + 1};
}

ADABM_DEVICE const uint8_t* depths_of(const RegionParams& p, int image) { return p.region.depth + static_cast<int64_t>(image) * p.rows * p.columns; }

ADABM_DEVICE bool any_tile(const RegionParams& p, const uint8_t* depths, const Rectangle& tiles, int least, int most) {
#pragma unroll 1
  for (int row = tiles.row; row < tiles.end_row; row++)
#pragma unroll 1
    for (int column = tiles.column; column < tiles.end_column; column++) {
      const int depth = ptx::load_constant(depths + row * p.columns + column);
      if (least <= depth && depth <= most) return true;
    }
  return false;
}

// Returns whether a pixel of the image is computed, where there is a region.
ADABM_DEVICE bool computes(const RegionParams& p, int image, int row, int column) {
  const adabm_region& r = p.region;
  const uint8_t* depths = depths_of(p, image);
  const Rectangle pixel = {row, column, row + 1, column + 1};
  return any_tile(p, depths, tiles_around(p, pixel, 0), r.own_least, r.own_most) &&
         any_tile(p, depths, tiles_around(p, pixel, r.reach), r.near_least, r.near_most);
}

// Returns the use of a pixel of the image, where there is a region.
ADABM_DEVICE PixelUse pixel_use(const RegionParams& p, int image, int row, int column) {
  if (computes(p, image, row, column)) return PixelUse::kComputed;
  const adabm_region& r = p.region;
  const uint8_t* depths = depths_of(p, image);
  const Rectangle pixel = {row, column, row + 1, column + 1};
  const bool passed_on = r.pass_least <= r.pass_most && any_tile(p, depths, tiles_around(p, pixel, r.pass_reach), r.pass_least, r.pass_most);
  return passed_on ? PixelUse::kPassedOn : PixelUse::kUntouched;
}

constexpr uint32_t kWithin = 1, kOutside = 2;

// Finds whether the part of the tiles that this lane reads has a depth in least..most, and whether it has a depth outside.
ADABM_DEVICE uint32_t scan_tiles(const RegionParams& p, const uint8_t* depths, const Rectangle& tiles, int least, int most) {
  const int lane = threadIdx.x % 32;
  uint32_t found = 0;
// Shorter where it is seldom asked; for 9.0 ptxas 13.0 then serialises the products of conv2d_sm90<false, 2>.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#pragma unroll 1
#endif
  for (int row = tiles.row + lane / 8; row < tiles.end_row; row += 4)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#pragma unroll 1
#endif
    for (int column = tiles.column + lane % 8; column < tiles.end_column; column += 8) {
      const int depth = ptx::load_constant(depths + row * p.columns + column);
      found |= least <= depth && depth <= most ? kWithin : kOutside;
    }
  return found;
}

// Returns the share of a rectangle of pixels within the image; without a region all are computed. All lanes of a warp call it together and get
// the same answer.
ADABM_DEVICE Share share_inside(const RegionParams& p, int image, const Rectangle& pixels) {
  const adabm_region& r = p.region;
  uint32_t own = kWithin, near = kWithin, around = kWithin, passing = 0;
  if (r.depth) {
    const uint8_t* depths = depths_of(p, image);
    const Rectangle tiles = tiles_around(p, pixels, 0);
    own = scan_tiles(p, depths, tiles, r.own_least, r.own_most), near = scan_tiles(p, depths, tiles, r.near_least, r.near_most);
    around = scan_tiles(p, depths, tiles_around(p, pixels, r.reach), r.near_least, r.near_most);
    if (r.pass_least <= r.pass_most) passing = scan_tiles(p, depths, tiles_around(p, pixels, r.pass_reach), r.pass_least, r.pass_most);
  }
  // Votes behind a branch, even on a parameter, would no longer be known to be the same for all lanes: see any_lane.
  const bool left_out = ptx::any_lane((own | near) & kOutside), owned = ptx::any_lane(own & kWithin);
  const bool reached = ptx::any_lane(around & kWithin), passed_on = ptx::any_lane(passing & kWithin);
  return !left_out ? Share::kAllComputed : owned && reached ? Share::kSome : passed_on ? Share::kPassedOn : Share::kNone;
}

// Returns the share of a tile of a kernel: kNone where the kernel does not take the tile.
ADABM_DEVICE Share share_of(const RegionParams& p, int image, const Rectangle& pixels) {
  const Share share = share_inside(p, image, pixels);
  return p.taken == TilesTaken::kAll || (p.taken == TilesTaken::kAllComputed) == (share == Share::kAllComputed) ? share : Share::kNone;
}

}  // namespace cuda
}  // namespace adabm
