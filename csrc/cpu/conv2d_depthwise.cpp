// Convolution of each channel on its own: as many groups as channels, one or several outputs of each.
#include <algorithm>
#include <cstring>

#include "cpu/convolution.h"
#include "cpu/general.h"

namespace adabm {

// Of kernels of up to three rows two rows of outputs are computed together: the codes under both are four rows, a quad.
void Convolution::run_depthwise(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image, R = header.kernel_h, S = header.kernel_w, row_slots = row_quads(header) * 4;
  const Axis &rows = axes.rows, &columns = axes.columns;
  const uint8_t* const x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const uint8_t* const end_of_codes = a.x_q + static_cast<ptrdiff_t>(a.batch) * a.height * row_bytes;
  const int8_t* const weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[ADABM_TILE_DIRECT];
  const std::vector<PanelRun> blocks = panel_runs(header);
  // Output o reads channel o, so that codes are used where they lie.
  const bool in_place = header.out_channels == header.channels && a.shuffle == 1;
  const ptrdiff_t pixel_stride = static_cast<ptrdiff_t>(columns.stride) * pixel_bytes;
  const ptrdiff_t column_stride = static_cast<ptrdiff_t>(columns.dilation) * pixel_bytes;
  const uint8_t* pointers[(kMaxKernel + 3) / 4 * 4];

  DepthwiseArgs d = {};
  d.rows = pointers, d.row_quads = row_slots / 4, d.columns = S, d.parts = header.weight_parts;
  d.eight_bits = a.x_bits[image] == 8, d.depth = header.direct_depth[a.x_bits[image] - ADABM_MIN_BITS];
  int32_t* const acc[2] = {s.acc, s.products};

  for (const RowGroup* group = part.begin; group < part.end; group++) {
    Rows out(*this, image, *group);
    const int top = rows.first_pixel(group->row), used = R + group->rows - 1;  // rows of codes under the group
    const auto row_at = [&](int r) {
      const int i = top + r * rows.dilation;
      return i < 0 || i >= a.height ? nullptr : x + static_cast<ptrdiff_t>(i) * row_bytes;
    };
    // The taps of some pixels as the lanes of a block read them, zeros outside the image: [pixel][row][column][lane].
    const auto gather = [&](int column, int pixels, const PanelRun& block) {
      const int lanes = block.panels * kPanel, first_lane = block.first_panel * kPanel;
      const int exist = std::min(lanes, header.out_channels - first_lane);
      s.patch.assign(static_cast<size_t>(pixels) * used * S * lanes, 0);
      uint8_t* to = s.patch.data();
      for (int m = 0; m < pixels; m++)
        for (int r = 0; r < used; r++)
          for (int t = 0; t < S; t++, to += lanes) {
            const int j = columns.first_pixel(column + m) + t * columns.dilation;
            const uint8_t* const row = row_at(r);
            if (!row || j < 0 || j >= a.width) continue;
            const uint8_t* const pixel = row + static_cast<ptrdiff_t>(j) * pixel_bytes;
            if (in_place) std::memcpy(to, pixel + first_lane, exist);
            for (int o = 0; !in_place && o < exist; o++) to[o] = pixel[group_of(header, first_lane + o)];
          }
      for (int r = 0; r < row_slots; r++) pointers[r] = s.patch.data() + static_cast<ptrdiff_t>(std::min(r, used - 1)) * S * lanes;
      d.column_stride = lanes, d.pixel_stride = static_cast<ptrdiff_t>(used) * S * lanes;
    };

    for (const PanelRun& block : blocks) {
      d.panels = block.panels, d.w = weights + block.weights;
      for (const Span& span : *group->spans)
        for (int first = span.begin; first < span.end; first += kMaxBlockPixels) {
          const int end = std::min(first + kMaxBlockPixels, span.end);
          for (int n = 0; n < group->rows; n++) out.output[n].prefetch(block.first_panel, block.panels, first, end - first);
          for (int column = first; column < end; column += d.pixels) {
            const Stretch stretch = stretch_of(columns, a.width, true, column, end);
            d.pixels = stretch.pixels;
            const ptrdiff_t at = static_cast<ptrdiff_t>(columns.first_pixel(column)) * pixel_bytes + block.first_panel * kPanel;
            const ptrdiff_t bytes = (d.pixels - 1) * pixel_stride + (S - 1) * column_stride + block.panels * kPanel;
            bool inner = stretch.inner && in_place;
            for (int r = 0; inner && r < used; r++) inner = !row_at(r) || row_at(r) + at + bytes <= end_of_codes;
            if (inner) {
              s.zeros.resize(std::max(s.zeros.size(), static_cast<size_t>(bytes)));
              for (int r = 0; r < row_slots; r++) {
                const uint8_t* const row = row_at(std::min(r, used - 1));
                pointers[r] = row ? row + at : s.zeros.data();
              }
              d.column_stride = column_stride, d.pixel_stride = pixel_stride;
            } else {
              gather(column, d.pixels, block);
            }
            const ptrdiff_t done = static_cast<ptrdiff_t>(column - first) * block.panels * kPanel;
            d.acc = acc[0] + done, d.below = group->rows > 1 ? acc[1] + done : nullptr;
            kernels.depthwise(d);
          }
          for (int n = 0; n < group->rows; n++)
            out.output[n].write({1, end - first, block.panels, acc[n], acc[n], false, 0}, block.first_panel, first, end - first, nullptr);
        }
    }
    for (int n = 0; n < group->rows; n++) out.output[n].finish();
  }
}

}  // namespace adabm
