// Convolution by exact tiles. Codes are transformed for a group of tiles at a time, few enough that they and the sums stay in the nearest
// caches; a row of tiles gives two, three or four rows of outputs.
//
// For F(2, 3) x F(3, 3), one group:
//
//     codes 4 x 5 a tile      transform          products            back along rows      back along columns, epilogue
//     of one channel     ->   20 taps, each  ->  tap by tap,     ->  in registers    ->   6 pixels a tile leave as features
//     after the other         a plane of         a small matrix      (row_product)        or codes (untile_epilogue)
//                             tiles x channels   product each
//
// Transformed codes are shifted so that the smallest is 0, and then fit in bytes if codes have few bits: with 4 bits this tile has 20
// products for 6 outputs where the direct form has 54. The number that the shift adds to the sums follows from the weights alone, and the
// sums start from its negative (`start_offset` in cpu/packed.h). All of it is exact in integers, the divisions too: the
// planner has proved that nothing leaves its range (adabm_kernels/planning/exact.py).
#include <algorithm>

#include "common/status.h"
#include "cpu/convolution.h"

namespace adabm {

void Convolution::run_tiled(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image, bits = a.x_bits[image], tile = header.tile_for_bits[bits - ADABM_MIN_BITS];
  const TileTables& table = kTiles[tile];
  const int8_t* base = reinterpret_cast<const int8_t*>(&header);
  const int32_t* starts = reinterpret_cast<const int32_t*>(base + header.start_offset[bits - ADABM_MIN_BITS]);
  const ptrdiff_t panel_stride = panel_bytes(header, product_taps(header, tile));
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const int outputs = table.columns.outputs, column_taps = table.columns.taps, tile_rows = table.rows.outputs, row_taps = table.rows.taps;
  const int kernel = table.rows.kernel, pad = kernel / 2;
  const int padded = header.panels() * kPanel, code_bytes = table.words ? 2 : 1;
  // Tiles F(1, 3) share the transformed codes of neighbouring columns: there are two columns more than tiles.
  const int shared = table.columns.run - 1, window = outputs + kernel - 1 - shared;
  const auto transform = table.words ? kernels.word_transform : kernels.transform;
  const auto row_product = table.words ? kernels.word_row_product : kernels.row_product;

  s.codes.resize(std::max(s.codes.size(), static_cast<size_t>(column_taps) * row_taps * (kGroupTiles + shared) * pixel_bytes * code_bytes));
  s.patch.resize(std::max(s.patch.size(), static_cast<size_t>(row_taps) * (kGroupTiles * outputs + kernel - 1) * pixel_bytes));
  TransformArgs t = {};
  t.rows = tile_rows, t.outputs = outputs, t.pixel_bytes = pixel_bytes;
  if (a.region.depth) t.mask = ((1u << bits) - 1) * 0x01010101u;
  RowProductArgs p = {};
  p.rows = tile_rows, p.tile_stride = pixel_bytes * code_bytes, p.quads = table.columns.run * header.quads() * code_bytes, p.start_stride = padded;
  for (int j = 0; !table.words && j < column_taps; j++)
    for (int i = 0, largest; i < row_taps; i++) {
      t.shift[j][i] = static_cast<uint32_t>(tap_shift(table, i, j, bits, &largest)) * 0x01010101u;
      p.eight_bits |= largest > 127;
    }

  for (const RowGroup* rows = part.begin; rows < part.end; rows++) {
    const int row = rows->row;
    Rows out(*this, image, *rows);
    const int32_t* box = box_rows(image, *rows, part.columns);
    for (const Span& of_rows : *rows->spans) {
      const Span span = of_rows.within(part.columns);
      const int tiles = (span.columns() + outputs - 1) / outputs;
      for (int first = 0, group; first < tiles; first += group) {
        group = std::min(kGroupTiles, tiles - first);
        const int column = span.begin + first * outputs, all = group + shared;
        const int pixels = std::min(group * outputs, span.end - column);
        t.plane = p.tap_stride = static_cast<ptrdiff_t>(all) * p.tile_stride;
        // Tiles that reach beyond the image are transformed from a copy with zeros around it.
        int inside = all, end = all;
        if (row >= pad && row + tile_rows + pad <= a.height) {
          const int room = a.width - window - (column - pad);
          inside = column < pad, end = std::max(inside, room < 0 ? 0 : std::min(all, room / outputs + 1));
        }
        for (int at = 0, next; at < all; at = next) {
          next = at < inside ? inside : at < end ? end : all;
          const int left = column - pad + at * outputs, columns = (next - at - 1) * outputs + window;
          if (at >= inside && at < end) {
            t.x = x + static_cast<ptrdiff_t>(row - pad) * row_bytes + static_cast<ptrdiff_t>(left) * pixel_bytes;
            t.row_stride = row_bytes;
          } else {
            copy_patch(x, a.height, a.width, pixel_bytes, row - pad, left, row_taps, columns, s.patch.data());
            t.x = s.patch.data(), t.row_stride = static_cast<ptrdiff_t>(columns) * pixel_bytes;
          }
          t.tiles = next - at, t.out = s.codes.data() + at * p.tile_stride;
          transform(t);
        }
        for (int first_panel = 0; first_panel < header.panels(); first_panel += kMaxPanels) {
          p.panels = std::min(kMaxPanels, header.panels() - first_panel);
          for (int i = 0; i < rows->rows; i++) out.output[i].prefetch(first_panel, p.panels, column, pixels);
          const ptrdiff_t plane = static_cast<ptrdiff_t>(group) * p.panels * kPanel;
          p.w = base + header.tile_offset[tile] + first_panel * panel_stride, p.row_stride = column_taps * plane;
          for (int j = 0; j < column_taps; j++) {
            int products = table.words ? row_taps : 0;
            for (int i = 0; !table.words && i < row_taps; i++) {
              p.parts[i] = header.parts[tile][j][part_group(table.rows, i)], p.depth[i] = header.depth[bits - ADABM_MIN_BITS][j][i];
              products += p.parts[i];
            }
            p.start = starts + static_cast<ptrdiff_t>(j) * tile_rows * padded + first_panel * kPanel;
            for (int at = 0; at < group; at += p.tiles) {
              p.tiles = std::min(table.words ? kMaxPixels : kernels.tiles[tile_rows - kMinTileRows][p.panels], group - at);
              p.x = s.codes.data() + j * row_taps * p.tap_stride + at * p.tile_stride;
              p.sums = s.products + j * plane + at * p.panels * kPanel;
              row_product(p);
            }
            p.w += static_cast<ptrdiff_t>(products) * p.quads * p.panels * kPanel * 4;
          }
          for (int i = 0; i < rows->rows; i++)
            out.output[i].write({outputs, group, p.panels, s.products + i * p.row_stride, outputs > 1 ? s.acc : s.products + i * p.row_stride, table.words, i},
                                first_panel, column, pixels, box ? box + static_cast<ptrdiff_t>(i) * box_stride + column : nullptr);
        }
      }
    }
    for (int i = 0; i < rows->rows; i++) out.output[i].finish();
  }
}

}  // namespace adabm
