// A convolution along one axis, the rows or the columns: where its taps lie, and which of them fall outside the image.
#pragma once

#include <algorithm>

#include "adabm/adabm.h"

namespace adabm {

inline bool is_plain(const adabm_geometry& geometry) { return geometry.stride_h == 0; }

struct Axis {
  int kernel, stride, dilation, before, after;

  // Returns how many pixels lie from the first tap to the last one, both included.
  int extent() const { return dilation * (kernel - 1) + 1; }
  // Returns the number of outputs along an axis of `size` pixels; 0 where the kernel does not fit.
  int outputs(int size) const {
    const int room = size + before + after - extent();
    return room < 0 ? 0 : room / stride + 1;
  }
  // Returns the pixel of the first tap of an output, which may lie before the image.
  int first_pixel(int position) const { return position * stride - before; }
  // All taps of outputs first_inner()..end_inner(size) - 1 lie inside the image.
  int first_inner() const { return (before + stride - 1) / stride; }
  int end_inner(int size) const {
    const int room = size - extent() + before;
    return room < 0 ? 0 : room / stride + 1;
  }
  int most_missing_after() const { return std::min(kernel, (after + dilation - 1) / dilation); }
  int classes() const { return (std::min(kernel, (before + dilation - 1) / dilation) + 1) * (most_missing_after() + 1); }
  // Returns the border class of an output; Axis.border_class of adabm_kernels/quantize.py defines it.
  int border_class(int position, int size) const {
    const int first = first_pixel(position), room = size - 1 - first;
    const int missing_before = first < 0 ? std::min(kernel, (dilation - 1 - first) / dilation) : 0;
    const int inside_to = room < 0 ? 0 : std::min(kernel, room / dilation + 1);
    return missing_before * (most_missing_after() + 1) + kernel - inside_to;
  }
};

struct Axes {
  Axis rows, columns;
};

inline Axes axes_of(const adabm_geometry& g, int kernel_h, int kernel_w) {
  if (is_plain(g)) return {{kernel_h, 1, 1, kernel_h / 2, kernel_h / 2}, {kernel_w, 1, 1, kernel_w / 2, kernel_w / 2}};
  return {{kernel_h, g.stride_h, g.dilation_h, g.pad_top, g.pad_bottom}, {kernel_w, g.stride_w, g.dilation_w, g.pad_left, g.pad_right}};
}

}  // namespace adabm
