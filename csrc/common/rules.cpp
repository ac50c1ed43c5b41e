// Checks the rules of adabm.h that the CPU and the CUDA library share (common/rules.h): sizes, kernels, activations, regions.
#include "common/rules.h"

#include "common/geometry.h"
#include "common/status.h"

namespace adabm {

constexpr int kMaxShuffle = 16;

namespace {

void check_geometry(const adabm_geometry& g, int out_channels, int channels, int kernel_h, int kernel_w) {
  const bool plain = is_plain(g);
  ADABM_REQUIRE(kernel_h > 0 && kernel_h <= kMaxKernel && kernel_w > 0 && kernel_w <= kMaxKernel && (!plain || (kernel_h % 2 && kernel_w % 2)),
                "kernel must be %s at most %d a side, got %dx%d", plain ? "odd and" : "positive and", kMaxKernel, kernel_h, kernel_w);
  if (plain) return;
  const auto in = [](int value, int least) { return value >= least && value <= ADABM_MAX_STEP; };
  ADABM_REQUIRE(in(g.stride_h, 1) && in(g.stride_w, 1) && in(g.dilation_h, 1) && in(g.dilation_w, 1),
                "geometry.stride and dilation must be 1..%d, got %dx%d and %dx%d", ADABM_MAX_STEP, g.stride_h, g.stride_w, g.dilation_h, g.dilation_w);
  ADABM_REQUIRE(in(g.pad_top, 0) && in(g.pad_left, 0) && in(g.pad_bottom, 0) && in(g.pad_right, 0), "geometry.pad must be 0..%d, got %d, %d, %d, %d",
                ADABM_MAX_STEP, g.pad_top, g.pad_left, g.pad_bottom, g.pad_right);
  ADABM_REQUIRE(g.groups >= 1 && channels % g.groups == 0 && out_channels % g.groups == 0,
                "geometry.groups must divide channels %d and out_channels %d, got %d", channels, out_channels, g.groups);
}

}  // namespace

void require_plain(const adabm_geometry& g) {
  if (!is_plain(g)) throw Error(ADABM_UNSUPPORTED, "geometry must be plain (stride_h 0) on CUDA, got stride_h %d", g.stride_h);
}

void check_rules(const adabm_weights& w) {
  ADABM_REQUIRE(w.struct_bytes == sizeof(adabm_weights), "struct_bytes must be %zu, got %u", sizeof(adabm_weights), w.struct_bytes);
  ADABM_REQUIRE(w.out_channels > 0 && w.channels > 0, "out_channels and channels must be positive, got %d and %d", w.out_channels, w.channels);
  ADABM_REQUIRE(w.out_channels <= 1 << 16 && w.channels <= 1 << 16, "out_channels and channels must be at most 65536, got %d and %d", w.out_channels,
                w.channels);
  check_geometry(w.geometry, w.out_channels, w.channels, w.kernel_h, w.kernel_w);
  ADABM_REQUIRE(w.border_kernels == 0 || w.border_kernels == 1, "border_kernels must be 0 or 1, got %d", w.border_kernels);
  if (is_plain(w.geometry)) return;
  ADABM_REQUIRE(!w.border_kernels, "border_kernels must be 0 where the geometry is not plain, got %d", w.border_kernels);
  ADABM_REQUIRE(w.box_filter == 0 || w.box_filter == 1, "box_filter must be 0 or 1, got %d", w.box_filter);
  ADABM_REQUIRE(w.shuffle >= 1 && w.shuffle <= kMaxShuffle && w.out_channels % (w.shuffle * w.shuffle) == 0,
                "shuffle must be 1..%d and its square divide out_channels %d, got %d", kMaxShuffle, w.out_channels, w.shuffle);
}

namespace {

// of: the text before the names of the fields in messages, such as "region.".
void check_tiles(const char* of, int tile, int top, int left) {
  ADABM_REQUIRE(tile >= 1 && tile <= 1 << 20, "%stile must be 1..2^20, got %d", of, tile);
  ADABM_REQUIRE(top >= 0 && top < tile && left >= 0 && left < tile, "%stop and left must be 0..%d, got %d and %d", of, tile - 1, top, left);
}

void check_region(const adabm_region& r) {
  if (!r.depth) return;
  check_tiles("region.", r.tile, r.top, r.left);
  ADABM_REQUIRE(r.reach >= 0 && r.reach <= r.tile && r.pass_reach >= 0 && r.pass_reach <= r.tile,
                "region.reach and pass_reach must be 0..tile %d, got %d and %d", r.tile, r.reach, r.pass_reach);
  for (const int depth : {r.own_least, r.own_most, r.near_least, r.near_most, r.pass_least, r.pass_most})
    ADABM_REQUIRE(depth >= 0 && depth <= 255, "region's depths must be 0..255, got %d", depth);
}

void check_features(const char* of, int format, int fraction) {
  ADABM_REQUIRE(format == ADABM_FEATURES_FLOAT32 || format == ADABM_FEATURES_INT16, "%sformat must be 0 (float32) or 1 (int16), got %d", of, format);
  const int least = format == ADABM_FEATURES_INT16 ? ADABM_MIN_FRACTION : 0, most = format == ADABM_FEATURES_INT16 ? ADABM_MAX_FRACTION : 0;
  ADABM_REQUIRE(fraction >= least && fraction <= most, "%sfraction must be %d..%d with %sformat %d, got %d", of, least, most, of, format, fraction);
}

size_t feature_bytes(int format) { return format == ADABM_FEATURES_INT16 ? 2 : 4; }

}  // namespace

void check_aligned(std::initializer_list<NamedPointer> pointers, size_t bytes) {
  for (const NamedPointer& p : pointers)
    ADABM_REQUIRE(reinterpret_cast<uintptr_t>(p.pointer) % bytes == 0, "%s must be aligned to its elements of %zu bytes", p.name, bytes);
}

void check_rules(const adabm_conv2d_args& a) {
  ADABM_REQUIRE(a.batch > 0 && a.height > 0 && a.width > 0, "batch, height and width must be positive, got %d, %d, %d", a.batch, a.height, a.width);
  ADABM_REQUIRE(static_cast<int64_t>(a.batch) * a.height < INT32_MAX, "batch times height must fit 31 bits, got %d and %d", a.batch, a.height);
  ADABM_REQUIRE(a.height <= 1 << 20 && a.width <= 1 << 20, "height and width must be at most 2^20, got %d and %d", a.height, a.width);
  if (!is_plain(a.geometry)) {
    check_geometry(a.geometry, a.out_channels, a.channels, a.kernel_h, a.kernel_w);
    const Axes axes = axes_of(a.geometry, a.kernel_h, a.kernel_w);
    const int out_height = axes.rows.outputs(a.height), out_width = axes.columns.outputs(a.width);
    ADABM_REQUIRE(out_height > 0 && out_width > 0, "a kernel of %dx%d pixels must fit the image with its padding, %dx%d", axes.rows.extent(),
                  axes.columns.extent(), a.height + axes.rows.before + axes.rows.after, a.width + axes.columns.before + axes.columns.after);
    ADABM_REQUIRE(static_cast<int64_t>(a.batch) * out_height < INT32_MAX, "batch times rows of the output must fit 31 bits, got %d and %d", a.batch,
                  out_height);
    ADABM_REQUIRE(!a.region.depth || (out_height == a.height && out_width == a.width), "region needs an output of the image's size, %dx%d, got %dx%d", a.height,
                  a.width, out_height, out_width);
  }
  ADABM_REQUIRE(a.x_q && a.x_bits && a.alpha && a.beta, "x_q, x_bits, alpha and beta must not be null");
  ADABM_REQUIRE(a.y || a.y_q || a.y_acc || a.y_image, "one of y, y_q, y_acc and y_image must be given");
  ADABM_REQUIRE(!a.y_q || !a.y_image, "y_q and y_image must not both be given");
  ADABM_REQUIRE(!a.y_image || !a.y_pitch, "y_pitch must be 0 with y_image, got %d", a.y_pitch);
  ADABM_REQUIRE(!a.y_q || (a.out_grid && a.out_bits), "y_q needs out_grid and out_bits");
  ADABM_REQUIRE(a.box_filter == 0 || a.box_filter == 1, "box_filter must be 0 or 1, got %d", a.box_filter);
  ADABM_REQUIRE(a.activation >= 0 && a.activation <= ADABM_ACT_PRELU, "activation must be 0..2, got %d", a.activation);
  ADABM_REQUIRE(a.activation != ADABM_ACT_PRELU || a.slope, "PReLU needs slope");
  ADABM_REQUIRE(a.shuffle >= 1 && a.shuffle <= kMaxShuffle, "shuffle must be 1..%d, got %d", kMaxShuffle, a.shuffle);
  ADABM_REQUIRE(a.out_channels % (a.shuffle * a.shuffle) == 0, "shuffle must be positive and its square divide out_channels %d, got %d", a.out_channels,
                a.shuffle);
  ADABM_REQUIRE(!a.y_pitch || (a.shuffle == 1 && a.y_pitch >= a.out_channels && a.y_pitch < 1 << 20),
                "y_pitch must be 0, or out_channels %d..2^20 without shuffle, got %d with shuffle %d", a.out_channels, a.y_pitch, a.shuffle);
  check_features("y_", a.y_format, a.y_fraction);
  ADABM_REQUIRE(a.y_format == ADABM_FEATURES_FLOAT32 || (!a.y_acc && !a.y_image && !a.y_pitch && a.shuffle == 1),
                "y_format must be 0 (float32) with y_acc, y_image, y_pitch or a shuffle above 1, got %d", a.y_format);
  check_aligned({{a.x_bits, "x_bits"}, {a.alpha, "alpha"}, {a.beta, "beta"}, {a.y_acc, "y_acc"}}, 4);
  if (a.activation == ADABM_ACT_PRELU) check_aligned({{a.slope, "slope"}}, 4);
  if (a.y_q) check_aligned({{a.out_grid, "out_grid"}, {a.out_bits, "out_bits"}}, 4);
  check_aligned({{a.residual, "residual"}, {a.y, "y"}}, feature_bytes(a.y_format));
  check_region(a.region);
  ADABM_REQUIRE(!passes_on(a.region) || (a.shuffle == 1 && !a.y_acc && !a.y_image),
                "pixels are passed on, region.pass_least..pass_most %d..%d, only with shuffle 1 and no y_acc or y_image", a.region.pass_least,
                a.region.pass_most);
}

void check_rules(const adabm_depths_args& a) {
  ADABM_REQUIRE(a.batch > 0 && a.height > 0 && a.width > 0, "batch, height and width must be positive, got %d, %d, %d", a.batch, a.height, a.width);
  ADABM_REQUIRE(static_cast<int64_t>(a.batch) * a.height < INT32_MAX, "batch times height must fit 31 bits, got %d and %d", a.batch, a.height);
  ADABM_REQUIRE(a.height <= 1 << 20 && a.width <= 1 << 20, "height and width must be at most 2^20, got %d and %d", a.height, a.width);
  check_tiles("", a.tile, a.top, a.left);
  ADABM_REQUIRE(a.threshold >= 0 && a.threshold <= ADABM_MAX_BEND, "threshold must be 0..%d, got %d", ADABM_MAX_BEND, a.threshold);
  ADABM_REQUIRE(a.deep >= 1 && a.deep <= 255, "deep must be 1..255, got %d", a.deep);
  ADABM_REQUIRE(a.x_q && a.depth, "x_q and depth must not be null");
}

void check_rules(adabm_quantize_args& a) {
  ADABM_REQUIRE(a.batch > 0 && a.height > 0 && a.width > 0 && a.channels > 0, "batch, height, width and channels must be positive, got %d, %d, %d, %d", a.batch,
                a.height, a.width, a.channels);
  ADABM_REQUIRE(a.channels < 1 << 20, "channels must be below 2^20, got %d", a.channels);
  const int dense = (a.channels + 3) / 4 * 4;
  a.y_channels = a.y_channels ? a.y_channels : dense;
  a.y_pitch = a.y_pitch ? a.y_pitch : dense;
  ADABM_REQUIRE(static_cast<int64_t>(a.batch) * a.height < INT32_MAX, "batch times height must fit 31 bits");
  ADABM_REQUIRE(a.stride_c >= 0 && a.stride_c < 1 << 27, "stride_c must be 0..2^27-1, got %lld", static_cast<long long>(a.stride_c));
  ADABM_REQUIRE(a.y_channels >= a.channels && a.y_pitch >= a.y_channels && a.y_pitch < 1 << 20,
                "y_channels must be 0 or channels..y_pitch and y_pitch below 2^20, got %d and %d", a.y_channels, a.y_pitch);
  check_features("x_", a.x_format, a.x_fraction);
  ADABM_REQUIRE(a.x_format == ADABM_FEATURES_FLOAT32 || !a.shift, "shift must be null where x_format is 1 (int16)");
  ADABM_REQUIRE(a.x && a.grid && a.bits && a.y_q, "x, grid, bits and y_q must not be null");
  check_aligned({{a.x, "x"}}, feature_bytes(a.x_format));
  check_aligned({{a.shift, "shift"}, {a.grid, "grid"}, {a.bits, "bits"}}, 4);
  check_region(a.region);
  ADABM_REQUIRE(!passes_on(a.region), "region.pass_least must be above pass_most where codes are made, got %d and %d", a.region.pass_least, a.region.pass_most);
}

}  // namespace adabm
