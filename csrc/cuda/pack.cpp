// Packs weights in host memory, in the order in which the GPU kernels read them.
#include <algorithm>
#include <cstring>

#include "common/rules.h"
#include "common/status.h"
#include "cuda/layout.h"

namespace adabm {
namespace cuda {
namespace {

enum class FourBits { kNone, kAsGiven, kHalved };

int64_t weight_count(const adabm_weights& w) {
  const int64_t taps = static_cast<int64_t>(w.kernel_h) * w.kernel_w;
  return (w.border_kernels ? taps : 1) * w.out_channels * taps * w.channels;
}

// Returns whether the weights fit 4 signed bits: as they are, or, where all are odd, as k' of m = 2k' + 1, with the sum of the codes added.
FourBits four_bit_form(const adabm_weights& w, bool box_filter) {
  if (unfolds(w.channels, w.kernel_w)) return FourBits::kNone;
  bool fit = true, halved = !box_filter;
  for (int64_t i = 0, count = weight_count(w); i < count && (fit || halved); i++) {
    const int m = w.weight[i];
    fit = fit && m >= -8 && m <= 7;
    halved = halved && m % 2 && m >= -15 && m <= 15;
  }
  return fit ? FourBits::kAsGiven : halved ? FourBits::kHalved : FourBits::kNone;
}

// Returns whether the k' of m = 2k' + 1 are so small that m itself fits 8 bits: m is then packed, and no sum of the codes is needed.
bool liftable(const adabm_weights& w, bool box_filter) {
  if (!box_filter) return false;
  const auto fits = [](int8_t k) { return k >= -64 && k <= 63; };
  return std::all_of(w.weight, w.weight + weight_count(w), fits);
}

// Returns the largest magnitude of a sum of all weights m of one sign of an output: no sum of products with codes up to c is larger in
// magnitude than c times this number. It is at least 1, since 0 stands for unknown.
int32_t reach(const adabm_weights& w, bool box_filter) {
  const int64_t products = static_cast<int64_t>(w.kernel_h) * w.kernel_w * w.channels;
  int64_t most = 1;
  for (int64_t o = 0, outputs = weight_count(w) / products; o < outputs; o++) {
    int64_t sums[2] = {0, 0};
    for (int64_t i = o * products; i < (o + 1) * products; i++) {
      const int m = box_filter ? 2 * w.weight[i] + 1 : w.weight[i];
      sums[m < 0] += m < 0 ? -m : m;
    }
    most = std::max({most, sums[0], sums[1]});
  }
  return static_cast<int32_t>(std::min<int64_t>(most, INT32_MAX));
}

struct Layout {
  OutputTiling tiling;
  Form forms[2];  // the 8-bit form and the 4-bit form
  FourBits four_bits;
  bool lifted;  // true where the 8-bit form holds 2k' + 1
  int64_t classes, bytes;
};

Layout layout(const adabm_weights& w, int box_filter, int shuffle) {
  check_rules(w);
  require_plain(w.geometry);
  ADABM_REQUIRE(box_filter == 0 || box_filter == 1, "box_filter must be 0 or 1, got %d", box_filter);
  ADABM_REQUIRE(shuffle >= 1 && shuffle <= 16 && w.out_channels % (shuffle * shuffle) == 0,
                "shuffle must be 1..16 and its square divide out_channels %d, got %d", w.out_channels, shuffle);
  Layout l;
  l.tiling = output_tiling(w.out_channels, shuffle);
  l.classes = w.border_kernels ? w.kernel_h * w.kernel_w : 1;
  l.four_bits = four_bit_form(w, box_filter);
  l.lifted = liftable(w, box_filter);
  l.bytes = kPackedHeaderBytes;
  for (int form = 0; form < 2; form++) {
    l.forms[form] = make_form(form ? 4 : 8, w.channels, w.kernel_h, w.kernel_w, l.tiling.width);
    l.forms[form].offset = l.bytes;
    if (form == 0 || l.four_bits != FourBits::kNone) l.bytes += l.classes * l.tiling.tiles * l.forms[form].tile_bytes;
  }
  if (box_filter && !l.lifted) l.bytes += kBoxBytes;  // the length tells this to the host, which cannot read the header on the device
  return l;
}

void pack_form(const adabm_weights& w, const Layout& l, int bits, int shuffle, uint8_t* out) {
  const Form& f = l.forms[bits == 4];
  const bool unfolded = unfolds(w.channels, w.kernel_w), halved = bits == 4 && l.four_bits == FourBits::kHalved;
  const int row_codes = kRowBytes * 8 / bits, row_taps = f.slices * 2 / f.planes;
  for (int64_t b = 0; b < l.classes; b++)
    for (int t = 0; t < l.tiling.tiles; t++, out += f.tile_bytes) {
      const OutputTile tile = output_tile(l.tiling, shuffle, t);
      for (int o = 0; o < tile.count; o++) {
        const int8_t* from = w.weight + (b * w.out_channels + tile.first + o) * w.kernel_h * w.kernel_w * w.channels;
        for (int i = 0; i < w.kernel_h * w.kernel_w; i++)
          for (int c = 0; c < w.channels; c++) {
            const int m = *from++, tap = unfolded ? i / w.kernel_w : i, code = unfolded ? i % w.kernel_w * 4 + c : c;
            const int row = code / row_codes, at = code % row_codes, chunk = row / f.planes, step = row % f.planes / 2;
            const int64_t slice = (static_cast<int64_t>(chunk) * (f.planes / 2) + step) * row_taps + tap;
            uint8_t* bytes = out + ((slice * 2 + row % 2) * l.tiling.width + o) * kRowBytes;
            if (bits == 8)
              bytes[at] = static_cast<uint8_t>(l.lifted ? 2 * m + 1 : m);
            else
              bytes[at / 2] |= static_cast<uint8_t>(((halved ? (m - 1) / 2 : m) & 15) << (at % 2 * 4));
          }
      }
    }
}

}  // namespace
}  // namespace cuda
}  // namespace adabm

extern "C" adabm_status adabm_pack_bytes_cuda(const adabm_weights* weights, int32_t box_filter, int32_t shuffle, uint64_t* bytes) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(weights && weights->weight && bytes, "weights and bytes must not be null");
    *bytes = static_cast<uint64_t>(adabm::cuda::layout(*weights, box_filter, shuffle).bytes);
  });
}

extern "C" adabm_status adabm_pack_cuda(const adabm_weights* weights, int32_t box_filter, int32_t shuffle, void* packed) {
  using namespace adabm::cuda;
  return adabm::guarded([&] {
    ADABM_REQUIRE(weights && weights->weight && packed, "weights and packed must not be null");
    const Layout l = layout(*weights, box_filter, shuffle);
    uint8_t* out = static_cast<uint8_t*>(packed);
    std::memset(out, 0, static_cast<size_t>(l.bytes));
    const PackedHeader header = {
        kPackedMagic, ADABM_ABI_VERSION, {box_filter && !l.lifted, box_filter || l.four_bits == FourBits::kHalved}, reach(*weights, box_filter)};
    std::memcpy(out, &header, sizeof header);
    pack_form(*weights, l, 8, shuffle, out + l.forms[0].offset);
    if (l.four_bits != FourBits::kNone) pack_form(*weights, l, 4, shuffle, out + l.forms[1].offset);
  });
}
