// Depthwise convolution: every output reads one channel, and a channel has one or several outputs.
//
// The direct form sums four channels in one step of the product of bytes. Here an output has one channel, so four kernel rows take the place
// of the four channels: the codes of four rows in one column are interleaved, and a vector of them meets the weights of 16 outputs.
//
//     row i      c0 c1 c2 ...                          lane 0          lane 1
//     row i + 1  c0 c1 c2 ...    -> interleave ->   c0 c0 c0 c0     c1 c1 c1 c1    ...   times [16 outputs][4 kernel rows]
//     row i + 2  c0 c1 c2 ...                       rows i .. i+3   rows i .. i+3
//     row i + 3  c0 c1 c2 ...
//
// A kernel of three rows leaves the fourth row of its quad idle. Two rows of outputs are therefore computed together where kernels have up
// to three rows, without stride or dilation: the codes under both are four rows, interleaved once. The weights for the row below stand one
// kernel row further down.
//
// Codes are used where they lie if output o reads channel o. Otherwise, with several outputs of a channel or a PixelShuffle, the code of
// each output is copied to its lane first. Where the instruction set has `depthwise_epilogue` the sums go through the epilogue in registers.
#include <algorithm>
#include <cstring>

#include "cpu/convolution.h"
#include "cpu/general.h"

namespace adabm {

// How many pixels go through the epilogue together where their sums pass through memory: the sums of two rows and the codes under them stay
// in the nearest cache.
constexpr int kTogether = 32;
static_assert(kTogether <= kMaxBlockPixels, "they must fit the scratch");

void Convolution::run_depthwise(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image, row_slots = row_quads(header) * 4;
  const Axis &rows = axes.rows, &columns = axes.columns;
  const uint8_t* const x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const uint8_t* const end_of_codes = a.x_q + static_cast<ptrdiff_t>(a.batch) * a.height * row_bytes;
  const int8_t* const weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[ADABM_TILE_DIRECT];
  const std::vector<PanelRun> blocks = panel_runs(header);
  // True where output o reads channel o, so that codes are used where they lie.
  const bool in_place = header.out_channels == header.channels && a.shuffle == 1;
  const uint8_t* pointers[(kMaxKernel + 3) / 4 * 4];

  DepthwiseArgs d = {};
  d.rows = pointers, d.row_quads = row_slots / 4, d.columns = header.kernel_w, d.parts = header.weight_parts;
  d.pixel_step = columns.stride, d.column_step = columns.dilation;
  d.eight_bits = a.x_bits[image] == 8, d.depth = header.direct_depth[a.x_bits[image] - ADABM_MIN_BITS];
  const int together = kernels.depthwise_epilogue ? kMaxBlockPixels : kTogether;
  int32_t* const acc[2] = {s.acc, s.products};
  s.zeros.resize(std::max(s.zeros.size(), static_cast<size_t>(row_bytes) + kMaxPanels * kPanel));

  for (const RowGroup* group = part.begin; group < part.end; group++) {
    Rows out(*this, image, *group);
    const int top = rows.first_pixel(group->row), used = header.kernel_h + group->rows - 1;  // rows of codes under the group
    const auto row_at = [&](int r) {
      const int i = top + r * rows.dilation;
      return i < 0 || i >= a.height ? nullptr : x + static_cast<ptrdiff_t>(i) * row_bytes;
    };
    for (const PanelRun& block : blocks) {
      const int lanes = block.panels * kPanel, first_lane = block.first_panel * kPanel, exist = std::min(lanes, header.out_channels - first_lane);
      d.panels = block.panels, d.w = weights + block.weights;
      for (const Span& span : *group->spans)
        for (int first = span.begin; first < span.end; first += together) {
          const int end = std::min(first + together, span.end), last = columns.first_pixel(end - 1) + columns.extent();
          const int under = std::max(0, columns.first_pixel(first)), end_under = std::min(last, a.width);
          d.first_column = columns.first_pixel(first), d.width = a.width, d.column_bytes = pixel_bytes, d.pixels = end - first;
          for (int n = 0; n < group->rows; n++) out.output[n].prefetch(block.first_panel, block.panels, first, end - first);
          // The last lanes of the last pixel may lie beyond the codes, where nothing may be read.
          bool readable = in_place;
          for (int r = 0; readable && r < used && first_lane + lanes > pixel_bytes; r++)
            readable = !row_at(r) || row_at(r) + static_cast<ptrdiff_t>(end_under - 1) * pixel_bytes + first_lane + lanes <= end_of_codes;
          if (readable) {
            for (int r = 0; r < row_slots; r++) {
              const uint8_t* const row = row_at(std::min(r, used - 1));
              pointers[r] = row ? row + first_lane : s.zeros.data();
            }
          } else {
            // Copies the code of every lane, column by column, from the first column under the pixels on.
            const int copied = std::max(0, end_under - under);
            s.patch.assign(static_cast<size_t>(used) * copied * lanes + 1, 0);
            uint8_t* to = s.patch.data();
            for (int r = 0; r < row_slots; r++) pointers[r] = to + static_cast<ptrdiff_t>(std::min(r, used - 1)) * copied * lanes;
            for (int r = 0; r < used; r++) {
              const uint8_t* const row = row_at(r);
              for (int j = under; j < end_under; j++, to += lanes) {
                if (!row) continue;
                const uint8_t* const pixel = row + static_cast<ptrdiff_t>(j) * pixel_bytes;
                if (in_place) std::memcpy(to, pixel + first_lane, exist);
                for (int o = 0; !in_place && o < exist; o++) to[o] = pixel[group_of(header, first_lane + o)];
              }
            }
            d.first_column -= under, d.width = copied, d.column_bytes = lanes;
          }
          d.acc = acc[0], d.below = group->rows > 1 ? acc[1] : nullptr;
          if (kernels.depthwise_epilogue) {
            const EpilogueArgs* const row = out.output[0].epilogue_of(block.first_panel, block.panels, first, d.pixels);
            const EpilogueArgs* const below = d.below ? out.output[1].epilogue_of(block.first_panel, block.panels, first, d.pixels) : nullptr;
            if (row && (below || !d.below) && kernels.depthwise_epilogue(d, *row, below)) continue;
          }
          kernels.depthwise(d);
          for (int n = 0; n < group->rows; n++)
            out.output[n].write({1, end - first, block.panels, acc[n], acc[n], false, 0}, block.first_panel, first, end - first, nullptr);
        }
    }
    for (int n = 0; n < group->rows; n++) out.output[n].finish();
  }
}

}  // namespace adabm
