#include <cstring>

#include "common/status.h"
#include "cpu/packed.h"

namespace adabm {

const TileTables kTiles[ADABM_TILE_COUNT] = {
    {1, 3, {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}},
    {2, 4, {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}}, {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 1}}},
    {3,
     5,
     {{2, -1, -2, 1, 0}, {0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {0, 2, -1, -2, 1}},
     {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {0, 0, 1}}},
    {4,
     6,
     {{4, 0, -5, 0, 1, 0}, {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}},
     {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 1}}},
};

int tap_shift(const TileTables& tile, int tap, int bits, int* largest) {
  int negative = 0, positive = 0;
  for (int j = 0; j < tile.taps; j++) (tile.codes[tap][j] < 0 ? negative : positive) += tile.codes[tap][j];
  const int top = (1 << bits) - 1;
  *largest = (positive - negative) * top;
  return -negative * top;
}

namespace {

PackedHeader layout(const adabm_weights& w) {
  ADABM_REQUIRE(w.struct_bytes == sizeof(adabm_weights), "struct_bytes must be %zu, got %u", sizeof(adabm_weights), w.struct_bytes);
  ADABM_REQUIRE(w.out_channels > 0 && w.channels > 0, "out_channels and channels must be positive, got %d and %d", w.out_channels,
                w.channels);
  ADABM_REQUIRE(w.out_channels <= 1 << 16 && w.channels <= 1 << 16, "out_channels and channels must be at most 65536, got %d and %d",
                w.out_channels, w.channels);
  ADABM_REQUIRE(w.kernel_h > 0 && w.kernel_h % 2 && w.kernel_h <= kMaxKernel && w.kernel_w > 0 && w.kernel_w % 2 && w.kernel_w <= kMaxKernel,
                "kernel must be odd and at most %d a side, got %dx%d", kMaxKernel, w.kernel_h, w.kernel_w);
  PackedHeader h = {};
  h.magic = kPackedMagic, h.version = ADABM_ABI_VERSION;
  h.out_channels = w.out_channels, h.channels = w.channels, h.kernel_h = w.kernel_h, h.kernel_w = w.kernel_w;
  ADABM_REQUIRE(w.border_kernels == 0 || w.border_kernels == 1, "border_kernels must be 0 or 1, got %d", w.border_kernels);
  h.border_kernels = w.border_kernels;
  h.bytes = kPackedHeaderBytes;
  for (int b = 0; b < ADABM_BIT_WIDTHS; b++) {
    const int tile = w.tile_for_bits[b];
    ADABM_REQUIRE(tile >= 0 && tile < ADABM_TILE_COUNT, "tile_for_bits[%d] must be 0..%d, got %d", b, ADABM_TILE_COUNT - 1, tile);
    h.tile_for_bits[b] = tile;
    if (tile != ADABM_TILE_DIRECT) {
      ADABM_REQUIRE(w.kernel_h == 3 && w.kernel_w == 3 && !w.border_kernels, "tile_for_bits[%d] must be 0 (direct) for this kernel, got %d",
                    b, tile);
      for (int j = 0, largest; j < kTiles[tile].taps; j++) {
        tap_shift(kTiles[tile], j, b + ADABM_MIN_BITS, &largest);
        ADABM_REQUIRE(largest <= 255, "tile_for_bits[%d] = %d is not exact: %d-bit codes transform to %d", b, tile, b + ADABM_MIN_BITS, largest);
      }
      h.start_offset[b] = h.bytes;
      h.bytes += sizeof(int32_t) * kTiles[tile].taps * h.panels() * kPanel;
    }
    if (h.tile_offset[tile]) continue;
    h.tile_offset[tile] = h.bytes;
    h.bytes += panel_bytes(h, tile ? kTiles[tile].taps * w.kernel_h : w.kernel_h * w.kernel_w) * h.panels() * h.kernels();
  }
  return h;
}

void pack_direct(const adabm_weights& w, const PackedHeader& h, int8_t* out) {
  const int taps = w.kernel_h * w.kernel_w;
  const int8_t* from = w.weight;
  for (int b = 0; b < h.kernels(); b++, out += panel_bytes(h, taps) * h.panels())
    for (int o = 0; o < w.out_channels; o++)
      for (int t = 0; t < taps; t++)
        for (int c = 0; c < w.channels; c++)
          out[weight_offset(h, taps, o, t, c)] = *from++;
}

void pack_tile(const adabm_weights& w, const PackedHeader& h, int tile, int8_t* out) {
  const TileTables& table = kTiles[tile];
  const int taps = table.taps * 3;
  for (int o = 0; o < w.out_channels; o++)
    for (int r = 0; r < 3; r++)
      for (int c = 0; c < w.channels; c++)
        for (int j = 0; j < table.taps; j++) {
          int value = 0;
          for (int s = 0; s < 3; s++)
            value += table.weights[j][s] * w.weight[((static_cast<size_t>(o) * 3 + r) * 3 + s) * w.channels + c];
          ADABM_REQUIRE(value >= -128 && value <= 127, "tile %d is not exact: a weight of output %d transforms to %d", tile, o, value);
          out[weight_offset(h, taps, o, j * 3 + r, c)] = static_cast<int8_t>(value);
        }
}

void sum_starts(const PackedHeader& h, int tile, int bits, const int8_t* packed, int32_t* start) {
  const TileTables& table = kTiles[tile];
  for (int j = 0, largest; j < table.taps; j++) {
    const int shift = tap_shift(table, j, bits, &largest);
    for (int o = 0; o < h.panels() * kPanel; o++) {
      int32_t sum = 0;
      for (int r = 0; r < 3; r++)
        for (int c = 0; c < h.quads() * 4; c++) sum += packed[weight_offset(h, table.taps * 3, o, j * 3 + r, c)];
      start[j * h.panels() * kPanel + o] = -shift * sum;
    }
  }
}

}  // namespace
}  // namespace adabm

extern "C" adabm_status adabm_pack_bytes_cpu(const adabm_weights* weights, uint64_t* bytes) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(weights && bytes, "weights and bytes must not be null");
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
    if (header.tile_offset[ADABM_TILE_DIRECT]) adabm::pack_direct(*weights, header, base + header.tile_offset[ADABM_TILE_DIRECT]);
    for (int tile = 1; tile < ADABM_TILE_COUNT; tile++)
      if (header.tile_offset[tile]) adabm::pack_tile(*weights, header, tile, base + header.tile_offset[tile]);
    for (int b = 0; b < ADABM_BIT_WIDTHS; b++)
      if (header.start_offset[b])
        adabm::sum_starts(header, header.tile_for_bits[b], b + ADABM_MIN_BITS, base + header.tile_offset[header.tile_for_bits[b]],
                          reinterpret_cast<int32_t*>(base + header.start_offset[b]));
  });
}
