// Where a region of an image lies: strips of rows that are alike, and for each strip the columns that are computed or passed on.
//
// A region is given by a map of tiles, each with a depth, and by which depths it takes (adabm_region in adabm.h). Kernels work on
// runs of columns, so the map is turned once for each call into strips:
//
//     . . # # # . #      # : tiles that are computed        strip of 8 rows: columns 16..39 and 48..55
//     . . # # # . #                                          the same rows again: the same strip goes on
//     . . . # . . .                                          strip of 8 rows: columns 24..31
//
// Rows of pixels in the same row of tiles are alike, and so are neighbouring rows of tiles with the same tiles in them: a picture
// has few strips. A convolution also computes pixels around the tiles as far as later layers read them, which makes strips that
// begin and end within a row of tiles.
#pragma once

#include <algorithm>
#include <vector>

#include "adabm/adabm.h"

namespace adabm {

// Columns begin..end - 1.
struct Span {
  int begin, end;

  Span within(Span other) const { return {std::max(begin, other.begin), std::min(end, other.end)}; }
  bool empty() const { return begin >= end; }
  int columns() const { return end - begin; }
};
using Spans = std::vector<Span>;  // in ascending order, with columns between them

struct Strip {
  int end_row;  // its rows begin where the strip before ends
  Spans computed, passed;
};

// The strips of one image, from its first row to its last; neighbouring strips differ.
std::vector<Strip> strips_of(const adabm_region& region, int image, int height, int width);

// The strip of a row.
const Strip& strip_of(const std::vector<Strip>& strips, int row);

// The columns that are in a or in b.
Spans joined(const Spans& a, const Spans& b);

}  // namespace adabm
