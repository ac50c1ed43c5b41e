// The rows of a convolution as its kernels and threads take them: rows that are computed together, and bands of them.
//
// A tile of F(m, 3) along the rows gives m rows at once, so rows come in groups of m; the last group may have fewer. In a layer with
// border_kernels each row along the top and the bottom is computed alone. A thread takes whole groups. Bands are shorter than an
// equal share, eight for each thread, since threads are seldom equally fast: other work slows some of them down, and whoever is
// done first takes the next band.
//
// Where only a region of the image is computed (cpu/spans.h) rows differ in what they cost. Bands then have equal costs and not
// equal numbers of rows, and a group whose rows have different columns computes all columns that any of them has.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cpu/packed.h"
#include "cpu/spans.h"

namespace adabm {

// Rows that a kernel computes at once: as many as its tile has, or fewer.
struct RowGroup {
  int row, rows;
  const Strip* strip;  // the strip of the first row
  const Spans* spans;  // all columns that any of the rows has

  // The computed columns of row `at` of the group.
  const Spans& computed(int at) const {
    const Strip* own = strip;
    while (at >= own->end_row) own++;
    return own->computed;
  }
};

// Rows of an image that one thread computes and passes on.
struct Band {
  int image, first_row, end_row;
  const RowGroup *first_group, *end_group;
};

class Bands {
 public:
  Bands(const Bands&) = delete;  // it holds pointers into itself
  Bands& operator=(const Bands&) = delete;
  Bands(const adabm_conv2d_args& args, const PackedHeader& header);

  const std::vector<Band>& all() const { return bands_; }
  const std::vector<Strip>& strips(int image) const { return strips_[image]; }

 private:
  // How one image is computed.
  struct Form {
    int rows, columns;  // outputs of a tile
    int outer_rows;     // how many rows at the top, and as many at the bottom, are computed one by one
    int height;
    int most_rows(int row) const;
    int64_t cost(const Spans& spans) const;  // cost of a group, in computed pixels
  };

  std::vector<std::vector<Strip>> strips_;  // the strips of each image
  std::deque<Spans> joined_;                // the columns of groups whose rows differ
  std::vector<RowGroup> groups_;
  std::vector<Band> bands_;

  void group_rows(const std::vector<Strip>& strips, const Form& form);
};

}  // namespace adabm
