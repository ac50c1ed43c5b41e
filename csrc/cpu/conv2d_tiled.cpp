// Convolution by column tiles F(m, 3): every input row is transformed once and serves three output rows, whose products
// accumulate in registers as in the direct form; fewer columns of them are left to multiply.
#include <algorithm>

#include "common/status.h"
#include "cpu/convolution.h"

namespace adabm {

void Convolution::run_rows_tiled(int image, int first_row, int end_row) const {
  Scratch& s = thread_scratch();
  const int bits = a.x_bits[image], tile = header.tile_for_bits[bits - ADABM_MIN_BITS];
  const TileTables& table = kTiles[tile];
  const int8_t* base = reinterpret_cast<const int8_t*>(&header);
  const int8_t* weights = base + header.tile_offset[tile];
  const int32_t* starts = reinterpret_cast<const int32_t*>(base + header.start_offset[bits - ADABM_MIN_BITS]);
  const ptrdiff_t panel_stride = panel_bytes(header, table.taps * 3), panel_tap = panel_stride / table.taps;
  const int tiles = (a.width + table.outputs - 1) / table.outputs;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(tiles) * pixel_bytes, ring_row = plane * table.taps;

  s.zeros.assign(std::max<size_t>(s.zeros.size(), pixel_bytes), 0);
  s.ring.resize(std::max<size_t>(s.ring.size(), 3 * ring_row));
  TransformArgs t = {};
  t.outputs = table.outputs, t.zeros = s.zeros.data(), t.tiles = tiles, t.pixel_bytes = pixel_bytes;
  int largest = 0;
  for (int j = 0; j < table.taps; j++) {
    int of_tap;
    t.shift[j] = static_cast<uint8_t>(tap_shift(table, j, bits, &of_tap));
    largest = std::max(largest, of_tap);
  }
  const auto transform = [&](int row) {
    const bool inside = row >= 0 && row < a.height;
    t.row = inside ? a.x_q + (static_cast<ptrdiff_t>(image) * a.height + row) * row_bytes : nullptr;
    t.width = inside ? a.width : 0;
    t.out = s.ring.data() + (row + 3) % 3 * ring_row;
    kernels.transform_row(t);
  };
  transform(first_row - 1);
  transform(first_row);

  ptrdiff_t tap_offset[3];
  ProductArgs p = {};
  p.taps = 3, p.quads = header.quads(), p.pixel_stride = pixel_bytes;
  p.eight_bits = largest > 127, p.tap_offset = tap_offset;

  for (int row = first_row; row < end_row; row++) {
    transform(row + 1);
    for (int i = 0; i < 3; i++) tap_offset[i] = (row + 2 + i) % 3 * ring_row;
    RowOutput output(*this, image, row);
    const int32_t* box = box_row(image, row);
    for (int first_panel = 0; first_panel < header.panels(); first_panel += kMaxPanels) {
      p.panels = std::min(kMaxPanels, header.panels() - first_panel);
      for (int first = 0; first < tiles; first += p.pixels) {
        p.pixels = std::min(kernels.pixels[p.panels], tiles - first);
        const int column = first * table.outputs, pixels = std::min(p.pixels * table.outputs, a.width - column);
        output.prefetch(first_panel, p.panels, column, pixels);
        for (int j = 0; j < table.taps; j++) {
          p.x = s.ring.data() + j * plane + static_cast<ptrdiff_t>(first) * pixel_bytes;
          p.w = weights + first_panel * panel_stride + j * p.panels * panel_tap;
          p.start = starts + (j * header.panels() + first_panel) * kPanel;
          p.acc = s.products + j * p.pixels * p.panels * kPanel;
          kernels.product(p);
        }
        output.write({table.outputs, p.pixels, p.panels, s.products, s.acc}, first_panel, column, pixels, box ? box + column : nullptr);
      }
    }
    output.finish();
  }
}

}  // namespace adabm
