#include <cstring>

#include "common/status.h"
#include "cpu/packed.h"

namespace adabm {
namespace {

PackedHeader layout(const adabm_weights& w) {
  ADABM_REQUIRE(w.struct_bytes == sizeof(adabm_weights), "struct_bytes must be %zu, got %u", sizeof(adabm_weights), w.struct_bytes);
  ADABM_REQUIRE(w.out_channels > 0 && w.channels > 0, "out_channels and channels must be positive, got %d and %d", w.out_channels,
                w.channels);
  ADABM_REQUIRE(w.out_channels <= 1 << 16 && w.channels <= 1 << 16, "out_channels and channels must be at most 65536, got %d and %d",
                w.out_channels, w.channels);
  ADABM_REQUIRE(w.kernel_h > 0 && w.kernel_h % 2 && w.kernel_h <= 15 && w.kernel_w > 0 && w.kernel_w % 2 && w.kernel_w <= 15,
                "kernel must be odd and at most 15 a side, got %dx%d", w.kernel_h, w.kernel_w);
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
    if (h.tile_offset[tile]) continue;
    h.tile_offset[tile] = h.bytes;
    h.bytes += panel_bytes(h, w.kernel_h * w.kernel_w) * h.panels() * h.kernels();
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
          out[(o / kPanel) * panel_bytes(h, taps) + (static_cast<size_t>(t) * h.quads() + c / 4) * 64 + (o % kPanel) * 4 + c % 4] =
              *from++;
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
    adabm::pack_direct(*weights, header, static_cast<int8_t*>(packed) + header.tile_offset[ADABM_TILE_DIRECT]);
  });
}
