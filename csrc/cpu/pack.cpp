// Packs the weights of a layer for the CPU kernels: in panels of 16 outputs, unchanged or transformed for a tile. cpu/packed.h
// describes the packed weights and the tables beside them.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/rules.h"
#include "common/status.h"
#include "cpu/general.h"
#include "cpu/packed.h"
#include "cpu/sums16.h"

namespace adabm {

namespace {

// Each tile has two matrices: B^T for codes, then G for weights. The outer taps come last.
// clang-format off
constexpr Line kF1 = {1, 3, 1, 3,
                      {{1}},
                      {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
constexpr Line kF2 = {2, 3, 4, 1,
                      {{0, 1, 1, 0}, {0, -1, 1, 0}, {1, 0, -1, 0}, {0, -1, 0, 1}},
                      {{1, 1, 1}, {1, -1, 1}, {1, 0, 0}, {0, 0, 1}}};
constexpr Line kF3 = {3, 3, 5, 1,
                      {{0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {2, -1, -2, 1, 0}, {0, 2, -1, -2, 1}},
                      {{1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, 0, 0}, {0, 0, 1}}};
constexpr Line kF4 = {4, 3, 6, 1,
                      {{0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0},
                       {0, 2, -1, -2, 1, 0}, {4, 0, -5, 0, 1, 0}, {0, 4, 0, -5, 0, 1}},
                      {{1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {1, 0, 0}, {0, 0, 1}}};

// These weights contain the factors of transform_word_sums, which cost nothing here.
constexpr Line kF4OfWords = {4, 3, 6, 1,
                             {{0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0},
                              {0, 2, -1, -2, 1, 0}, {4, 0, -5, 0, 1, 0}, {0, 4, 0, -5, 0, 1}},
                             {{1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {6, 0, 0}, {0, 0, 6}}};

// B^T is the same as above because the points are the same.
constexpr Line kF2Of5Words = {2, 5, 6, 1,
                              {{0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0},
                               {0, 2, -1, -2, 1, 0}, {4, 0, -5, 0, 1, 0}, {0, 4, 0, -5, 0, 1}},
                              {{1, 1, 1, 1, 1}, {1, -1, 1, -1, 1}, {1, 2, 4, 8, 16}, {1, -2, 4, -8, 16},
                               {6, 0, 0, 0, 0}, {0, 0, 0, 0, 12}}};
// clang-format on

}  // namespace

const TileTables kTiles[ADABM_TILE_COUNT] = {{},
                                             {kF2, kF1, false, false},
                                             {kF2, kF2, false, false},
                                             {kF2, kF3, false, false},
                                             {kF2, kF4, false, false},
                                             {kF4OfWords, kF4OfWords, true, false},
                                             {kF2Of5Words, kF2Of5Words, true, false},
                                             {kF4OfWords, kF1, true, true},
                                             {kF3, kF3, false, false},
                                             {kF3, kF4, false, false}};

int tap_shift(const TileTables& tile, int row_tap, int column_tap, int bits, int* largest) {
  // A tap weighs the codes under the tile by the products of two rows of B^T.
  int below = 0, above = 0;
  for (int i = 0; i < tile.rows.taps; i++)
    for (int j = 0; j < tile.columns.taps; j++) {
      const int factor = tile.rows.codes[row_tap][i] * tile.columns.codes[column_tap][j];
      (factor < 0 ? below : above) += std::abs(factor);
    }
  const int top = (1 << bits) - 1;
  *largest = (below + above) * top;
  return below * top;
}

int product_taps(const PackedHeader& h, int tile) {
  if (tile == ADABM_TILE_DIRECT) return h.kernel_h * h.kernel_w;
  const TileTables& table = kTiles[tile];
  if (table.kn2row) return 2 * table.rows.taps * (h.kernel_h / table.rows.kernel);
  if (table.words) return 2 * table.columns.taps * table.rows.taps;
  int taps = 0;
  for (int j = 0; j < table.columns.taps; j++)
    for (int i = 0; i < table.rows.taps; i++) taps += h.parts[tile][j][part_group(table.rows, i)] * table.columns.run;
  return taps;
}

namespace {

// Returns the transformed weights [column tap * run][row tap][K][C]; with border_kernels those of the inner kernel.
std::vector<int> transform_weights(const adabm_weights& w, const TileTables& tile) {
  const Line &rows = tile.rows, &columns = tile.columns;
  const int side = rows.kernel;
  const size_t taps = static_cast<size_t>(side) * side, inside = w.border_kernels ? taps / 2 * w.out_channels : 0;
  const size_t plane = static_cast<size_t>(w.out_channels) * w.channels;
  std::vector<int> out(plane * rows.taps * columns.taps * columns.run);
  for (int o = 0; o < w.out_channels; o++)
    for (int c = 0; c < w.channels; c++) {
      const int8_t* from = w.weight + (inside + o) * taps * w.channels + c;
      int along_rows[kMaxTaps][kMaxTileKernel] = {};
      for (int i = 0; i < rows.taps; i++)
        for (int r = 0; r < side; r++)
          for (int s = 0; s < side; s++) along_rows[i][s] += rows.weights[i][r] * from[(r * side + s) * w.channels];
      int* to = out.data() + static_cast<size_t>(o) * w.channels + c;
      for (int j = 0; j < columns.taps * columns.run; j++)
        for (int i = 0; i < rows.taps; i++, to += plane)
          for (int s = 0; s < side; s++) *to += columns.weights[j][s] * along_rows[i][s];
    }
  return out;
}

// Finds how many int8 parts the weights of each tap need.
void count_parts(const adabm_weights& w, int tile, uint8_t (*parts)[kPartGroups]) {
  const TileTables& table = kTiles[tile];
  const std::vector<int> values = transform_weights(w, table);
  const int* value = values.data();
  for (int j = 0; j < table.columns.taps * table.columns.run; j++)
    for (int i = 0; i < table.rows.taps; i++)
      for (int o = 0; o < w.out_channels; o++)
        for (int c = 0; c < w.channels; c++, value++) {
          const int needed = *value < 0 ? (127 - *value) / 128 : (*value + 126) / 127;
          ADABM_REQUIRE(needed <= kMaxParts, "tile %d needs more than %d bytes: a weight of output %d transforms to %d", tile, kMaxParts, o, *value);
          uint8_t& most = parts[j / table.columns.run][part_group(table.rows, i)];
          most = static_cast<uint8_t>(std::max({int{most}, needed, 1}));
        }
}

PackedHeader layout(const adabm_weights& w) {
  check_rules(w);
  PackedHeader h = {};
  h.magic = kPackedMagic, h.version = ADABM_ABI_VERSION;
  h.out_channels = w.out_channels, h.channels = w.channels, h.kernel_h = w.kernel_h, h.kernel_w = w.kernel_w;
  h.border_kernels = w.border_kernels;
  if (!is_plain(w.geometry)) {
    lay_out_general(w, h);
    return h;
  }
  const int lanes = kernel_columns_out(h).panels();
  const bool columns_fit = !w.border_kernels && lanes <= kMaxPanels;
  h.kn2row = columns_fit && lanes < h.panels() * w.kernel_w;
  h.bytes = kPackedHeaderBytes;
  for (int b = 0; b < ADABM_BIT_WIDTHS; b++) {
    const int tile = w.tile_for_bits[b];
    ADABM_REQUIRE(tile >= 0 && tile < ADABM_TILE_COUNT, "tile_for_bits[%d] must be 0..%d, got %d", b, ADABM_TILE_COUNT - 1, tile);
    h.tile_for_bits[b] = tile;
    const TileTables& table = kTiles[tile];
    const bool bytes = tile != ADABM_TILE_DIRECT && !table.words;
    ADABM_REQUIRE(!table.kn2row || (columns_fit && w.kernel_h % table.rows.kernel == 0),
                  "tile_for_bits[%d] = %d is for kernels of 3, 9 or 15 rows with at most %d outputs times columns, not for %d outputs of %dx%d", b, tile,
                  kMaxPanels * kPanel, w.out_channels, w.kernel_h, w.kernel_w);
    ADABM_REQUIRE(tile == ADABM_TILE_DIRECT || table.kn2row || (w.kernel_h == table.rows.kernel && w.kernel_w == table.rows.kernel),
                  "tile_for_bits[%d] = %d is for kernels of %dx%d, not of %dx%d", b, tile, table.rows.kernel, table.rows.kernel, w.kernel_h, w.kernel_w);
    if (bytes) {
      for (int j = 0, largest; j < table.columns.taps; j++)
        for (int i = 0; i < table.rows.taps; i++) {
          tap_shift(table, i, j, b + ADABM_MIN_BITS, &largest);
          ADABM_REQUIRE(largest <= 255, "tile_for_bits[%d] = %d is not exact: %d-bit codes transform to %d", b, tile, b + ADABM_MIN_BITS, largest);
        }
      h.start_offset[b] = h.bytes;
      h.bytes += sizeof(int32_t) * table.columns.taps * table.rows.outputs * h.panels() * kPanel;
    }
    // Pixels along the border are computed by the direct form.
    for (const int used : {tile, w.border_kernels ? ADABM_TILE_DIRECT : tile}) {
      if (h.tile_offset[used]) continue;
      const bool direct = used == ADABM_TILE_DIRECT;
      if (bytes && !direct) count_parts(w, used, h.parts[used]);
      const PackedHeader form = form_of(h, used);
      h.tile_offset[used] = h.bytes;
      h.bytes += panel_bytes(form, product_taps(form, used)) * form.panels() * (direct ? form.kernels() : 1);
    }
  }
  return h;
}

void pack_direct(const adabm_weights& w, const PackedHeader& h, int8_t* out) {
  const int taps = w.kernel_h * w.kernel_w;
  const int8_t* from = w.weight;
  if (h.kn2row) {
    const PackedHeader form = kernel_columns_out(h);
    for (int o = 0; o < w.out_channels; o++)
      for (int r = 0; r < w.kernel_h; r++)
        for (int s = 0; s < w.kernel_w; s++)
          for (int c = 0; c < w.channels; c++) out[weight_offset(form, w.kernel_h, s * w.out_channels + o, r, c)] = *from++;
    return;
  }
  for (int b = 0; b < h.kernels(); b++, out += panel_bytes(h, taps) * h.panels())
    for (int o = 0; o < w.out_channels; o++)
      for (int t = 0; t < taps; t++)
        for (int c = 0; c < w.channels; c++) out[weight_offset(h, taps, o, t, c)] = *from++;
}

void pack_tile(const adabm_weights& w, const PackedHeader& h, int tile, int8_t* out) {
  const Line &rows = kTiles[tile].rows, &columns = kTiles[tile].columns;
  const std::vector<int> values = transform_weights(w, kTiles[tile]);
  const int taps = product_taps(h, tile);
  for (int j = 0, tap = 0; j < columns.taps; j++)
    for (int i = 0; i < rows.taps; i++) {
      const int parts = h.parts[tile][j][part_group(rows, i)];
      for (int s = 0; s < columns.run; s++) {
        const int* value = values.data() + static_cast<size_t>((j * columns.run + s) * rows.taps + i) * w.out_channels * w.channels;
        for (int o = 0; o < w.out_channels; o++)
          for (int c = 0; c < w.channels; c++) {
            int rest = *value++;
            for (int part = 0; part < parts; part++) {
              const int share = rest / (parts - part);
              out[weight_offset(h, taps, o, tap + part * columns.run + s, c)] = static_cast<int8_t>(share);
              rest -= share;
            }
          }
      }
      tap += parts * columns.run;
    }
}

// Writes one weight of a tile on words. Two channels of 16 bits take the place of a quad of bytes: the pairs of channels of tap t take the
// quads of taps 2t and 2t + 1.
void pack_word(const PackedHeader& form, int taps, int o, int tap, int c, int value, int8_t* out) {
  const int pair = c / 2 + 2 * tap * form.quads();
  const int16_t word = static_cast<int16_t>(value);
  std::memcpy(out + weight_offset(form, taps, o, pair / form.quads(), pair % form.quads() * 4) + c % 2 * sizeof word, &word, sizeof word);
}

void pack_words_kn2row(const adabm_weights& w, const PackedHeader& h, int tile, int8_t* out) {
  const PackedHeader form = kernel_columns_out(h);
  const Line& rows = kTiles[tile].rows;
  const int taps = product_taps(h, tile), threes = w.kernel_h / rows.kernel, line = w.kernel_w * w.channels;
  for (int o = 0; o < w.out_channels; o++)
    for (int s = 0; s < w.kernel_w; s++)
      for (int c = 0; c < w.channels; c++)
        for (int i = 0; i < rows.taps; i++)
          for (int n = 0; n < threes; n++) {
            int value = 0;
            for (int r = 0; r < rows.kernel; r++)
              value += rows.weights[i][r] * w.weight[(static_cast<size_t>(o) * w.kernel_h + n * rows.kernel + r) * line + s * w.channels + c];
            pack_word(form, taps, s * w.out_channels + o, i * threes + n, c, value, out);
          }
}

void pack_words(const adabm_weights& w, const PackedHeader& h, int tile, int8_t* out) {
  if (kTiles[tile].kn2row) return pack_words_kn2row(w, h, tile, out);
  const std::vector<int> values = transform_weights(w, kTiles[tile]);
  const int taps = product_taps(h, tile);
  const int* value = values.data();
  for (int tap = 0; tap < taps / 2; tap++)
    for (int o = 0; o < w.out_channels; o++)
      for (int c = 0; c < w.channels; c++, value++) {
        ADABM_REQUIRE(*value >= INT16_MIN && *value <= INT16_MAX, "tile %d needs more than 16 bits: a weight of output %d transforms to %d", tile, o, *value);
        pack_word(h, taps, o, tap, c, *value, out);
      }
}

// Computes the numbers from which the sums of a column tap start, so that the shift of every row tap is undone: -shift times the sum of the
// weights of the tap. The share of the outer taps is added to that of the inner taps, so it must be stated such that it passes through
// transform_sums. That function ends the sums of two rows as (m0 + m1) / 2 and (m0 - m1) / 2, and the sums of three rows as
// ((m2 - m1 - 3 m0) / 3 + m3) / 2, (m1 - 3 m0 + 2 m2) / 6 and (4 m2 - m1 - 3 m0) / 6 + m4.
void sum_starts(const PackedHeader& h, int tile, int bits, const int8_t* packed, int32_t* start) {
  const TileTables& table = kTiles[tile];
  const int taps = product_taps(h, tile), stride = h.panels() * kPanel, rows = table.rows.outputs;
  for (int j = 0, first_tap = 0, tap, largest; j < table.columns.taps; j++, first_tap = tap) {
    for (int o = 0; o < stride; o++) {
      uint32_t undo[kMaxRowTaps] = {};
      tap = first_tap;
      for (int i = 0; i < table.rows.taps; i++) {
        for (int end = tap + h.parts[tile][j][part_group(table.rows, i)] * table.columns.run; tap < end; tap++)
          for (int c = 0; c < h.quads() * 4; c++) undo[i] -= packed[weight_offset(h, taps, o, tap, c)];
        undo[i] *= tap_shift(table, i, j, bits, &largest);
      }
      const uint32_t first = undo[rows], last = undo[rows + 1];
      const uint32_t outer[2][kMaxByteRows] = {{first + last, first - last}, {last - first, 0 - first - last, 2 * last - first}};
      for (int i = 0; i < rows; i++) start[(j * rows + i) * stride + o] = static_cast<int32_t>(undo[i] + outer[rows - kMinTileRows][i]);
    }
  }
}

// Returns the largest sums in 16 bits of the products of each tap of a tile, [column tap * kMaxRowTaps + row tap], for 1-bit codes and the
// actual weights.
std::vector<Sums> largest_sums(const PackedHeader& h, int tile, const int8_t* packed) {
  const bool direct = tile == ADABM_TILE_DIRECT;
  const int taps = product_taps(h, tile), run = direct ? h.kernel_w : kTiles[tile].columns.run, count = run * h.quads();
  std::vector<int> reach, tap_of;  // for each run its largest code, and the tap to which it belongs
  for (int j = 0; !direct && j < kTiles[tile].columns.taps; j++)
    for (int i = 0; i < kTiles[tile].rows.taps; i++) {
      int largest;
      tap_shift(kTiles[tile], i, j, 1, &largest);
      reach.insert(reach.end(), h.parts[tile][j][part_group(kTiles[tile].rows, i)], largest);
      tap_of.resize(reach.size(), j * kMaxRowTaps + i);
    }
  reach.resize(taps / run, 1), tap_of.resize(taps / run, 0);
  std::vector<Sums> sums(kMaxTaps * kMaxRowTaps, Sums{});
  const size_t kernel_bytes = panel_bytes(h, taps) * h.panels();
  for (int b = 0; b < (direct ? h.kernels() : 1); b++, packed += kernel_bytes)
    for (int first = 0; first < taps; first += run)
      for (int o = 0; o < h.out_channels; o++) {
        const int panel = o / kPanel / kMaxPanels * kMaxPanels;
        const ptrdiff_t quad_bytes = static_cast<ptrdiff_t>(std::min(kMaxPanels, h.panels() - panel)) * kPanel * 4;
        add_largest_sums(packed + weight_offset(h, taps, o, first, 0), quad_bytes, count, reach[first / run], sums[tap_of[first / run]]);
      }
  return sums;
}

}  // namespace
}  // namespace adabm

extern "C" adabm_status adabm_pack_bytes_cpu(const adabm_weights* weights, uint64_t* bytes) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(weights && weights->weight && bytes, "weights and bytes must not be null");
    *bytes = adabm::layout(*weights).bytes;
  });
}

extern "C" adabm_status adabm_pack_cpu(const adabm_weights* weights, void* packed) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(weights && weights->weight && packed, "weights and packed must not be null");
    ADABM_REQUIRE(reinterpret_cast<uintptr_t>(packed) % 64 == 0, "packed must be 64-byte aligned");
    const adabm::PackedHeader header = adabm::layout(*weights);
    std::memset(packed, 0, header.bytes);
    std::memcpy(packed, &header, sizeof header);
    int8_t* base = static_cast<int8_t*>(packed);
    if (header.general()) return adabm::pack_general(*weights, *static_cast<adabm::PackedHeader*>(packed), base);
    if (header.tile_offset[ADABM_TILE_DIRECT]) adabm::pack_direct(*weights, header, base + header.tile_offset[ADABM_TILE_DIRECT]);
    for (int tile = 1; tile < ADABM_TILE_COUNT; tile++)
      if (header.tile_offset[tile]) (adabm::kTiles[tile].words ? adabm::pack_words : adabm::pack_tile)(*weights, header, tile, base + header.tile_offset[tile]);
    std::vector<adabm::Sums> sums[ADABM_TILE_COUNT];
    for (int tile = 0; tile < ADABM_TILE_COUNT; tile++)
      if (header.tile_offset[tile] && !adabm::kTiles[tile].words)
        sums[tile] = adabm::largest_sums(adabm::form_of(header, tile), tile, base + header.tile_offset[tile]);
    for (int b = 0; b < ADABM_BIT_WIDTHS; b++) {
      uint16_t* depth = reinterpret_cast<adabm::PackedHeader*>(packed)->depth[b][0];
      for (const adabm::Sums& of_tap : sums[header.tile_for_bits[b]]) *depth++ = adabm::sum_depth(of_tap, b + ADABM_MIN_BITS);
      if (header.tile_offset[ADABM_TILE_DIRECT])
        reinterpret_cast<adabm::PackedHeader*>(packed)->direct_depth[b] = adabm::sum_depth(sums[ADABM_TILE_DIRECT][0], b + ADABM_MIN_BITS);
      if (header.start_offset[b])
        adabm::sum_starts(header, header.tile_for_bits[b], b + ADABM_MIN_BITS, base + header.tile_offset[header.tile_for_bits[b]],
                          reinterpret_cast<int32_t*>(base + header.start_offset[b]));
    }
  });
}
