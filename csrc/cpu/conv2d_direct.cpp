// Direct convolution: the products of all taps of a block of pixels accumulate in registers.
//
// Nothing is copied where all pixels under a block lie inside the image: a row of the kernel is one run of bytes from an offset on,
// as the channels of its taps are adjacent in codes and in weights alike, and neighbouring pixels read almost the same bytes. A block
// at the border has its surroundings copied, with codes of 0 outside. Several blocks leave through the epilogue together, which needs
// fewer calls and has the residual of the next ones on its way while products run.
#include <algorithm>
#include <cstring>

#include "cpu/convolution.h"

namespace adabm {
void copy_patch(const uint8_t* image, int height, int width, int pixel_bytes, int row, int column, int rows, int columns, uint8_t* patch) {
  const int before = std::min(std::max(0, -column), columns), end = std::max(before, std::min(columns, width - column));
  for (int i = 0; i < rows; i++, patch += columns * pixel_bytes) {
    if (row + i < 0 || row + i >= height) {
      std::memset(patch, 0, static_cast<size_t>(columns) * pixel_bytes);
      continue;
    }
    std::memset(patch, 0, static_cast<size_t>(before) * pixel_bytes);
    std::memcpy(patch + before * pixel_bytes, image + (static_cast<ptrdiff_t>(row + i) * width + column + before) * pixel_bytes,
                static_cast<size_t>(end - before) * pixel_bytes);
    std::memset(patch + end * pixel_bytes, 0, static_cast<size_t>(columns - end) * pixel_bytes);
  }
}

void Convolution::run_direct(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image, R = header.kernel_h, S = header.kernel_w, pad_h = R / 2, pad_w = S / 2;
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const int8_t* weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[ADABM_TILE_DIRECT];
  const ptrdiff_t panel_stride = panel_bytes(header, R * S), kernel_bytes = panel_stride * header.panels();
  // The channels of a kernel row's taps are adjacent, in codes as in weights: one long run instead of S short ones.
  ptrdiff_t inner_rows[kMaxKernel], patch_rows[kMaxKernel];
  for (int i = 0; i < R; i++) inner_rows[i] = static_cast<ptrdiff_t>(i) * row_bytes;

  ProductArgs p = {};
  p.taps = R, p.quads = S * header.quads(), p.pixel_stride = pixel_bytes;
  p.eight_bits = a.x_bits[image] == 8, p.depth = header.direct_depth[a.x_bits[image] - ADABM_MIN_BITS];

  for (const RowGroup* group = part.begin; group < part.end; group++) {
    const int row = group->row;
    RowOutput output(*this, image, row, written(*group, row));
    const int32_t* box = box_rows(image, *group, part.columns);
    const bool rows_inside = row >= pad_h && row + pad_h < a.height;
    for (int first_panel = 0; first_panel < header.panels(); first_panel += kMaxPanels) {
      p.panels = std::min(kMaxPanels, header.panels() - first_panel);
      const int block = kernels.pixels[p.panels], together = kDirectBlocks * block;
      for (const Span& of_group : *group->spans) {
        const Span span = of_group.within(part.columns);
        for (int first = span.begin; first < span.end; first += together) {
          const int end = std::min(first + together, span.end);
          output.prefetch(first_panel, p.panels, first, end - first);
          for (int column = first; column < end; column += p.pixels) {
            p.pixels = std::min(block, end - column);
            p.w = weights + first_panel * panel_stride;
            p.acc = s.acc + static_cast<ptrdiff_t>(column - first) * p.panels * kPanel;
            if (header.border_kernels) {
              const bool inner = column >= pad_w && column < a.width - pad_w;
              p.pixels = inner ? std::min(p.pixels, a.width - pad_w - column) : 1;
              p.w += (kernel_class(row, a.height, pad_h) * S + kernel_class(column, a.width, pad_w)) * kernel_bytes;
            }
            if (rows_inside && column >= pad_w && column + p.pixels + pad_w <= a.width) {
              p.x = x + static_cast<ptrdiff_t>(row - pad_h) * row_bytes + (column - pad_w) * pixel_bytes;
              p.tap_offset = inner_rows;
            } else {
              const int columns = p.pixels + S - 1;
              s.patch.resize(std::max(s.patch.size(), static_cast<size_t>(R) * columns * pixel_bytes));
              copy_patch(x, a.height, a.width, pixel_bytes, row - pad_h, column - pad_w, R, columns, s.patch.data());
              p.x = s.patch.data();
              for (int i = 0; i < R; i++) patch_rows[i] = static_cast<ptrdiff_t>(i) * columns * pixel_bytes;
              p.tap_offset = patch_rows;
            }
            kernels.product(p);
          }
          output.write({1, end - first, p.panels, s.acc, s.acc, false, 0}, first_panel, first, end - first, box ? box + first : nullptr);
        }
      }
    }
    output.finish();
  }
}

void Convolution::run_outer_column(const Part& part, int column) const {
  // Consecutive rows whose region has the column are computed together.
  int first_row = 0, end_row = 0;
  for (const RowGroup* group = part.begin; group < part.end; group++)
    for (int row = group->row; row < group->row + group->rows; row++) {
      const Spans& spans = written(*group, row);
      if (std::none_of(spans.begin(), spans.end(), [&](Span span) { return span.begin <= column && column < span.end; })) continue;
      if (row != end_row) run_outer_pixels(part.image, first_row, end_row, column), first_row = row;
      end_row = row + 1;
    }
  run_outer_pixels(part.image, first_row, end_row, column);
}

void Convolution::run_outer_pixels(int image, int first_row, int end_row, int column) const {
  Scratch& s = thread_scratch();
  const int R = header.kernel_h, S = header.kernel_w, pad_h = R / 2, pad_w = S / 2;
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const ptrdiff_t panel_stride = panel_bytes(header, R * S);
  const int8_t* weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[ADABM_TILE_DIRECT] +
                          (pad_h * S + kernel_class(column, a.width, pad_w)) * panel_stride * header.panels();
  ptrdiff_t patch_rows[kMaxKernel];
  for (int i = 0; i < R; i++) patch_rows[i] = static_cast<ptrdiff_t>(i) * S * pixel_bytes;
  const Spans own = {{column, column + 1}};
  ProductArgs p = {};
  p.taps = R, p.quads = S * header.quads(), p.pixel_stride = S * pixel_bytes, p.tap_offset = patch_rows, p.acc = s.acc;
  p.eight_bits = a.x_bits[image] == 8, p.depth = header.direct_depth[a.x_bits[image] - ADABM_MIN_BITS];
  for (int first_panel = 0; first_panel < header.panels(); first_panel += kMaxPanels) {
    p.panels = std::min(kMaxPanels, header.panels() - first_panel), p.w = weights + first_panel * panel_stride;
    for (int row = first_row; row < end_row; row += p.pixels) {
      p.pixels = std::min(kernels.pixels[p.panels], end_row - row);
      const int patch_height = p.pixels + R - 1;
      s.patch.resize(std::max(s.patch.size(), static_cast<size_t>(patch_height) * S * pixel_bytes));
      copy_patch(x, a.height, a.width, pixel_bytes, row - pad_h, column - pad_w, patch_height, S, s.patch.data());
      p.x = s.patch.data();
      kernels.product(p);
      for (int m = 0; m < p.pixels; m++) {
        int32_t* const acc = s.acc + static_cast<ptrdiff_t>(m) * p.panels * kPanel;
        RowOutput(*this, image, row + m, own).write({1, 1, p.panels, acc, acc, false, 0}, first_panel, column, 1, nullptr);
      }
    }
  }
}

}  // namespace adabm
