// Where a region of an image is: strips of rows that are alike, and in each the columns that are computed and passed on.
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

// Of one image, from its first row to its last; neighbours differ.
std::vector<Strip> strips_of(const adabm_region& region, int image, int height, int width);

// The strip of a row.
const Strip& strip_of(const std::vector<Strip>& strips, int row);

// All columns of both.
Spans joined(const Spans& a, const Spans& b);

}  // namespace adabm
