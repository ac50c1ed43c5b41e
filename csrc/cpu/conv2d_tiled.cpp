// Convolution by tiles F(2, 3) x F(m, 3). Codes are transformed for a group of tiles at a time, few enough that they and the sums
// stay in the nearest caches; a row of tiles gives two rows of outputs.
#include <algorithm>

#include "common/status.h"
#include "cpu/convolution.h"

namespace adabm {

void Convolution::run_rows_tiled(int image, int first_row, int end_row) const {
  Scratch& s = thread_scratch();
  const int bits = a.x_bits[image], tile = header.tile_for_bits[bits - ADABM_MIN_BITS];
  const TileTables& table = kTiles[tile];
  const int8_t* base = reinterpret_cast<const int8_t*>(&header);
  const int32_t* starts = reinterpret_cast<const int32_t*>(base + header.start_offset[bits - ADABM_MIN_BITS]);
  const ptrdiff_t panel_stride = panel_bytes(header, product_taps(header, tile));
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const int outputs = table.outputs, tiles = (a.width + outputs - 1) / outputs, padded = header.panels() * kPanel;
  // F(1, 3) takes the codes of neighbouring columns from one place: two columns more than tiles.
  const int shared = table.run - 1, window = outputs + 2 - shared;

  s.codes.resize(std::max<size_t>(s.codes.size(), static_cast<size_t>(table.taps) * kRowTaps * (kGroupTiles + shared) * pixel_bytes));
  s.patch.resize(std::max<size_t>(s.patch.size(), static_cast<size_t>(kRowTaps) * (kGroupTiles * outputs + 2) * pixel_bytes));
  TransformArgs t = {};
  t.outputs = outputs, t.pixel_bytes = pixel_bytes;
  int largest = 0;
  for (int j = 0; j < table.taps; j++)
    for (int i = 0; i < kRowTaps; i++) {
      int of_tap;
      t.shift[j][i] = static_cast<uint32_t>(tap_shift(table, i, j, bits, &of_tap)) * 0x01010101u;
      largest = std::max(largest, of_tap);
    }
  RowProductArgs p = {};
  p.tile_stride = pixel_bytes, p.quads = table.run * header.quads(), p.eight_bits = largest > 127, p.depth = header.depth[bits - ADABM_MIN_BITS], p.start_stride = padded;

  for (int row = first_row; row < end_row; row += kTileRows) {
    const int rows = std::min(kTileRows, end_row - row);
    RowOutput output[kTileRows] = {{*this, image, row}, {*this, image, row + rows - 1}};
    const int32_t* box = box_rows(image, row, rows);
    for (int first = 0, group; first < tiles; first += group) {
      group = std::min(kGroupTiles, tiles - first);
      const int column = first * outputs, all = group + shared, pixels = std::min(group * outputs, a.width - column);
      t.plane = p.tap_stride = static_cast<ptrdiff_t>(all) * pixel_bytes;
      // Tiles that reach beyond the image are transformed from a copy with zeros around it.
      int inside = all, end = all;
      if (row > 0 && row + kTileRows < a.height) {
        const int room = a.width - window - (column - 1);
        inside = column == 0, end = std::max(inside, room < 0 ? 0 : std::min(all, room / outputs + 1));
      }
      for (int at = 0, next; at < all; at = next) {
        next = at < inside ? inside : at < end ? end : all;
        const int left = column - 1 + at * outputs, columns = (next - at - 1) * outputs + window;
        if (at >= inside && at < end) {
          t.x = x + static_cast<ptrdiff_t>(row - 1) * row_bytes + static_cast<ptrdiff_t>(left) * pixel_bytes;
          t.row_stride = row_bytes;
        } else {
          copy_patch(x, a.height, a.width, pixel_bytes, row - 1, left, kRowTaps, columns, s.patch.data());
          t.x = s.patch.data(), t.row_stride = static_cast<ptrdiff_t>(columns) * pixel_bytes;
        }
        t.tiles = next - at, t.out = s.codes.data() + static_cast<ptrdiff_t>(at) * pixel_bytes;
        kernels.transform(t);
      }
      for (int first_panel = 0; first_panel < header.panels(); first_panel += kMaxPanels) {
        p.panels = std::min(kMaxPanels, header.panels() - first_panel);
        for (int i = 0; i < rows; i++) output[i].prefetch(first_panel, p.panels, column, pixels);
        const ptrdiff_t plane = static_cast<ptrdiff_t>(group) * p.panels * kPanel;
        p.w = base + header.tile_offset[tile] + first_panel * panel_stride, p.row_stride = table.taps * plane;
        for (int j = 0; j < table.taps; j++) {
          p.parts = header.parts[tile][j][0], p.outer_parts = header.parts[tile][j][1];
          p.start = starts + static_cast<ptrdiff_t>(j) * kTileRows * padded + first_panel * kPanel;
          for (int at = 0; at < group; at += p.tiles) {
            p.tiles = std::min(kernels.tiles[p.panels], group - at);
            p.x = s.codes.data() + j * kRowTaps * p.tap_stride + static_cast<ptrdiff_t>(at) * pixel_bytes;
            p.sums = s.products + j * plane + at * p.panels * kPanel;
            kernels.row_product(p);
          }
          p.w += static_cast<ptrdiff_t>(kTileRows) * (p.parts + p.outer_parts) * p.quads * p.panels * kPanel * 4;
        }
        for (int i = 0; i < rows; i++)
          output[i].write({outputs, group, p.panels, s.products + i * p.row_stride, outputs > 1 ? s.acc : s.products + i * p.row_stride},
                          first_panel, column, pixels, box ? box + static_cast<ptrdiff_t>(i) * box_stride + column : nullptr);
      }
    }
    for (int i = 0; i < rows; i++) output[i].finish();
  }
}

}  // namespace adabm
