// Packs the weights of convolutions whose geometry is not plain; cpu/general.h describes the order.
//
// A layer goes through three steps. `panel_runs` finds which channels each panel reads: those from the first group of its outputs to the
// last, rounded up to whole quads, and begun earlier where the quads would go beyond the pixel. For four groups of 8 channels and 8 outputs:
//
//     panel 0 = outputs 0..15 = groups 0 and 1     channels 0..15      weights of output 0: 8 of group 0, then 8 zeros
//     panel 1 = outputs 16..31 = groups 2 and 3    channels 16..31     weights of output 16: 8 of group 2, then 8 zeros
//
// `lay_out_general` sizes the packed weights; it also finds how many parts the widest weight needs. `pack_general` splits every weight into
// parts that are as equal as possible, writes them, and bounds the sums of 16 bits from the weights as they were written (cpu/sums16.h).
// It does so once for each run of adjacent taps, as kernels begin such sums anew with each run.
#include "cpu/general.h"

#include <algorithm>

#include "common/status.h"
#include "cpu/sums16.h"

namespace adabm {

static_assert(kMaxDepthwiseKernel >= kMaxKernel, "the kernels must be for any that the rules allow");

int group_of(const PackedHeader& h, int output) {
  const int parts = h.shuffle * h.shuffle, pixel_outputs = h.out_channels / parts;
  return (output % pixel_outputs * parts + output / pixel_outputs) / (h.out_channels / h.geometry.groups);
}

namespace {

int taps_of(const PackedHeader& h) { return h.weight_parts * h.kernel_w * (h.depthwise() ? row_quads(h) : h.kernel_h); }

size_t run_bytes(const PackedHeader& h, const PanelRun& run) { return static_cast<size_t>(taps_of(h)) * run.quads * run.panels * kPanel * 4; }

}  // namespace

std::vector<PanelRun> panel_runs(const PackedHeader& h) {
  std::vector<PanelRun> runs;
  size_t offset = 0;
  const int of_group = h.channels / h.geometry.groups, stored = h.quads() * 4;
  for (int panel = 0; panel < h.panels(); panel++) {
    int channel = 0, quads = 1;  // for depthwise: one quad, of kernel rows
    if (!h.depthwise()) {
      int first = h.geometry.groups, last = 0;
      for (int o = panel * kPanel; o < std::min(h.out_channels, (panel + 1) * kPanel); o++)
        first = std::min(first, group_of(h, o)), last = std::max(last, group_of(h, o));
      quads = ((last + 1 - first) * of_group + 3) / 4;
      channel = std::min(first * of_group, stored - quads * 4);  // so that no quad goes beyond the pixel
    }
    if (panel % kMaxPanels && runs.back().channel == channel && runs.back().quads == quads) {
      runs.back().panels++;
      continue;
    }
    if (panel) offset += run_bytes(h, runs.back());
    runs.push_back({panel, 1, channel, quads, offset});
  }
  return runs;
}

void lay_out_general(const adabm_weights& w, PackedHeader& h) {
  h.geometry = w.geometry, h.shuffle = w.shuffle, h.box_filter = w.box_filter, h.weight_parts = 1;
  for (int b = 0; b < ADABM_BIT_WIDTHS; b++)
    ADABM_REQUIRE(w.tile_for_bits[b] == ADABM_TILE_DIRECT, "tile_for_bits[%d] must be 0 where the geometry is not plain, got %d", b, w.tile_for_bits[b]);
  const size_t count = static_cast<size_t>(w.out_channels) * w.kernel_h * w.kernel_w * (w.channels / w.geometry.groups);
  for (size_t i = 0; w.box_filter && i < count; i++) {
    const int value = 2 * w.weight[i] + 1;
    h.weight_parts = std::max(h.weight_parts, value < 0 ? (127 - value) / 128 : (value + 126) / 127);
  }
  h.tile_offset[ADABM_TILE_DIRECT] = kPackedHeaderBytes;
  const PanelRun last = panel_runs(h).back();
  h.bytes = kPackedHeaderBytes + last.weights + run_bytes(h, last);
}

void pack_general(const adabm_weights& w, PackedHeader& h, int8_t* base) {
  const int R = h.kernel_h, S = h.kernel_w, of_group = h.channels / h.geometry.groups, parts = h.weight_parts, taps = taps_of(h);
  const bool depthwise = h.depthwise();
  int8_t* const out = base + h.tile_offset[ADABM_TILE_DIRECT];
  Sums sums = {};
  for (const PanelRun& run : panel_runs(h)) {
    const ptrdiff_t quad_bytes = run.panels * kPanel * 4;
    const int end = std::min(h.out_channels, (run.first_panel + run.panels) * kPanel);
    for (int o = run.first_panel * kPanel; o < end; o++) {
      const int8_t* from = w.weight + static_cast<size_t>(o) * R * S * of_group;
      int8_t* const to = out + run.weights + (o - run.first_panel * kPanel) * 4;
      for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++)
          for (int c = 0; c < of_group; c++) {
            const int at = depthwise ? r % 4 : group_of(h, o) * of_group + c - run.channel;
            const int tap = depthwise ? s * row_quads(h) + r / 4 : r * S + s;
            int rest = h.box_filter ? 2 * *from++ + 1 : *from++;
            for (int part = 0; part < parts; part++) {
              const int share = rest / (parts - part);
              to[(static_cast<ptrdiff_t>(tap + part * (taps / parts)) * run.quads + at / 4) * quad_bytes + at % 4] = static_cast<int8_t>(share);
              rest -= share;
            }
          }
      // Sums in 16 bits begin anew with each run of adjacent taps.
      const int together = depthwise ? taps : adjacent_taps(h);
      for (int tap = 0; tap < taps; tap += together)
        add_largest_sums(to + static_cast<ptrdiff_t>(tap) * run.quads * quad_bytes, quad_bytes, together * run.quads, 1, sums);
      if (!by_two_rows(h)) continue;
      // For the row of outputs below, the kernel rows stand one further down in their quad and are summed with other neighbours.
      std::vector<int8_t> below(static_cast<size_t>(taps) * 4);
      for (int tap = 0; tap < taps; tap++)
        for (int r = 1; r < 4; r++) below[tap * 4 + r] = to[tap * quad_bytes + r - 1];
      add_largest_sums(below.data(), 4, taps, 1, sums);
    }
  }
  for (int b = 0; b < ADABM_BIT_WIDTHS; b++) h.direct_depth[b] = sum_depth(sums, b + ADABM_MIN_BITS);
}

}  // namespace adabm
