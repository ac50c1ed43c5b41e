// The entries of the CPU library beside the convolution: valid problems and broken ones.
#pragma once

#include "conv2d.h"

inline void fuzz_quantize(Input& in, bool broken) {
  using Args = adabm_quantize_args;
  Arena room(in);
  const int batch = in.from(1, 3), h = in.from(1, broken ? 2 : 7), w = in.from(1, broken ? 4 : 70), c = in.from(1, broken ? 5 : 70), c4 = (c + 3) / 4 * 4;
  const bool int16 = in.one_in(3), planar = in.one_in(2);
  Args a = {};
  a.struct_bytes = sizeof a, a.isa = an_isa(in), a.threads = some_threads(in), a.batch = batch, a.height = h, a.width = w, a.channels = c;
  a.stride_n = static_cast<int64_t>(h) * w * c;
  if (planar) a.stride_c = static_cast<int64_t>(h) * w, a.stride_h = w, a.stride_w = 1;
  else a.stride_c = 1, a.stride_w = c, a.stride_h = static_cast<int64_t>(w) * c;
  const size_t count = static_cast<size_t>(batch) * h * w * c, element = int16 ? 2 : 4;
  uint8_t* x = room.make<uint8_t>(count * element, element);
  if (int16) in.fill(x, 2 * count, 0, 255);
  else in.fill_floats(reinterpret_cast<float*>(x), count, 300, true);
  a.x = x, a.x_format = int16, a.x_fraction = !int16 ? 0 : in.one_in(4) ? in.from(ADABM_MIN_FRACTION, ADABM_MAX_FRACTION) : in.from(0, 8);
  a.grid = room.floats(14, 3), a.shift = !int16 && in.one_in(2) ? room.floats(c, 50) : nullptr;
  int32_t* bits = room.widths(batch);
  a.bits = bits;
  const int codes = in.one_in(3) ? c + in.below(9) : c4, pitch = in.one_in(3) ? codes + in.below(9) : codes;
  a.y_channels = codes == c4 ? 0 : codes, a.y_pitch = pitch;
  if (!a.y_channels && pitch < c4) return;
  uint8_t* y_q = room.make<uint8_t>((static_cast<size_t>(batch) * h * w - 1) * pitch + codes);
  a.y_q = y_q;
  const std::vector<Guarded*> written = {room.last()};
  set_region(room, a.region, batch, h, w, false);
  if (broken) {
    std::vector<Rule> rules = common_rules<Args>();
    const std::vector<Rule> more = {{AT(Args, isa), 0, ADABM_ISA_COUNT - 1}, {AT(Args, batch), 1, (INT_MAX - 1) / h}, {AT(Args, height), 1, (INT_MAX - 1) / batch},
                                    {AT(Args, width), 1, INT_MAX}, {AT(Args, channels), 1, kMostSide - 1}, {AT(Args, y_channels), 0, pitch},
                                    {AT(Args, y_pitch), 0, kMostSide - 1}, {AT(Args, packed_codes), 0, 0}, {AT(Args, y_start), 0, 0}, {AT(Args, x_format), 0, 1}};
    rules.insert(rules.end(), more.begin(), more.end());
    int16 ? rules.push_back({AT(Args, x_fraction), ADABM_MIN_FRACTION, ADABM_MAX_FRACTION}) : rules.push_back({AT(Args, x_fraction), 0, 0});
    add_region_rules(rules, AT(Args, region), a.region);
    const std::vector<Pointer> pointers = {{AT(Args, x), element, true}, {AT(Args, grid), 4, true}, {AT(Args, bits), 4, true},
                                           {AT(Args, shift), 4, false}, {AT(Args, y_q), 1, true}};
    refuse_broken(in, a, rules, pointers, adabm_quantize_cpu, written, "adabm_quantize_cpu");
    refuse_bits(in, a, bits, batch, adabm_quantize_cpu, written, "adabm_quantize_cpu");
    Args wrong = a;
    wrong.stride_c = in.one_in(2) ? -1 - in.below(300) : in.one_in(2) ? 1 << 27 : INT64_MAX;
    refused(adabm_quantize_cpu(&wrong), written, "adabm_quantize_cpu");
    if (!a.region.depth) return;
    a.region.pass_most = a.region.pass_least + in.below(3);
    return refused(adabm_quantize_cpu(&a), written, "adabm_quantize_cpu");
  }
  if (adabm_quantize_cpu(&a) != ADABM_OK) fail("adabm_quantize_cpu refuses a valid call");
  calls_of_isa[a.isa]++;
  for (int n = 0; n < batch; n++)
    for (int i = 0; i < h; i++)
      for (int j = 0; j < w; j++) {
        const uint8_t* got = y_q + ((static_cast<size_t>(n) * h + i) * w + j) * pitch;
        const bool computed = pixel_of(a.region, n, i, j, h, w) == kOwn;
        for (int q = 0; q < codes; q++) {
          uint8_t want = computed ? 0 : kPattern;
          if (computed && q < c) {
            const float value = feature(x, n * a.stride_n + i * a.stride_h + j * a.stride_w + q * a.stride_c, int16, a.x_fraction);
            want = code_of(a.shift ? value - a.shift[q] : value, a.grid, bits[n]);
          }
          if (got[q] != want) fail("code " + std::to_string(q) + " at " + std::to_string(i) + ", " + std::to_string(j));
        }
        if (n + 1 < batch || i + 1 < h || j + 1 < w)
          for (int q = codes; q < pitch; q++) require(got[q] == kPattern, "between the channels of two pixels");
      }
  calls.computed++;
}

inline void fuzz_depths(Input& in, bool broken) {
  using Args = adabm_depths_args;
  Arena room(in);
  const int batch = in.from(1, 3), h = in.from(1, broken ? 3 : 20), w = in.from(1, broken ? 3 : 40);
  Args a = {};
  a.struct_bytes = sizeof a, a.threads = some_threads(in), a.batch = batch, a.height = h, a.width = w, a.tile = in.from(1, in.one_in(8) ? 65536 : 24);
  a.top = in.below(a.tile), a.left = in.below(a.tile), a.threshold = in.one_in(3) ? in.below(511) : in.below(60), a.deep = in.from(1, 255);
  const size_t pixels = static_cast<size_t>(batch) * h * w;
  uint8_t* x = room.make<uint8_t>(pixels * 4);
  in.fill(x, pixels * 4, 0, in.one_in(2) ? 255 : 20);
  for (size_t i = 0; i < pixels; i++) x[i * 4 + 3] = 0;
  const int rows = (a.top + h + a.tile - 1) / a.tile, columns = (a.left + w + a.tile - 1) / a.tile;
  uint8_t* depth = room.make<uint8_t>(static_cast<size_t>(batch) * rows * columns);
  a.x_q = x, a.depth = depth;
  if (broken) {
    const std::vector<Guarded*> written = {room.last()};
    std::vector<Rule> rules = common_rules<Args>();
    const std::vector<Rule> more = {{AT(Args, batch), 1, (INT_MAX - 1) / h}, {AT(Args, height), 1, kMostSide}, {AT(Args, width), 1, kMostSide},
                                    {AT(Args, tile), std::max(a.top, a.left) + 1, kMostSide}, {AT(Args, top), 0, a.tile - 1}, {AT(Args, left), 0, a.tile - 1},
                                    {AT(Args, threshold), 0, ADABM_MAX_BEND}, {AT(Args, deep), 1, 255}};
    rules.insert(rules.end(), more.begin(), more.end());
    return refuse_broken(in, a, rules, {{AT(Args, x_q), 1, true}, {AT(Args, depth), 1, true}}, adabm_depths_cpu, written, "adabm_depths_cpu");
  }
  if (adabm_depths_cpu(&a) != ADABM_OK) fail("adabm_depths_cpu refuses a valid call");
  std::vector<int> bends(static_cast<size_t>(batch) * rows * columns);
  for (int n = 0; n < batch; n++)
    for (int i = 0; i < h; i++)
      for (int j = 0; j < w; j++) {
        int& bend = bends[(static_cast<size_t>(n) * rows + (a.top + i) / a.tile) * columns + (a.left + j) / a.tile];
        for (int q = 0; q < 4; q++) {
          const auto at = [&](int row, int column) {
            return static_cast<int>(x[((static_cast<size_t>(n) * h + std::clamp(row, 0, h - 1)) * w + std::clamp(column, 0, w - 1)) * 4 + q]);
          };
          bend = std::max({bend, std::abs(at(i - 1, j) - 2 * at(i, j) + at(i + 1, j)), std::abs(at(i, j - 1) - 2 * at(i, j) + at(i, j + 1))});
        }
      }
  for (size_t i = 0; i < bends.size(); i++) require(depth[i] == (bends[i] > a.threshold ? a.deep : 0), "the depth of a tile");
  calls.computed++;
}

inline void fuzz_interpolate(Input& in, bool broken) {
  using Args = adabm_interpolate_args;
  Arena room(in);
  const int h = in.from(1, broken ? 3 : 18), w = in.from(1, broken ? 3 : 70), channels = in.from(1, 4);
  const int scale = broken || in.below(8) ? in.from(1, 5) : in.from(6, 16), element = 1 << in.below(3);
  Args a = {};
  a.struct_bytes = sizeof a, a.isa = an_isa(in), a.threads = some_threads(in), a.height = h, a.width = w, a.channels = channels, a.scale = scale;
  a.element = element, a.top = in.below(3), a.left = in.below(3), a.x_height = h + a.top + in.below(3), a.x_width = w + a.left + in.below(3);
  const size_t count = static_cast<size_t>(a.x_height) * a.x_width * channels;
  a.x_stride_c = 1, a.x_stride_w = channels, a.x_stride_h = static_cast<int64_t>(a.x_width) * channels;
  const auto fill = [&](uint8_t* to, size_t values) {
    if (element == 4) in.fill_floats(reinterpret_cast<float*>(to), values, 300, true);
    else in.fill(to, values * element, 0, 255);
  };
  uint8_t* x = room.make<uint8_t>(count * element, element);
  fill(x, count);
  a.x = x, a.full = in.one_in(4) ? in.from(1, 32767) : in.from(1, 300), a.y_pitch = channels + in.below(2);
  int16_t* shares = room.make<int16_t>(static_cast<size_t>(h + 2) * (w + 2));
  const int kind = in.below(3);
  in.stir();
  for (int i = 0; i < (h + 2) * (w + 2); i++) shares[i] = static_cast<int16_t>(kind == 0 ? 0 : kind == 1 ? a.full : in.noise() % (a.full + 1));
  a.shares = shares, a.cubic = room.floats(static_cast<size_t>(scale) * 5, 0.5f), a.linear = room.floats(static_cast<size_t>(scale) * 3, 0.5f);
  const size_t row = static_cast<size_t>(w) * scale * a.y_pitch;
  a.y_stride_h = static_cast<int64_t>(row) + in.below(4);
  uint8_t* y = room.make<uint8_t>(((static_cast<size_t>(h) * scale - 1) * a.y_stride_h + row) * element, element);
  Guarded* const out = room.last();
  a.y = y;
  if (broken) {
    std::vector<Rule> rules = common_rules<Args>();
    const std::vector<Rule> more = {{AT(Args, isa), 0, ADABM_ISA_COUNT - 1}, {AT(Args, height), 1, a.x_height - a.top}, {AT(Args, width), 1, a.x_width - a.left},
                                    {AT(Args, channels), 1, std::min(4, a.y_pitch)}, {AT(Args, scale), 1, 16}, {AT(Args, element), 1, 4},
                                    {AT(Args, x_height), h + a.top, INT_MAX}, {AT(Args, x_width), w + a.left, INT_MAX}, {AT(Args, top), 0, a.x_height - h},
                                    {AT(Args, left), 0, a.x_width - w}, {AT(Args, full), 1, 32767}, {AT(Args, y_pitch), channels, INT_MAX}};
    rules.insert(rules.end(), more.begin(), more.end());
    const size_t size = static_cast<size_t>(element);
    const std::vector<Pointer> pointers = {{AT(Args, x), size, true}, {AT(Args, shares), 2, true}, {AT(Args, cubic), 4, true}, {AT(Args, linear), 4, true},
                                           {AT(Args, y), size, true}};
    return refuse_broken(in, a, rules, pointers, adabm_interpolate_cpu, {out}, "adabm_interpolate_cpu");
  }
  // Every instruction set gives what the scalar one gives; what that is tests/upscaling holds to numpy.
  fill(y, out->size() / element);
  const std::vector<uint8_t> before(y, y + out->size());
  if (adabm_interpolate_cpu(&a) != ADABM_OK) fail("adabm_interpolate_cpu refuses a valid call");
  calls_of_isa[a.isa]++;
  const std::vector<uint8_t> first(y, y + out->size());
  std::copy(before.begin(), before.end(), y);
  a.isa = ADABM_ISA_SCALAR, a.threads = 1;
  require(adabm_interpolate_cpu(&a) == ADABM_OK, "adabm_interpolate_cpu");
  for (size_t i = 0; i < first.size() / element; i++) {
    const bool equal = element == 4 ? same(held_at<float>(first.data(), i), held_at<float>(y, i)) : !std::memcmp(first.data() + i * element, y + i * element, element);
    require(equal, "adabm_interpolate_cpu differs from its scalar form");
  }
  require(kind || first == before, "where nothing is smooth, y stays");
  calls.computed++;
}

// The entries without a struct, and null in place of one.
inline void fuzz_rest(Input& in) {
  int32_t built = 7, present = 7;
  int64_t macs = 0;
  const int isa = in.one_in(2) ? in.below(12) - 3 : in.word();
  const bool known = isa > ADABM_ISA_AUTO && isa < ADABM_ISA_COUNT, somewhere = !in.one_in(4);
  const adabm_status status = adabm_isa_cpu(isa, somewhere ? &built : nullptr, &present);
  require(status == (known && somewhere ? ADABM_OK : ADABM_INVALID_ARGUMENT), "adabm_isa_cpu");
  require(status == ADABM_OK ? (built | 1) == 1 && (present | 1) == 1 : built == 7 && present == 7, "what adabm_isa_cpu wrote");
  const int threads = in.below(8) ? in.one_in(2) ? 1 : in.below(2) - 1 : 257 + in.below(300);
  const int64_t rounds = in.one_in(2) ? in.from(1, 9) : in.one_in(2) ? -in.below(300) : (int64_t{1} << 40) + 1 + in.below(300);
  const bool wanted = !in.one_in(8), valid = isa >= 0 && isa < ADABM_ISA_COUNT && threads == 1 && rounds >= 1 && rounds < 10 && wanted;
  const adabm_status peak = adabm_peak_cpu(isa, threads, rounds, wanted ? &macs : nullptr);
  require(valid ? peak == ADABM_OK || peak == ADABM_UNSUPPORTED : peak == ADABM_INVALID_ARGUMENT, "adabm_peak_cpu");
  require((peak == ADABM_OK) == (macs > 0), "what adabm_peak_cpu wrote");
  for (const adabm_status null : {adabm_conv2d_cpu(nullptr), adabm_quantize_cpu(nullptr), adabm_depths_cpu(nullptr), adabm_interpolate_cpu(nullptr),
                                  adabm_pack_cpu(nullptr, nullptr), adabm_pack_bytes_cpu(nullptr, nullptr)})
    require(null == ADABM_INVALID_ARGUMENT, "null is refused");
  require(adabm_abi_version() == ADABM_ABI_VERSION, "the version of the interface");
  (valid ? calls.computed : calls.refused)++;
}
