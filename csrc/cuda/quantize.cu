// Floats of any strides to codes, one byte each or packed.
#include <algorithm>

#include "adabm/quant_math.h"
#include "common/rules.h"
#include "common/status.h"
#include "cuda/codes.cuh"
#include "cuda/launch.cuh"

namespace adabm {
namespace cuda {
namespace {

constexpr int kThreads = 256, kMaxGridRows = 65535;

struct QuantizeParams {
  adabm_quantize_args a;
  int pixels;        // of an image
  int groups;        // of four channels that are written
  int pixels_first;  // whether neighbouring threads take neighbouring pixels rather than channels
  int aligned;       // whether four codes of one byte each can be stored at once
};

// The codes of four channels, a byte each; those beyond the channels are 0.
ADABM_DEVICE uint32_t four_codes(const QuantizeParams& p, int image, int pixel, int group, float scale, float offset, float top) {
  const adabm_quantize_args& a = p.a;
  const float* x = a.x + image * a.stride_n + pixel / a.width * a.stride_h + pixel % a.width * a.stride_w;
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int c = group * 4 + i;
    if (c >= a.channels) continue;
    float value = ptx::load_constant(x + c * a.stride_c);
    if (a.shift) value = value - ptx::load_constant(a.shift + c);
    codes |= static_cast<uint32_t>(quantize_value(value, scale, offset, top)) << (8 * i);
  }
  return codes;
}

// Grid: [units of an image][images].
__global__ void __launch_bounds__(kThreads) quantize(const __grid_constant__ QuantizeParams p) {
  const adabm_quantize_args& a = p.a;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= static_cast<int64_t>(p.pixels) * p.groups) return;
  const int pixel = static_cast<int>(p.pixels_first ? unit % p.pixels : unit / p.groups);
  const int group = static_cast<int>(p.pixels_first ? unit / p.pixels : unit % p.groups);
  for (int image = blockIdx.y; image < a.batch; image += kMaxGridRows) {
    const int bits = image_bits(a.bits, image);
    const float scale = ptx::load_constant(a.grid + (bits - ADABM_MIN_BITS) * 2), offset = ptx::load_constant(a.grid + (bits - ADABM_MIN_BITS) * 2 + 1);
    const uint32_t codes = four_codes(p, image, pixel, group, scale, offset, static_cast<float>((1 << bits) - 1));
    uint8_t* y = a.y_q + static_cast<int64_t>(image) * p.pixels * a.y_pitch;
    const int storage = storage_bits(bits, a.packed_codes);
    if (!a.packed_codes) {
      y += static_cast<int64_t>(pixel) * a.y_pitch + group * 4;
      if (p.aligned) {
        ptx::store_global(reinterpret_cast<uint32_t*>(y), codes);
      } else {
        for (int i = 0; i < 4 && group * 4 + i < a.y_channels; i++) ptx::store_global(y + i, static_cast<uint8_t>(codes >> (8 * i)));
      }
      continue;
    }
    // Four codes are 4, 2 or 1 bytes, whatever the channel they start at.
    const int bytes = storage / 2, pitch = pixel_bytes(a.y_pitch, storage), at = (a.y_start / 4 + group) * bytes;
    y += static_cast<int64_t>(pixel) * pitch + at;
    if (storage == 8)
      ptx::store_global(reinterpret_cast<uint32_t*>(y), codes);
    else if (storage == 4)
      ptx::store_global(reinterpret_cast<uint16_t*>(y), static_cast<uint16_t>(nibbles_of_bytes(codes)));
    else
      ptx::store_global(y, static_cast<uint8_t>(pairs_of_nibbles(nibbles_of_bytes(codes))));
    if (a.y_start + (group + 1) * 4 == a.y_pitch)
      for (int i = at + bytes; i < pitch; i++) ptx::store_global(y + (i - at), static_cast<uint8_t>(0));
  }
}

}  // namespace
}  // namespace cuda
}  // namespace adabm

extern "C" adabm_status adabm_quantize_cuda(const adabm_quantize_args* args, int32_t device, void* stream) {
  using namespace adabm;
  using namespace adabm::cuda;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_quantize_args), "args must be a struct of %zu bytes", sizeof(adabm_quantize_args));
    QuantizeParams p = {*args, 0, 0, 0, 0};
    adabm_quantize_args& a = p.a;
    ADABM_REQUIRE(a.packed_codes == 0 || a.packed_codes == ADABM_PACKED_Y, "packed_codes must be 0 or %d, got %d", ADABM_PACKED_Y, a.packed_codes);
    ADABM_REQUIRE(!a.packed_codes || a.y_channels == 0, "y_channels must be 0 with packed codes, got %d", a.y_channels);
    check_rules(a);
    const int codes = a.packed_codes ? a.y_start + a.y_channels : a.y_channels;
    ADABM_REQUIRE(a.packed_codes ? a.y_start >= 0 && a.y_start % 4 == 0 && a.y_pitch % 4 == 0 && codes <= a.y_pitch : a.y_start == 0,
                  "y_start must be 0 or, with packed codes, a multiple of 4 with room for %d channels in a y_pitch that is one too, got %d with %d",
                  a.channels, a.y_start, a.y_pitch);
    ADABM_REQUIRE(!a.packed_codes || reinterpret_cast<uintptr_t>(a.y_q) % 4 == 0, "y_q must be 4-byte aligned with packed codes");
    ADABM_REQUIRE(static_cast<int64_t>(a.height) * a.width <= INT32_MAX / a.y_pitch, "an image must have less than 2^31 codes, got %dx%d with %d a pixel",
                  a.height, a.width, a.y_pitch);
    p.pixels = a.height * a.width;
    p.groups = (a.y_channels + 3) / 4;
    p.pixels_first = a.stride_c != 1;
    p.aligned = a.y_channels % 4 == 0 && a.y_pitch % 4 == 0 && reinterpret_cast<uintptr_t>(a.y_q) % 4 == 0;
    const DeviceScope scope(device);
    scope.check_pointer(a.x, "x"), scope.check_pointer(a.y_q, "y_q");
    const int64_t units = static_cast<int64_t>(p.pixels) * p.groups;
    const dim3 grid(static_cast<unsigned>((units + kThreads - 1) / kThreads), std::min(a.batch, kMaxGridRows));
    launch(quantize, "quantize", grid, dim3(kThreads), 0, stream, p);
  });
}
