// The C entry of the convolution: checks every rule that does not need the device's memory, cuts the images up and launches.
#include <algorithm>
#include <cmath>

#include "common/rules.h"
#include "common/status.h"
#include "cuda/conv2d_sm80.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90.h"

namespace adabm {
namespace cuda {
namespace {

constexpr int64_t kMost = INT32_MAX;

// Bytes from one plane of the tile of codes to the next: copies of neighbouring pixels then fall on all banks.
int plane_pixels(int pixels, int planes) {
  const int step = 8 / std::min(planes, 8);
  while (pixels % 8 != step % 8) pixels++;
  return pixels;
}

// Returns whether results can be read and written 16 bytes at a time and need nothing that only the general epilogue can do.
bool allows_straight_lines(const Conv2dParams& p) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const int words = p.y_int16 ? 8 : 4;  // features in 16 bytes
  return p.tiling.group % kMaxTileOutputs == 0 && p.y_pitch % words == 0 && aligned(p.y) && aligned(p.residual) && aligned(p.y_q) && aligned(p.alpha) &&
         aligned(p.beta) && !p.y_acc && !p.y_image && p.activation != ADABM_ACT_PRELU && p.kernel_h <= kStraightKernel && p.kernel_w <= kStraightKernel;
}

int tiles_across(int size, int tile) { return (size + tile - 1) / tile; }

Conv2dParams parameters(const adabm_conv2d_args& a) {
  Conv2dParams p = {};
  p.x_q = a.x_q, p.x_bits = a.x_bits, p.packed = static_cast<const uint8_t*>(a.packed);
  p.alpha = a.alpha, p.beta = a.beta, p.slope = a.slope, p.residual = a.residual, p.out_grid = a.out_grid, p.out_bits = a.out_bits;
  p.y = a.y, p.y_q = a.y_q, p.y_acc = a.y_acc, p.y_image = a.y_image;
  p.batch = a.batch, p.height = a.height, p.width = a.width, p.code_channels = (a.channels + 3) / 4 * 4;
  p.out_channels = a.out_channels, p.kernel_h = a.kernel_h, p.kernel_w = a.kernel_w;
  p.taps_w = unfolds(a.channels, a.kernel_w) ? 1 : a.kernel_w;
  p.activation = a.activation, p.shuffle = a.shuffle, p.packed_codes = a.packed_codes, p.border_kernels = a.border_kernels, p.config = a.config;
  p.tiling = output_tiling(a.out_channels, a.shuffle);
  p.y_pitch = a.y_pitch ? a.y_pitch : p.tiling.group;
  p.y_int16 = a.y_format == ADABM_FEATURES_INT16;
  p.y_units = p.y_int16 ? std::ldexp(1.0f, a.y_fraction) : 1.0f, p.y_unit = p.y_int16 ? std::ldexp(1.0f, -a.y_fraction) : 1.0f;
  const uintptr_t pair_bytes = p.y_int16 ? 4 : 8;
  const auto aligned = [pair_bytes](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % pair_bytes == 0; };
  p.region = region_params(a.region, a.height, a.width);
  p.by_pixel = a.region.depth && (a.residual || a.y || a.y_acc || a.y_image || passes_on(a.region));
  p.y_pairs = p.y_pitch % 2 == 0 && p.tiling.group % 2 == 0 && aligned(a.y) && aligned(a.residual);

  int64_t bytes = kPackedHeaderBytes;
  bool known = false;
  const int64_t classes = a.border_kernels ? a.kernel_h * a.kernel_w : 1;
  for (int form = 0; form < 2; form++) {
    p.forms[form] = make_form(form ? 4 : 8, a.channels, a.kernel_h, a.kernel_w, p.tiling.width);
    p.forms[form].offset = bytes;
    bytes += classes * p.tiling.tiles * p.forms[form].tile_bytes;
    for (int box = 0; box <= (a.box_filter != 0); box++)
      if (static_cast<int64_t>(a.packed_bytes) == bytes + box * kBoxBytes) p.four_bits = form, p.box = box, known = true;
  }
  ADABM_REQUIRE(known,
                "packed_bytes must be %lld or, with 4-bit weights, %lld for these sizes%s, got %llu: packed was made for others or not by adabm_pack_cuda",
                static_cast<long long>(p.forms[1].offset), static_cast<long long>(bytes),
                a.box_filter ? ", or 128 more where box_filter needs the sum of the codes" : "", static_cast<unsigned long long>(a.packed_bytes));

  ADABM_REQUIRE(a.packed_bytes <= UINT32_MAX, "packed_bytes must be below 4 GB, got %llu", static_cast<unsigned long long>(a.packed_bytes));
  const int cut_h = a.border_kernels ? a.kernel_h - 1 : 0, cut_w = a.border_kernels ? a.kernel_w - 1 : 0;
  const int inner_h = a.height - cut_h, inner_w = a.width - cut_w;
  const auto tiles_of = [&](int shift) { return static_cast<int64_t>(tiles_across(inner_w, 1 << shift)) * tiles_across(inner_h, kTilePixels >> shift); };
  p.column_shift = tiles_of(3) < tiles_of(4) ? 3 : 4;
  const int columns = 1 << p.column_shift, rows = kTilePixels / columns;
  const int halo = (rows + a.kernel_h - 1) * (columns + p.taps_w - 1);
  for (p.edge = kTilePixels; p.edge > 1 && (a.kernel_h * (p.edge + p.taps_w - 1) > halo || p.taps_w * (p.edge + a.kernel_h - 1) > halo);) p.edge /= 2;
  p.plane_pixels = plane_pixels(halo, std::min(p.forms[0].planes, p.forms[1].planes));
  p.inner_across = tiles_across(inner_w, columns);
  p.row_edge_tiles = tiles_across(inner_w, p.edge), p.column_edge_tiles = tiles_across(inner_h, p.edge);
  const int64_t inner = tiles_of(p.column_shift);
  const int64_t tiles = inner + static_cast<int64_t>(cut_h) * p.row_edge_tiles + static_cast<int64_t>(cut_w) * p.column_edge_tiles + cut_h * cut_w;
  ADABM_REQUIRE(tiles * a.batch <= kMost, "batch, height and width must make at most 2^31-1 tiles, got %lld", static_cast<long long>(tiles * a.batch));
  p.inner_tiles = static_cast<int>(inner), p.tiles = static_cast<int>(tiles);
  const uint32_t pixels = static_cast<uint32_t>(p.height) * p.width, y_pixels = pixels * p.shuffle * p.shuffle;
  p.x_image = pixels * p.code_channels, p.y_image_features = y_pixels * p.y_pitch, p.y_q_image = y_pixels * ((p.tiling.group + 3) / 4 * 4);
  p.by_tiles = make_divisor(p.tiles), p.by_inner_across = make_divisor(p.inner_across);
  p.by_halo[kInner] = make_divisor(columns + p.taps_w - 1), p.by_halo[kAlongRow] = make_divisor(p.edge + p.taps_w - 1);
  p.by_halo[kAlongColumn] = make_divisor(p.taps_w);
  p.by_group = make_divisor(p.tiling.group), p.by_shuffle = make_divisor(p.shuffle);
  p.straight = allows_straight_lines(p);
  return p;
}

uint32_t shared_bytes(const Conv2dParams& p) {
  uint32_t most = general_bytes(p.tiling.width);
  for (int form = 0; form <= p.four_bits; form++) {
    const Form& f = p.forms[form];
    const int codes = code_buffers(f) * f.planes * p.plane_pixels * kRowBytes, weights = kStages * f.stage_slices * p.tiling.width * kSliceBytes;
    most = std::max(most, static_cast<uint32_t>(codes + weights));
  }
  return most;
}

// Fills in the parameters of the kernels, once every rule holds that can be checked without the device.
Conv2dParams checked(const adabm_conv2d_args& a) {
  check_rules(a);
  require_plain(a.geometry);
  // Checks the rules of adabm_weights for the weights that were packed.
  adabm_weights weights = {};
  weights.struct_bytes = sizeof weights, weights.border_kernels = a.border_kernels;
  weights.out_channels = a.out_channels, weights.channels = a.channels, weights.kernel_h = a.kernel_h, weights.kernel_w = a.kernel_w;
  check_rules(weights);
  ADABM_REQUIRE(a.packed && reinterpret_cast<uintptr_t>(a.packed) % 16 == 0, "packed must be 16-byte aligned and not null");
  ADABM_REQUIRE(reinterpret_cast<uintptr_t>(a.x_q) % 16 == 0 && reinterpret_cast<uintptr_t>(a.y_q) % 4 == 0, "x_q must be 16-byte and y_q 4-byte aligned");
  ADABM_REQUIRE(a.packed_codes >= 0 && a.packed_codes <= (ADABM_PACKED_X | ADABM_PACKED_Y), "packed_codes must be 0..3, got %d", a.packed_codes);
  ADABM_REQUIRE(!a.border_kernels || (a.height >= a.kernel_h && a.width >= a.kernel_w),
                "height and width must be at least the kernel's %dx%d with border_kernels, got %dx%d", a.kernel_h, a.kernel_w, a.height, a.width);
  const int64_t pixels = static_cast<int64_t>(a.height) * a.width, group = a.out_channels / (a.shuffle * a.shuffle);
  const int64_t out_floats = a.shuffle * a.shuffle * std::max<int64_t>(a.y_pitch, (group + 3) / 4 * 4);
  ADABM_REQUIRE(pixels <= kMost / ((a.channels + 3) / 4 * 4) && pixels <= kMost / out_floats,
                "an image must have less than 2^31 codes and outputs, got %dx%d with %d and %lld a pixel", a.height, a.width, a.channels,
                static_cast<long long>(out_floats));
  return parameters(a);
}

constexpr char kOtherCapability[] = "the device has another compute capability";

}  // namespace
}  // namespace cuda
}  // namespace adabm

extern "C" adabm_status adabm_conv2d_cuda(const adabm_conv2d_args* args, int32_t device, void* stream) {
  using namespace adabm;
  using namespace adabm::cuda;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_conv2d_args), "args must be a struct of %zu bytes", sizeof(adabm_conv2d_args));
    const adabm_conv2d_args& a = *args;
    const Conv2dParams p = checked(a);
    const DeviceScope scope(device);
    scope.check_pointer(a.x_q, "x_q"), scope.check_pointer(a.packed, "packed");
    scope.check_pointer(a.y, "y"), scope.check_pointer(a.y_q, "y_q"), scope.check_pointer(a.residual, "residual");
    scope.check_pointer(a.y_image, "y_image"), scope.check_pointer(a.region.depth, "region.depth");
    const char* why_not = scope.compute_major() == 9 ? sm90::why_not_conv2d(p, device) : kOtherCapability;
    if (!why_not) return sm90::conv2d(p, device, stream);
    if (a.config) throw Error(ADABM_UNSUPPORTED, "config needs the kernel of compute capability 9.0: %s", why_not);
    Conv2dParams chosen = p;
    chosen.four_bits = p.four_bits && scope.compute_major() == 8;
    const dim3 grid(static_cast<unsigned>(p.tiles) * a.batch, p.tiling.tiles);
    const auto run = [&](void (*kernel)(Conv2dParams)) { launch(kernel, "conv2d", grid, dim3(kThreads), shared_bytes(chosen), stream, chosen); };
    switch (p.tiling.width) {
      case 16: return run(conv2d_sm80<2>);
      case 32: return run(conv2d_sm80<4>);
      case 48: return run(conv2d_sm80<6>);
      default: return run(conv2d_sm80<8>);
    }
  });
}

extern "C" adabm_status adabm_resblock_cuda(const adabm_conv2d_args* first, const adabm_conv2d_args* second, int32_t device, void* stream) {
  using namespace adabm;
  using namespace adabm::cuda;
  return guarded([&] {
    for (const adabm_conv2d_args* args : {first, second})
      ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_conv2d_args), "first and second must be structs of %zu bytes", sizeof(adabm_conv2d_args));
    adabm_conv2d_args a = *first, b = *second;
    ADABM_REQUIRE(!a.y && !a.y_q && !a.y_acc && !a.y_image && !a.residual,
                  "the first convolution must have no output and no residual: its codes stay on the chip");
    ADABM_REQUIRE(a.y_format == ADABM_FEATURES_FLOAT32, "the first convolution's y_format must be %d (float32), which its codes are made of, got %d",
                  ADABM_FEATURES_FLOAT32, a.y_format);
    ADABM_REQUIRE(!a.region.depth, "the first convolution's region.depth must be null: a region is the second's alone");
    ADABM_REQUIRE(!b.x_q && b.x_bits == a.out_bits, "the second convolution's x_q must be null and its x_bits the first's out_bits");
    ADABM_REQUIRE(!b.y_image, "y_image must be null in a residual block");
    ADABM_REQUIRE(a.batch == b.batch && a.height == b.height && a.width == b.width && a.out_channels == b.channels,
                  "the second convolution must take what the first gives, got [%d, %d, %d, %d] for [%d, %d, %d, %d]", b.batch, b.height, b.width, b.channels,
                  a.batch, a.height, a.width, a.out_channels);
    ADABM_REQUIRE(a.shuffle == 1 && b.shuffle == 1, "shuffle must be 1 in a residual block, got %d and %d", a.shuffle, b.shuffle);
    ADABM_REQUIRE(!b.y_q || b.y_q != a.x_q, "y_q must not be x_q: tiles read what their neighbours would have overwritten");
    static uint8_t on_chip[16] __attribute__((aligned(16)));  // stands for the codes between the convolutions while rules are checked; never read or written
    a.y_q = on_chip, b.x_q = on_chip;
    const Conv2dParams p = checked(a), q = checked(b);
    const DeviceScope scope(device);
    scope.check_pointer(a.x_q, "x_q"), scope.check_pointer(a.packed, "packed"), scope.check_pointer(b.packed, "packed");
    scope.check_pointer(b.y, "y"), scope.check_pointer(b.y_q, "y_q"), scope.check_pointer(b.residual, "residual");
    scope.check_pointer(b.region.depth, "region.depth");
    const char* why_not = scope.compute_major() == 9 ? sm90::why_not_resblock(p, q) : kOtherCapability;
    if (why_not) throw Error(ADABM_UNSUPPORTED, "a residual block needs the kernel of compute capability 9.0: %s", why_not);
    sm90::resblock(p, q, device, stream);
  });
}
