// Convolution with strides, dilation, groups, kernels of even size or any padding, by the products of the direct form.
//
// `product` takes a list of offsets, one for each tap, and a stride from pixel to pixel. That is enough for any geometry:
//
//     stride        bytes from the codes of one output pixel to the next: stride_w pixels
//     dilation      the offset of tap (r, s): r * dilation_h rows and s * dilation_w pixels
//     groups        each run of panels (cpu/general.h) begins at the first channel that its outputs read
//     wide weights  a weight of nine bits has several parts; the offsets are listed once for each part, and the products add up
//
// Without groups and dilation along the columns the taps of a kernel row are adjacent in codes and weights alike, and count as one tap with
// more channels. Pixels whose taps all lie inside the image read the codes where they lie. For other pixels `gather` copies the taps to
// [pixel][R][S][channels], with codes of 0 outside the image, and the same weights are multiplied by the copy.
//
// The epilogue takes blocks of up to four panels. Where a block has several runs of panels, the sums of each go to a place beside and are
// then copied into the block.
#include <algorithm>
#include <cstring>

#include "cpu/convolution.h"
#include "cpu/general.h"

namespace adabm {

void Convolution::run_general(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image, R = header.kernel_h, S = header.kernel_w, adjacent = adjacent_taps(header), parts = header.weight_parts;
  const Axis &rows = axes.rows, &columns = axes.columns;
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const int8_t* weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[ADABM_TILE_DIRECT];
  const std::vector<PanelRun> runs = panel_runs(header);
  std::vector<ptrdiff_t> inner_taps, patch_taps;  // offsets of taps in the image, in bytes; in a patch, in taps
  for (int n = 0; n < parts; n++)
    for (int r = 0; r < R; r++)
      for (int t = 0; t < S; t += adjacent) {
        inner_taps.push_back(static_cast<ptrdiff_t>(r) * rows.dilation * row_bytes + static_cast<ptrdiff_t>(t) * columns.dilation * pixel_bytes);
        patch_taps.push_back(r * S + t);
      }
  std::vector<ptrdiff_t> patch_offsets(patch_taps.size());

  ProductArgs p = {};
  p.taps = static_cast<int>(inner_taps.size());
  p.eight_bits = a.x_bits[image] == 8, p.depth = header.direct_depth[a.x_bits[image] - ADABM_MIN_BITS];

  // Copies the taps of some pixels to [pixel][R][S][channels], for the channels that a run reads, with zeros outside the image.
  const auto gather = [&](int top, int column, int pixels, int channel, int bytes) {
    s.patch.resize(std::max(s.patch.size(), static_cast<size_t>(pixels) * R * S * bytes));
    uint8_t* to = s.patch.data();
    for (int m = 0; m < pixels; m++)
      for (int r = 0; r < R; r++)
        for (int t = 0; t < S; t++, to += bytes) {
          const int i = top + r * rows.dilation, j = columns.first_pixel(column + m) + t * columns.dilation;
          if (i < 0 || i >= a.height || j < 0 || j >= a.width)
            std::memset(to, 0, bytes);
          else
            std::memcpy(to, x + static_cast<ptrdiff_t>(i) * row_bytes + static_cast<ptrdiff_t>(j) * pixel_bytes + channel, bytes);
        }
  };

  for (const RowGroup* group = part.begin; group < part.end; group++) {
    const int row = group->row, top = rows.first_pixel(row);
    RowOutput output(*this, image, row, written(*group, row));
    const bool rows_inside = row >= rows.first_inner() && row < rows.end_inner(a.height);
    for (const PanelRun *run = runs.data(), *const end_run = run + runs.size(), *end_block; run < end_run; run = end_block) {
      const int first_panel = run->first_panel, panels = std::min(kMaxPanels, header.panels() - first_panel);
      end_block = std::find_if(run, end_run, [&](const PanelRun& other) { return other.first_panel >= first_panel + panels; });
      const int together = kDirectBlocks * kernels.pixels[panels];
      for (const Span& span : *group->spans)
        for (int first = span.begin; first < span.end; first += together) {
          const int end = std::min(first + together, span.end);
          output.prefetch(first_panel, panels, first, end - first);
          for (const PanelRun* of_block = run; of_block < end_block; of_block++) {
            const int bytes = of_block->quads * 4, lanes = of_block->panels * kPanel;
            p.panels = of_block->panels, p.quads = of_block->quads * adjacent, p.w = weights + of_block->weights;
            for (size_t i = 0; i < patch_taps.size(); i++) patch_offsets[i] = patch_taps[i] * bytes;
            for (int column = first; column < end; column += p.pixels) {
              const Stretch stretch = stretch_of(columns, a.width, rows_inside, column, end);
              p.pixels = std::min(kernels.pixels[p.panels], stretch.pixels);
              if (stretch.inner) {
                p.x = x + static_cast<ptrdiff_t>(top) * row_bytes + static_cast<ptrdiff_t>(columns.first_pixel(column)) * pixel_bytes + of_block->channel;
                p.pixel_stride = static_cast<ptrdiff_t>(columns.stride) * pixel_bytes, p.tap_offset = inner_taps.data();
              } else {
                gather(top, column, p.pixels, of_block->channel, bytes);
                p.x = s.patch.data(), p.pixel_stride = static_cast<ptrdiff_t>(R) * S * bytes, p.tap_offset = patch_offsets.data();
              }
              int32_t* const acc = s.acc + static_cast<ptrdiff_t>(column - first) * panels * kPanel;
              const bool alone = p.panels == panels;
              p.acc = alone ? acc : s.products;
              kernels.product(p);
              for (int m = 0; !alone && m < p.pixels; m++)
                std::memcpy(acc + (m * panels + of_block->first_panel - first_panel) * kPanel, p.acc + m * lanes, lanes * sizeof(int32_t));
            }
          }
          output.write({1, end - first, panels, s.acc, s.acc, false, 0}, first_panel, first, end - first, nullptr);
        }
    }
    output.finish();
  }
}

}  // namespace adabm
