// Convolution to few outputs with the kernel's columns as outputs too: kernel_columns_out of packed.h.
#include <algorithm>
#include <cstring>

#include "cpu/convolution.h"

namespace adabm {

// Each column of codes is multiplied once, by the weights of all kernel columns; what they make of it is then added up where it
// belongs.
void Convolution::run_kn2row(int image, int first_row, int end_row) const {
  Scratch& s = thread_scratch();
  const PackedHeader form = kernel_columns_out(header);
  const int R = header.kernel_h, S = header.kernel_w, pad_h = R / 2, pad_w = S / 2, panels = form.panels(), pitch = panels * kPanel;
  const int block = kernels.pixels[panels];
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const int8_t* weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[ADABM_TILE_DIRECT];
  ptrdiff_t kernel_rows[kMaxKernel];
  for (int i = 0; i < R; i++) kernel_rows[i] = static_cast<ptrdiff_t>(i) * row_bytes;

  ProductArgs p = {};
  p.tap_offset = kernel_rows, p.quads = header.quads(), p.pixel_stride = pixel_bytes, p.panels = panels;
  p.eight_bits = a.x_bits[image] == 8, p.depth = header.direct_depth[a.x_bits[image] - ADABM_MIN_BITS];

  for (int row = first_row; row < end_row; row++) {
    RowOutput output(*this, image, row);
    const int32_t* box = box_rows(image, row, 1);
    // Rows outside the image add nothing.
    const int top = std::max(0, row - pad_h), skipped = top - (row - pad_h);
    p.taps = std::min(a.height, row + pad_h + 1) - top;
    p.w = weights + static_cast<ptrdiff_t>(skipped) * p.quads * panels * kPanel * 4;
    const uint8_t* x_row = x + static_cast<ptrdiff_t>(top) * row_bytes;
    // s.columns holds those from `column` - pad_w on, zeros outside the image; the last S - 1 of a group are the next one's first.
    int done = -pad_w;
    for (int column = 0, pixels; column < a.width; column += pixels) {
      pixels = std::min(kMaxBlockPixels, a.width - column);
      int32_t* const columns = s.columns[0];
      if (column) std::memmove(columns, columns + kMaxBlockPixels * pitch, sizeof(int32_t) * (S - 1) * pitch);
      for (const int end = column + pixels + pad_w; done < end; done += p.pixels) {
        p.acc = columns + static_cast<ptrdiff_t>(done - column + pad_w) * pitch;
        if (done < 0 || done >= a.width) {
          p.pixels = 1;
          std::memset(p.acc, 0, sizeof(int32_t) * pitch);
          continue;
        }
        p.pixels = std::min({block, end - done, a.width - done});
        p.x = x_row + static_cast<ptrdiff_t>(done) * pixel_bytes;
        kernels.product(p);
      }
      output.prefetch(0, header.panels(), column, pixels);
      kernels.gather_columns({columns, pitch, S, header.out_channels, pixels, false, 0, s.acc});
      output.write({1, pixels, header.panels(), s.acc, s.acc, false, 0}, 0, column, pixels, box ? box + column : nullptr);
    }
    output.finish();
  }
}

// The same by F(4, 3) along the rows on words, four rows of outputs at a time; a kernel of 9 rows is three of 3, whose products
// accumulate.
void Convolution::run_kn2row_tiled(int image, int first_row, int end_row) const {
  Scratch& s = thread_scratch();
  const int tile = header.tile_for_bits[a.x_bits[image] - ADABM_MIN_BITS];
  const Line& line = kTiles[tile].rows;
  const PackedHeader form = kernel_columns_out(header);
  const int R = header.kernel_h, S = header.kernel_w, pad_h = R / 2, pad_w = S / 2, panels = form.panels(), pitch = panels * kPanel;
  const int threes = R / line.kernel, window = line.outputs + R - 1;
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  s.codes.resize(std::max(s.codes.size(), static_cast<size_t>(line.taps) * kMaxPixels * threes * pixel_bytes * 2));
  s.patch.resize(std::max(s.patch.size(), static_cast<size_t>(window) * kMaxPixels * pixel_bytes));

  TransformArgs t = {};
  t.pixel_bytes = pixel_bytes, t.out = s.codes.data();
  RowProductArgs p = {};
  p.x = s.codes.data(), p.tile_stride = 2 * static_cast<ptrdiff_t>(threes) * pixel_bytes, p.quads = 2 * threes * header.quads(), p.panels = panels;
  p.w = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[tile];
  p.row_stride = s.columns[1] - s.columns[0], p.rows = line.outputs;

  for (int row = first_row; row < end_row; row += line.outputs) {
    const int rows = std::min(line.outputs, end_row - row), last = row + rows - 1;
    RowOutput output[kMaxTileOutputs] = {
        {*this, image, row}, {*this, image, std::min(row + 1, last)}, {*this, image, std::min(row + 2, last)}, {*this, image, last}};
    const int32_t* box = box_rows(image, row, rows);
    const bool rows_inside = row >= pad_h && row - pad_h + window <= a.height;
    // As in run_kn2row, of each row of the tile.
    int done = -pad_w;
    for (int column = 0, pixels; column < a.width; column += pixels) {
      pixels = std::min(kMaxBlockPixels, a.width - column);
      for (int i = 0; column && i < line.outputs; i++)
        std::memmove(s.columns[i], s.columns[i] + kMaxBlockPixels * pitch, sizeof(int32_t) * (S - 1) * pitch);
      for (const int end = column + pixels + pad_w; done < end; done += p.tiles) {
        p.sums = s.columns[0] + static_cast<ptrdiff_t>(done - column + pad_w) * pitch;
        if (done < 0 || done >= a.width) {
          p.tiles = 1;
          for (int i = 0; i < line.outputs; i++) std::memset(p.sums + i * p.row_stride, 0, sizeof(int32_t) * pitch);
          continue;
        }
        p.tiles = std::min({kMaxPixels, end - done, a.width - done});
        if (rows_inside) {
          t.x = x + static_cast<ptrdiff_t>(row - pad_h) * row_bytes + static_cast<ptrdiff_t>(done) * pixel_bytes, t.row_stride = row_bytes;
        } else {
          copy_patch(x, a.height, a.width, pixel_bytes, row - pad_h, done, window, p.tiles, s.patch.data());
          t.x = s.patch.data(), t.row_stride = static_cast<ptrdiff_t>(p.tiles) * pixel_bytes;
        }
        t.tiles = p.tiles, t.plane = p.tap_stride = p.tiles * p.tile_stride;
        kernels.word_transform_rows(t, threes);
        kernels.word_row_product(p);
      }
      for (int i = 0; i < rows; i++) {
        output[i].prefetch(0, header.panels(), column, pixels);
        kernels.gather_columns({s.columns[i], pitch, S, header.out_channels, pixels, true, i, s.acc});
        output[i].write({1, pixels, header.panels(), s.acc, s.acc, false, 0}, 0, column, pixels,
                        box ? box + static_cast<ptrdiff_t>(i) * box_stride + column : nullptr);
      }
    }
    for (int i = 0; i < rows; i++) output[i].finish();
  }
}

}  // namespace adabm
