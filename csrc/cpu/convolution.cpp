#include "cpu/convolution.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace adabm {

constexpr int kTasksPerThread = 8;  // bands per thread: enough to level out threads that other work slows down

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

int border_class(int position, int size, int pad) {
  return std::max(0, pad - position) * (pad + 1) + std::max(0, position + pad - (size - 1));
}

int kernel_class(int position, int size, int pad) {
  return position < pad ? position : std::max(pad, position + 2 * pad + 1 - size);
}

namespace {

constexpr int kBlockOutputs = kMaxPanels * kPanel;

std::vector<std::vector<Convolution::Run>> runs_of(const std::vector<int32_t>& lanes) {
  std::vector<std::vector<Convolution::Run>> runs;
  for (int o = 0; o < static_cast<int>(lanes.size()); o++) {
    if (o % kBlockOutputs == 0) runs.emplace_back();
    std::vector<Convolution::Run>& of_block = runs.back();
    if (o % kBlockOutputs && lanes[o] == lanes[o - 1] + 1) of_block.back().length++;
    else of_block.push_back({o % kBlockOutputs, 1, lanes[o]});
  }
  return runs;
}

// Short and of any length: library calls would take longer than the copies.
template <class T>
void copy_run(const T* from, T* to, int length) {
  for (; length >= 4; length -= 4, from += 4, to += 4) std::memcpy(to, from, 4 * sizeof(T));
  for (; length > 0; length--) *to++ = *from++;
}

// Outputs of `pixels` pixels between a block, `pitch` from one pixel to the next, and where a PixelShuffle puts them.
template <class T>
void part(const std::vector<Convolution::Run>& runs, const T* block, int pitch, T* to, ptrdiff_t stride, int pixels) {
  for (const Convolution::Run& run : runs)
    for (int m = 0; m < pixels; m++) copy_run(block + m * pitch + run.first, to + m * stride + run.to, run.length);
}
template <class T>
void join(const std::vector<Convolution::Run>& runs, const T* from, ptrdiff_t stride, T* block, int pitch, int pixels) {
  for (const Convolution::Run& run : runs)
    for (int m = 0; m < pixels; m++) copy_run(from + m * stride + run.to, block + m * pitch + run.first, run.length);
}

}  // namespace

Convolution::Convolution(const adabm_conv2d_args& args, const Kernels& k, const PackedHeader& h) : a(args), kernels(k), header(h) {
  pixel_bytes = h.quads() * 4;
  row_bytes = a.width * pixel_bytes;
  box_stride = (a.width + kPanel - 1) / kPanel * kPanel;
  const int r = a.shuffle;
  out_channels = h.out_channels / (r * r), code_channels = a.y_image ? out_channels : (out_channels + 3) / 4 * 4;
  codes = a.y_image ? a.y_image : a.y_q;
  y_pitch = a.y_pitch ? a.y_pitch : out_channels;
  contiguous = r == 1 || out_channels % kPanel == 0;
  y_lane.resize(h.out_channels), q_lane.resize(h.out_channels);
  for (int o = 0; o < h.out_channels; o++) {
    const int c = o % out_channels, j = o / out_channels % r, i = o / out_channels / r;
    y_lane[o] = (i * a.width * r + j) * out_channels + c;
    q_lane[o] = (i * a.width * r + j) * code_channels + c;
  }
  if (!contiguous) {
    y_runs = runs_of(y_lane), q_runs = runs_of(q_lane);
    for (int o = 0; o < h.out_channels; o++) y_lane[o] = q_lane[o] = o % kBlockOutputs;
  }
  const int wanted = a.threads == 1 ? 1 : a.threads * kTasksPerThread;
  band_rows = std::min(std::max(1, static_cast<int>((static_cast<int64_t>(a.height) * a.batch + wanted - 1) / wanted)), a.height);
  int tile_rows = 1;
  for (int n = 0; n < a.batch; n++)
    tile_rows = std::lcm(tile_rows, std::max(kMinTileRows, kTiles[header.tile_for_bits[a.x_bits[n] - ADABM_MIN_BITS]].rows.outputs));
  band_rows = (band_rows + tile_rows - 1) / tile_rows * tile_rows;
  bands = (a.height + band_rows - 1) / band_rows;
}

const int32_t* Convolution::box_rows(int image, int row, int rows) const {
  if (!a.box_filter) return nullptr;
  Scratch& s = thread_scratch();
  const int pad_h = header.kernel_h / 2, pad_w = header.kernel_w / 2;
  s.pixel_sums.assign(a.width + 2 * pad_w + kPanel, 0);
  s.box.assign(static_cast<size_t>(rows) * box_stride, 0);
  for (int i = std::max(0, row - pad_h); i < std::min(a.height, row + rows + pad_h); i++) {
    kernels.pixel_sums(a.x_q + (static_cast<ptrdiff_t>(image) * a.height + i) * row_bytes, a.width, pixel_bytes, s.pixel_sums.data() + pad_w);
    for (int n = 0; n < rows; n++)
      if (std::abs(row + n - i) <= pad_h) kernels.slide(s.pixel_sums.data(), header.kernel_w, a.width, s.box.data() + static_cast<ptrdiff_t>(n) * box_stride);
  }
  return s.box.data();
}

void Convolution::run_band(int image, int band) const {
  struct Within {
    const Kernels& kernels;
    explicit Within(const Kernels& k) : kernels(k) {
      if (kernels.enter) kernels.enter();
    }
    ~Within() {
      if (kernels.leave) kernels.leave();
    }
  } within(kernels);
  run_band_within(image, band);
}

void Convolution::run_band_within(int image, int band) const {
  const int first = band * band_rows, end = std::min(first + band_rows, a.height), pad = header.kernel_w / 2;
  const int tile = header.tile_for_bits[a.x_bits[image] - ADABM_MIN_BITS];
  const bool tiled = tile != ADABM_TILE_DIRECT;
  const Region all = {first, end, 0, a.width};
  if (kTiles[tile].kn2row) return run_kn2row_tiled(image, first, end);
  if (!header.border_kernels) return tiled ? run_tiled(image, all) : header.kn2row ? run_kn2row(image, first, end) : run_direct(image, all);
  const int inner = std::min(std::max(first, pad), end), inner_end = std::max(std::min(end, a.height - pad), inner);
  const Region inside = {inner, inner_end, pad, a.width - pad};
  run_direct(image, {first, inner, 0, a.width});
  for (int i = 0; i < pad; i++) run_outer_column(image, inner, inner_end, i), run_outer_column(image, inner, inner_end, a.width - 1 - i);
  tiled ? run_tiled(image, inside) : run_direct(image, inside);
  run_direct(image, {inner_end, end, 0, a.width});
}

RowOutput::RowOutput(const Convolution& c, int image, int row) : c_(c) {
  const adabm_conv2d_args& a = c.a;
  const int K = c.header.out_channels, pad_h = c.header.kernel_h / 2, pad_w = c.header.kernel_w / 2;
  const bool own = c.header.border_kernels;
  const int row_class = own ? kernel_class(row, a.height, pad_h) : border_class(row, a.height, pad_h);
  const int column_classes = own ? c.header.kernel_w : (pad_w + 1) * (pad_w + 1);
  row_beta_ = a.beta + static_cast<ptrdiff_t>(row_class) * column_classes * K;
  row_alpha_ = a.alpha + static_cast<ptrdiff_t>(a.x_bits[image] - ADABM_MIN_BITS) * K;
  out_row_ = (static_cast<ptrdiff_t>(image) * a.height + row) * a.shuffle * a.width * a.shuffle;
  e_.activation = a.activation;
  e_.y_stride = a.shuffle * c.y_pitch, e_.q_stride = a.shuffle * c.code_channels;
  e_.beta = beta_;
  if (a.y_image) {
    e_.scale = 1, e_.offset = 0, e_.top = 255;
  } else if (a.y_q) {
    const int bits = a.out_bits[image];
    e_.scale = a.out_grid[(bits - ADABM_MIN_BITS) * 2], e_.offset = a.out_grid[(bits - ADABM_MIN_BITS) * 2 + 1];
    e_.top = static_cast<float>((1 << bits) - 1);
  }
}

void RowOutput::prefetch(int first_panel, int panels, int column, int pixels) const {
  if (!c_.a.residual || !c_.contiguous || c_.a.shuffle > 1) return;
  const float* at = c_.a.residual + out_row_ * c_.y_pitch + static_cast<ptrdiff_t>(column) * e_.y_stride + first_panel * kPanel;
  const int lanes = std::min(panels * kPanel, c_.header.out_channels - first_panel * kPanel);
  for (int m = 0; m < pixels; m++)
    for (int o = 0; o < lanes; o += kPanel) __builtin_prefetch(at + m * e_.y_stride + o, 1);
}

void RowOutput::write(const UntileArgs& products, int first_panel, int column, int pixels, const int32_t* box) {
  const adabm_conv2d_args& a = c_.a;
  const int K = c_.header.out_channels, first = first_panel * kPanel, pad = c_.header.kernel_w / 2;
  const bool inner = column >= pad && column + pixels + pad <= a.width;
  if (inner) std::fill_n(beta_, pixels, row_beta_ + static_cast<ptrdiff_t>(c_.header.border_kernels ? pad : 0) * K + first);
  for (int m = 0; !inner && m < pixels; m++) {
    const int at = c_.header.border_kernels ? kernel_class(column + m, a.width, pad) : border_class(column + m, a.width, pad);
    beta_[m] = row_beta_ + static_cast<ptrdiff_t>(at) * K + first;
  }
  const ptrdiff_t y_at = out_row_ * c_.y_pitch + column * e_.y_stride;
  e_.acc = products.acc, e_.box = box, e_.pixels = pixels, e_.panels = products.panels;
  e_.lanes = std::min(products.panels * kPanel, K - first);
  // Panels of one block may lie apart only where a PixelShuffle parts them.
  e_.together = a.shuffle == 1 || !c_.contiguous || c_.out_channels % kBlockOutputs == 0;
  e_.alpha = row_alpha_ + first;
  e_.slope = a.slope ? a.slope + first : nullptr;
  e_.y_lane = c_.y_lane.data() + first, e_.q_lane = c_.q_lane.data() + first;
  e_.residual = a.residual ? a.residual + y_at : nullptr;
  e_.y = a.y ? a.y + y_at : nullptr;
  e_.y_acc = a.y_acc ? a.y_acc + y_at : nullptr;
  e_.y_q = c_.codes ? c_.codes + out_row_ * c_.code_channels + column * e_.q_stride : nullptr;
  c_.contiguous ? c_.kernels.untile_epilogue(products, e_) : write_parted(products, first_panel);
}

void RowOutput::write_parted(const UntileArgs& products, int first_panel) {
  Scratch& s = thread_scratch();
  const int block = first_panel / kMaxPanels, pitch = products.panels * kPanel, pixels = e_.pixels;
  const auto &y_runs = c_.y_runs[block], &q_runs = c_.q_runs[block];
  EpilogueArgs e = e_;
  e.y_stride = e.q_stride = pitch;
  if (e_.residual) join(y_runs, e_.residual, e_.y_stride, s.values, pitch, pixels), e.residual = s.values;
  if (e_.y) e.y = s.values;
  if (e_.y_acc) e.y_acc = products.acc;  // each is read before it is written
  if (e_.y_q) e.y_q = s.value_codes;
  c_.kernels.untile_epilogue(products, e);
  if (e_.y) part(y_runs, s.values, pitch, e_.y, e_.y_stride, pixels);
  if (e_.y_acc) part(y_runs, products.acc, pitch, e_.y_acc, e_.y_stride, pixels);
  if (e_.y_q) part(q_runs, s.value_codes, pitch, e_.y_q, e_.q_stride, pixels);
}

void RowOutput::finish() const {
  const adabm_conv2d_args& a = c_.a;
  if (!a.y_q || c_.code_channels == c_.out_channels) return;
  uint8_t* padding = a.y_q + out_row_ * c_.code_channels + c_.out_channels;
  const ptrdiff_t pixels = static_cast<ptrdiff_t>(a.shuffle) * a.width * a.shuffle;
  for (ptrdiff_t i = 0; i < pixels; i++) std::memset(padding + i * c_.code_channels, 0, c_.code_channels - c_.out_channels);
}

}  // namespace adabm
