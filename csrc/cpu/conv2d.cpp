// Splits a convolution into bands of rows and product blocks; the arithmetic is in the kernels of one instruction set.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/status.h"
#include "cpu/isa.h"
#include "cpu/packed.h"
#include "cpu/thread_pool.h"

namespace adabm {
namespace {

constexpr int kTasksPerThread = 8;  // bands per thread: enough to level out threads that other work slows down

struct Convolution {
  const adabm_conv2d_args& a;
  const Kernels& kernels;
  const PackedHeader& header;
  int row_bytes, pixel_bytes;  // of x_q
  int out_pixel, code_pixel;   // elements of y and y_q from one input pixel's first output to the next's
  bool contiguous;
  std::vector<int32_t> y_lane, q_lane;
  int bands, band_rows;

  Convolution(const adabm_conv2d_args& args, const Kernels& k, const PackedHeader& h) : a(args), kernels(k), header(h) {
    pixel_bytes = h.quads() * 4;
    row_bytes = a.width * pixel_bytes;
    const int r = a.shuffle, out = h.out_channels / (r * r), code = (out + 3) / 4 * 4;
    out_pixel = r * out, code_pixel = r * code;
    contiguous = r == 1 || out % kPanel == 0;
    y_lane.resize(h.out_channels), q_lane.resize(h.out_channels);
    for (int o = 0; o < h.out_channels; o++) {
      const int c = o % out, j = o / out % r, i = o / out / r;
      y_lane[o] = (i * a.width * r + j) * out + c;
      q_lane[o] = (i * a.width * r + j) * code + c;
    }
    const int wanted = a.threads == 1 ? 1 : a.threads * kTasksPerThread;
    band_rows = std::max(1, (a.height * a.batch + wanted - 1) / wanted);
    band_rows = std::min(band_rows, a.height);
    bands = (a.height + band_rows - 1) / band_rows;
  }

  void run_band(int image, int band) const;
  void run_row(int image, int row) const;
};

// Scratch of one thread; grows to what the layer's channels and kernel ask for and stays.
struct Scratch {
  std::vector<uint8_t> patch;
  std::vector<int32_t> box;
  std::vector<ptrdiff_t> taps;
  alignas(64) int32_t acc[kMaxPixels * kMaxPanels * kPanel];
};
thread_local Scratch scratch;

int border_class(int position, int size, int pad) {
  return std::max(0, pad - position) * (pad + 1) + std::max(0, position + pad - (size - 1));
}

// Which of the kernels of a layer with border_kernels a row or column takes.
int kernel_class(int position, int size, int pad) {
  return position < pad ? position : std::max(pad, position + 2 * pad + 1 - size);
}

// Copies the rows and columns under a block into `patch`, zeros where they fall outside the image.
void copy_patch(const uint8_t* image, int height, int width, int pixel_bytes, int row, int column, int rows, int columns,
                uint8_t* patch) {
  const int before = std::min(std::max(0, -column), columns), end = std::max(before, std::min(columns, width - column));
  for (int i = 0; i < rows; i++, patch += columns * pixel_bytes) {
    if (row + i < 0 || row + i >= height) {
      std::memset(patch, 0, static_cast<size_t>(columns) * pixel_bytes);
      continue;
    }
    std::memset(patch, 0, static_cast<size_t>(before) * pixel_bytes);
    std::memcpy(patch + before * pixel_bytes, image + (static_cast<ptrdiff_t>(row + i) * width + column + before) * pixel_bytes,
                static_cast<size_t>(end - before) * pixel_bytes);
    std::memset(patch + end * pixel_bytes, 0, static_cast<size_t>(columns - end) * pixel_bytes);
  }
}

void Convolution::run_row(int image, int row) const {
  Scratch& s = scratch;
  const int K = header.out_channels, R = header.kernel_h, S = header.kernel_w, r = a.shuffle;
  const int pad_h = R / 2, pad_w = S / 2, classes_w = (pad_w + 1) * (pad_w + 1);
  const int in_bits = a.x_bits[image], tile = header.tile_for_bits[in_bits - ADABM_MIN_BITS];
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  const int8_t* weights = reinterpret_cast<const int8_t*>(&header) + header.tile_offset[tile];
  const ptrdiff_t panel_stride = panel_bytes(header, R * S);
  const int out = K / (r * r), code = (out + 3) / 4 * 4;
  const ptrdiff_t out_row = (static_cast<ptrdiff_t>(image) * a.height + row) * r * a.width * r;
  const bool rows_inside = row >= pad_h && row + pad_h < a.height;
  const bool own = header.border_kernels;
  const int row_class = own ? kernel_class(row, a.height, pad_h) : border_class(row, a.height, pad_h);
  const float* row_beta = a.beta + static_cast<ptrdiff_t>(row_class) * (own ? S : classes_w) * K;
  const ptrdiff_t kernel_bytes = panel_stride * header.panels();

  s.taps.resize(R * S);
  if (a.box_filter) s.box.resize(a.width);

  EpilogueArgs e = {};
  e.activation = a.activation;
  e.y_stride = out_pixel, e.q_stride = code_pixel;
  e.contiguous = contiguous;
  if (a.y_q) {
    const int bits = a.out_bits[image];
    e.scale = a.out_grid[(bits - ADABM_MIN_BITS) * 2], e.offset = a.out_grid[(bits - ADABM_MIN_BITS) * 2 + 1];
    e.top = static_cast<float>((1 << bits) - 1);
  }
  ProductArgs p = {};
  p.taps = R * S, p.quads = header.quads(), p.pixel_stride = pixel_bytes, p.panel_stride = panel_stride;
  p.eight_bits = in_bits == 8, p.acc = s.acc, p.tap_offset = s.taps.data();

  const float* beta[kMaxPixels];
  for (int first_panel = 0; first_panel < header.panels(); first_panel += kMaxPanels) {
    const int panels = std::min(kMaxPanels, header.panels() - first_panel), first = first_panel * kPanel;
    const int block = kernels.pixels[panels];
    p.panels = panels;
    e.panels = panels, e.lanes = std::min(panels * kPanel, K - first);
    e.alpha = a.alpha + static_cast<ptrdiff_t>(in_bits - ADABM_MIN_BITS) * K + first;
    e.slope = a.slope ? a.slope + first : nullptr;
    e.y_lane = y_lane.data() + first, e.q_lane = q_lane.data() + first;
    e.beta = beta, e.acc = s.acc;

    for (int column = 0, pixels; column < a.width; column += pixels) {
      pixels = std::min(block, a.width - column);
      p.w = weights + first_panel * panel_stride;
      if (own) {
        const bool inner = column >= pad_w && column < a.width - pad_w;
        pixels = inner ? std::min(pixels, a.width - pad_w - column) : 1;
        p.w += (row_class * S + kernel_class(column, a.width, pad_w)) * kernel_bytes;
      }
      ptrdiff_t tap_row = row_bytes;
      if (rows_inside && column >= pad_w && column + pixels + pad_w <= a.width) {
        p.x = x + static_cast<ptrdiff_t>(row - pad_h) * row_bytes + (column - pad_w) * pixel_bytes;
      } else {
        const int columns = pixels + S - 1;
        s.patch.resize(static_cast<size_t>(R) * columns * pixel_bytes);
        copy_patch(x, a.height, a.width, pixel_bytes, row - pad_h, column - pad_w, R, columns, s.patch.data());
        p.x = s.patch.data(), tap_row = columns * pixel_bytes;
      }
      for (int t = 0; t < R * S; t++) s.taps[t] = (t / S) * tap_row + (t % S) * pixel_bytes;
      p.pixels = pixels;
      const ptrdiff_t y_at = out_row * out + static_cast<ptrdiff_t>(column) * out_pixel;
      if (a.residual && contiguous && r == 1)  // arrives while the products run; the hardware does not see it coming
        for (int m = 0; m < pixels; m++)
          for (int o = 0; o < e.lanes; o += kPanel) __builtin_prefetch(a.residual + y_at + m * out_pixel + first + o, 1);
      kernels.product(p);

      if (a.box_filter && first_panel == 0)
        for (int m = 0; m < pixels; m++) {
          int32_t sum = 0;
          for (int i = 0; i < R; i++) sum += kernels.byte_sum(p.x + i * tap_row + m * pixel_bytes, static_cast<ptrdiff_t>(S) * pixel_bytes);
          s.box[column + m] = sum;
        }
      e.box = a.box_filter ? s.box.data() + column : nullptr;
      for (int m = 0; m < pixels; m++) {
        const int at = own ? kernel_class(column + m, a.width, pad_w) : border_class(column + m, a.width, pad_w);
        beta[m] = row_beta + static_cast<ptrdiff_t>(at) * K + first;
      }
      e.pixels = pixels;
      e.residual = a.residual ? a.residual + y_at : nullptr;
      e.y = a.y ? a.y + y_at : nullptr;
      e.y_acc = a.y_acc ? a.y_acc + y_at : nullptr;
      e.y_q = a.y_q ? a.y_q + out_row * code + static_cast<ptrdiff_t>(column) * code_pixel : nullptr;
      kernels.epilogue(e);
    }
  }

  if (a.y_q && code != out)
    for (int i = 0; i < r; i++)
      for (int j = 0; j < a.width * r; j++)
        std::memset(a.y_q + (out_row + static_cast<ptrdiff_t>(i) * a.width * r + j) * code + out, 0, code - out);
}

void Convolution::run_band(int image, int band) const {
  const int first = band * band_rows;
  for (int row = first; row < std::min(first + band_rows, a.height); row++) run_row(image, row);
}

void check_bits(const int32_t* bits, int batch, const char* name) {
  for (int n = 0; n < batch; n++)
    ADABM_REQUIRE(bits[n] >= ADABM_MIN_BITS && bits[n] <= ADABM_MAX_BITS, "%s[%d] must be 2..8, got %d", name, n, bits[n]);
}

const PackedHeader& checked_header(const adabm_conv2d_args& a) {
  ADABM_REQUIRE(a.packed && a.packed_bytes >= kPackedHeaderBytes && reinterpret_cast<uintptr_t>(a.packed) % 64 == 0,
                "packed must be 64-byte aligned and hold a header");
  const PackedHeader& header = *static_cast<const PackedHeader*>(a.packed);
  ADABM_REQUIRE(header.magic == kPackedMagic && header.version == ADABM_ABI_VERSION && header.bytes == a.packed_bytes,
                "packed was not made by adabm_pack_cpu of this version");
  return header;
}

}  // namespace
}  // namespace adabm

extern "C" adabm_status adabm_conv2d_cpu(const adabm_conv2d_args* args) {
  using namespace adabm;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_conv2d_args), "args must be a struct of %zu bytes", sizeof(adabm_conv2d_args));
    const adabm_conv2d_args& a = *args;
    ADABM_REQUIRE(a.threads >= 1 && a.threads <= kMaxThreads, "threads must be 1..%d, got %d", kMaxThreads, a.threads);
    ADABM_REQUIRE(a.batch > 0 && a.height > 0 && a.width > 0, "batch, height and width must be positive, got %d, %d, %d", a.batch, a.height,
                  a.width);
    ADABM_REQUIRE(a.height <= 1 << 20 && a.width <= 1 << 20, "height and width must be at most 2^20, got %d and %d", a.height, a.width);
    ADABM_REQUIRE(a.x_q && a.x_bits && a.alpha && a.beta, "x_q, x_bits, alpha and beta must not be null");
    ADABM_REQUIRE(a.y || a.y_q || a.y_acc, "one of y, y_q and y_acc must be given");
    ADABM_REQUIRE(!a.y_q || (a.out_grid && a.out_bits), "y_q needs out_grid and out_bits");
    ADABM_REQUIRE(a.activation >= 0 && a.activation <= ADABM_ACT_PRELU, "activation must be 0..2, got %d", a.activation);
    ADABM_REQUIRE(a.activation != ADABM_ACT_PRELU || a.slope, "PReLU needs slope");
    const PackedHeader& header = checked_header(a);
    ADABM_REQUIRE(a.shuffle >= 1 && header.out_channels % (a.shuffle * a.shuffle) == 0,
                  "shuffle must be positive and its square divide out_channels %d, got %d", header.out_channels, a.shuffle);
    ADABM_REQUIRE(static_cast<int64_t>(a.width) * header.quads() * 4 * header.kernel_h < INT32_MAX &&
                      static_cast<int64_t>(a.width) * (header.out_channels + 3 * a.shuffle * a.shuffle) < INT32_MAX,
                  "width %d is too large for %d to %d channels", a.width, header.channels, header.out_channels);
    ADABM_REQUIRE(!header.border_kernels || (a.height >= header.kernel_h && a.width >= header.kernel_w),
                  "height and width must be at least the kernel's %dx%d with border_kernels, got %dx%d", header.kernel_h, header.kernel_w,
                  a.height, a.width);
    check_bits(a.x_bits, a.batch, "x_bits");
    if (a.y_q) check_bits(a.out_bits, a.batch, "out_bits");
    const Convolution conv(a, choose_kernels(a.isa), header);
    parallel_for(
        a.threads, a.batch * conv.bands,
        [](void* context, int task) {
          const Convolution& c = *static_cast<const Convolution*>(context);
          c.run_band(task / c.bands, task % c.bands);
        },
        const_cast<Convolution*>(&conv));
  });
}
