// Convolution to few outputs, which takes the columns of the kernel as outputs too (kernel_columns_out of packed.h).
//
// Three outputs fill 3 of the 16 lanes of a panel. With the nine columns of a 9x9 kernel they are 27, which fill two panels but for
// five lanes, and the remaining kernel is 9x1, which takes a ninth of the steps. A product then belongs to the pixel that is as many columns
// away as the kernel column of the product is from the middle one, and a last pass adds up the products of each pixel (`gather_columns`).
#include <algorithm>
#include <cstring>

#include "cpu/convolution.h"

namespace adabm {

// Each column of codes is multiplied once, by the weights of all kernel columns; the sums are then added up at the pixels to which they
// belong.
void Convolution::run_kn2row(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image;
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

  for (const RowGroup* group = part.begin; group < part.end; group++) {
    const int row = group->row;
    RowOutput output(*this, image, row, written(*group, row));
    const int32_t* box = box_rows(image, *group, part.columns);
    // Rows outside the image add nothing.
    const int top = std::max(0, row - pad_h), skipped = top - (row - pad_h);
    p.taps = std::min(a.height, row + pad_h + 1) - top;
    p.w = weights + static_cast<ptrdiff_t>(skipped) * p.quads * panels * kPanel * 4;
    const uint8_t* x_row = x + static_cast<ptrdiff_t>(top) * row_bytes;
    // s.columns holds the sums of the columns from `column` - pad_w on, zeros outside the image; the last S - 1 columns of a group are the
    // first ones of the next group.
    for (const Span& span : *group->spans) {
      int done = span.begin - pad_w;
      for (int column = span.begin, pixels; column < span.end; column += pixels) {
        pixels = std::min(kMaxBlockPixels, span.end - column);
        int32_t* const columns = s.columns[0];
        if (column > span.begin) std::memmove(columns, columns + kMaxBlockPixels * pitch, sizeof(int32_t) * (S - 1) * pitch);
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
    }
    output.finish();
  }
}

// Computes the same by F(4, 3) along the rows on words, four rows of outputs at a time; a kernel of 9 rows counts as three kernels of 3
// rows, whose products accumulate.
void Convolution::run_kn2row_tiled(const Part& part) const {
  Scratch& s = thread_scratch();
  const int image = part.image, tile = header.tile_for_bits[a.x_bits[image] - ADABM_MIN_BITS];
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

  for (const RowGroup* group = part.begin; group < part.end; group++) {
    const int row = group->row, rows = group->rows;
    Rows out(*this, image, *group);
    const int32_t* box = box_rows(image, *group, part.columns);
    const bool rows_inside = row >= pad_h && row - pad_h + window <= a.height;
    // Each row of the tile is handled as in run_kn2row.
    for (const Span& span : *group->spans) {
      int done = span.begin - pad_w;
      for (int column = span.begin, pixels; column < span.end; column += pixels) {
        pixels = std::min(kMaxBlockPixels, span.end - column);
        for (int i = 0; column > span.begin && i < line.outputs; i++)
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
          out.output[i].prefetch(0, header.panels(), column, pixels);
          kernels.gather_columns({s.columns[i], pitch, S, header.out_channels, pixels, true, i, s.acc});
          out.output[i].write({1, pixels, header.panels(), s.acc, s.acc, false, 0}, 0, column, pixels,
                              box ? box + static_cast<ptrdiff_t>(i) * box_stride + column : nullptr);
        }
      }
    }
    for (int i = 0; i < rows; i++) out.output[i].finish();
  }
}

}  // namespace adabm
