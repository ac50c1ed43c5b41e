// Turns features of any strides, float32 or int16, into codes, one byte each or packed.
#include <algorithm>
#include <cmath>

#include "adabm/quant_math.h"
#include "common/rules.h"
#include "common/status.h"
#include "cuda/codes.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/region.cuh"

namespace adabm {
namespace cuda {
namespace {

constexpr int kThreads = 256, kMaxGridRows = 65535;

// A target: where codes go, and their grid.
struct Target {
  const float* grid;
  const int32_t* bits;
  uint8_t* y_q;
  int y_channels, y_pitch, y_start;
  bool packed;
  bool aligned;  // true where four codes of one byte each can be stored at once
};

struct QuantizeParams {
  adabm_quantize_args a;  // the arguments that all targets share
  RegionParams region;
  float unit;             // 2^-fraction where x is int16
  int pixels;             // pixels of an image
  int groups;             // groups of four channels to write, for the target that has most
  int pixels_first;       // 1 where neighbouring threads take neighbouring pixels rather than channels
  int count;
  Target targets[ADABM_MAX_TARGETS];
};

// Loads four channels; channels beyond the last get the value of the first.
ADABM_DEVICE void load_values(const QuantizeParams& p, int image, int row, int column, int group, float (&values)[4]) {
  const adabm_quantize_args& a = p.a;
  const int64_t pixel = image * a.stride_n + row * a.stride_h + column * a.stride_w;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int c = group * 4 + i < a.channels ? group * 4 + i : 0;
    const int64_t at = pixel + c * a.stride_c;
    if (a.x_format == ADABM_FEATURES_INT16)
      values[i] = value_of(ptx::load_constant(static_cast<const int16_t*>(a.x) + at), p.unit);
    else
      values[i] = ptx::load_constant(static_cast<const float*>(a.x) + at);
    if (a.shift) values[i] = values[i] - ptx::load_constant(a.shift + c);
  }
}

ADABM_DEVICE void store_codes(const QuantizeParams& p, const Target& t, int image, int pixel, int group, const float (&values)[4]) {
  const int bits = image_bits(t.bits, image);
  const float scale = ptx::load_constant(t.grid + (bits - ADABM_MIN_BITS) * 2), offset = ptx::load_constant(t.grid + (bits - ADABM_MIN_BITS) * 2 + 1);
  const float top = static_cast<float>((1 << bits) - 1);
  uint32_t codes = 0;  // a byte each; codes beyond the last channel are 0
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (group * 4 + i < p.a.channels) codes |= static_cast<uint32_t>(quantize_value(values[i], scale, offset, top)) << (8 * i);
  uint8_t* y = t.y_q + static_cast<int64_t>(image) * p.pixels * t.y_pitch;
  if (!t.packed) {
    y += static_cast<int64_t>(pixel) * t.y_pitch + group * 4;
    if (t.aligned) {
      ptx::store_global(reinterpret_cast<uint32_t*>(y), codes);
    } else {
      for (int i = 0; i < 4 && group * 4 + i < t.y_channels; i++) ptx::store_global(y + i, static_cast<uint8_t>(codes >> (8 * i)));
    }
    return;
  }
  // Four codes are 4, 2 or 1 bytes, whatever the channel they start at.
  const int storage = storage_bits(bits, true), bytes = storage / 2, pitch = pixel_bytes(t.y_pitch, storage), at = (t.y_start / 4 + group) * bytes;
  y += static_cast<int64_t>(pixel) * pitch + at;
  if (storage == 8)
    ptx::store_global(reinterpret_cast<uint32_t*>(y), codes);
  else if (storage == 4)
    ptx::store_global(reinterpret_cast<uint16_t*>(y), static_cast<uint16_t>(nibbles_of_bytes(codes)));
  else
    ptx::store_global(y, static_cast<uint8_t>(pairs_of_nibbles(nibbles_of_bytes(codes))));
  if (t.y_start + (group + 1) * 4 == t.y_pitch)
    for (int i = at + bytes; i < pitch; i++) ptx::store_global(y + (i - at), static_cast<uint8_t>(0));
}

// Grid: [units of an image][images]. kRegion: there is one target, and only pixels that its region computes are written.
template <bool kRegion>
__global__ void __launch_bounds__(kThreads) quantize(const __grid_constant__ QuantizeParams p) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= static_cast<int64_t>(p.pixels) * p.groups) return;
  const int pixel = static_cast<int>(p.pixels_first ? unit % p.pixels : unit / p.groups);
  const int group = static_cast<int>(p.pixels_first ? unit / p.pixels : unit % p.groups);
  const int row = pixel / p.a.width, column = pixel % p.a.width;
  for (int image = blockIdx.y; image < p.a.batch; image += kMaxGridRows) {
    if (kRegion && pixel_use(p.region, image, row, column) == PixelUse::kUntouched) continue;
    float values[4];
    load_values(p, image, row, column, group, values);
    for (int i = 0; i < (kRegion ? 1 : p.count); i++)
      if (group * 4 < p.targets[i].y_channels) store_codes(p, p.targets[i], image, pixel, group, values);
  }
}

// Checks one target and adds it.
void add(QuantizeParams& p, adabm_quantize_args a) {
  ADABM_REQUIRE(a.packed_codes == 0 || a.packed_codes == ADABM_PACKED_Y, "packed_codes must be 0 or %d, got %d", ADABM_PACKED_Y, a.packed_codes);
  ADABM_REQUIRE(!a.packed_codes || a.y_channels == 0, "y_channels must be 0 with packed codes, got %d", a.y_channels);
  check_rules(a);
  ADABM_REQUIRE(a.packed_codes ? a.y_start >= 0 && a.y_start % 4 == 0 && a.y_pitch % 4 == 0 && a.y_start <= a.y_pitch - a.y_channels : a.y_start == 0,
                "y_start must be 0 or, with packed codes, a multiple of 4 with room for %d channels in a y_pitch that is one too, got %d with %d", a.channels,
                a.y_start, a.y_pitch);
  const uintptr_t place = reinterpret_cast<uintptr_t>(a.y_q);
  ADABM_REQUIRE(!a.packed_codes || place % 4 == 0, "y_q must be 4-byte aligned with packed codes");
  ADABM_REQUIRE(static_cast<int64_t>(a.height) * a.width <= INT32_MAX / a.y_pitch, "an image must have less than 2^31 codes, got %dx%d with %d a pixel",
                a.height, a.width, a.y_pitch);
  const bool aligned = a.y_channels % 4 == 0 && a.y_pitch % 4 == 0 && place % 4 == 0;
  p.targets[p.count++] = {a.grid, a.bits, a.y_q, a.y_channels, a.y_pitch, a.y_start, a.packed_codes != 0, aligned};
  p.groups = std::max(p.groups, (a.y_channels + 3) / 4);
}

void run(const adabm_quantize_args* args, int count, int device, void* stream) {
  ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_quantize_args), "args must be a struct of %zu bytes", sizeof(adabm_quantize_args));
  QuantizeParams p = {};
  adabm_quantize_args& a = p.a = args[0];
  for (int i = 0; i < count; i++) {
    const adabm_quantize_args& b = args[i];
    ADABM_REQUIRE(b.struct_bytes == sizeof(adabm_quantize_args), "args[%d] must be a struct of %zu bytes", i, sizeof(adabm_quantize_args));
    const bool same = b.x == a.x && b.shift == a.shift && b.batch == a.batch && b.height == a.height && b.width == a.width && b.channels == a.channels &&
                      b.x_format == a.x_format && b.x_fraction == a.x_fraction && b.stride_n == a.stride_n && b.stride_h == a.stride_h &&
                      b.stride_w == a.stride_w && b.stride_c == a.stride_c;
    ADABM_REQUIRE(count == 1 || !b.region.depth, "args[%d].region.depth must be null where codes are made on several grids", i);
    ADABM_REQUIRE(same, "args[%d] must have the x, its format, shift, sizes and strides of args[0]", i);
    add(p, b);
  }
  p.pixels = a.height * a.width;
  p.pixels_first = a.stride_c != 1;
  p.unit = std::ldexp(1.0f, a.x_format == ADABM_FEATURES_INT16 ? -a.x_fraction : 0);
  p.region = region_params(a.region, a.height, a.width);
  const DeviceScope scope(device);
  scope.check_pointer(a.x, "x"), scope.check_pointer(a.region.depth, "region.depth");
  for (int i = 0; i < count; i++) scope.check_pointer(args[i].y_q, "y_q");
  const int64_t units = static_cast<int64_t>(p.pixels) * p.groups;
  const dim3 grid(static_cast<unsigned>((units + kThreads - 1) / kThreads), std::min(a.batch, kMaxGridRows));
  launch(a.region.depth ? quantize<true> : quantize<false>, "quantize", grid, dim3(kThreads), 0, stream, p);
}

}  // namespace
}  // namespace cuda
}  // namespace adabm

extern "C" adabm_status adabm_quantize_cuda(const adabm_quantize_args* args, int32_t device, void* stream) {
  return adabm::guarded([&] { adabm::cuda::run(args, 1, device, stream); });
}

extern "C" adabm_status adabm_quantize_many_cuda(const adabm_quantize_args* args, int32_t count, int32_t device, void* stream) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(count >= 1 && count <= ADABM_MAX_TARGETS, "count must be 1..%d, got %d", ADABM_MAX_TARGETS, count);
    adabm::cuda::run(args, count, device, stream);
  });
}
