// The code that all ways to compute a convolution share: its tables, its border classes, and how a block of accumulators goes to memory
// (cpu/convolution.h). The ways themselves are in cpu/conv2d_direct.cpp, cpu/conv2d_tiled.cpp and cpu/conv2d_kn2row.cpp, and where the
// geometry is not plain in cpu/conv2d_general.cpp and cpu/conv2d_depthwise.cpp.
#include "cpu/convolution.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace adabm {

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

int kernel_class(int position, int size, int pad) { return position < pad ? position : std::max(pad, position + 2 * pad + 1 - size); }

Stretch stretch_of(const Axis& columns, int width, bool rows_inside, int column, int end) {
  const int first = columns.first_inner(), end_inner = columns.end_inner(width);
  if (!rows_inside || column >= end_inner) return {false, end - column};
  return column < first ? Stretch{false, std::min(first, end) - column} : Stretch{true, std::min(end_inner, end) - column};
}

namespace {

constexpr int kBlockOutputs = kMaxPanels * kPanel;

std::vector<std::vector<Convolution::Run>> runs_of(const std::vector<int32_t>& lanes) {
  std::vector<std::vector<Convolution::Run>> runs;
  for (int o = 0; o < static_cast<int>(lanes.size()); o++) {
    if (o % kBlockOutputs == 0) runs.emplace_back();
    std::vector<Convolution::Run>& of_block = runs.back();
    if (o % kBlockOutputs && lanes[o] == lanes[o - 1] + 1)
      of_block.back().length++;
    else
      of_block.push_back({o % kBlockOutputs, 1, lanes[o]});
  }
  return runs;
}

// Copies a short run of any length, for which a library call would take longer than the copy.
template <class T>
void copy_run(const T* from, T* to, int length) {
  for (; length >= 4; length -= 4, from += 4, to += 4) std::memcpy(to, from, 4 * sizeof(T));
  for (; length > 0; length--) *to++ = *from++;
}

// `part` copies the outputs of `pixels` pixels from a block, whose pixels are `pitch` apart, to the places where a PixelShuffle puts them;
// `join` copies them back.
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

// Sets the grid of the output codes of an image.
template <class Args>
void set_grid(Args& to, const adabm_conv2d_args& a, int image) {
  const int bits = a.out_bits[image];
  const float* grid = a.out_grid + (bits - ADABM_MIN_BITS) * 2;
  to.scale = grid[0], to.offset = grid[1], to.top = static_cast<float>((1 << bits) - 1);
}

}  // namespace

Convolution::Convolution(const adabm_conv2d_args& args, const Kernels& k, const PackedHeader& h)
    : a(args), kernels(k), header(h), features(feature_format(args.y_format, args.y_fraction)),
      exact(args.y || args.y_acc || args.y_image || args.residual || passes_on(args.region)), bands(args, h) {
  axes = axes_of(h.geometry, h.kernel_h, h.kernel_w);
  out_height = axes.rows.outputs(a.height), out_width = axes.columns.outputs(a.width);
  pixel_bytes = h.quads() * 4;
  row_bytes = a.width * pixel_bytes;
  box_stride = (a.width + 2 * kPanel - 1) / kPanel * kPanel;
  const int r = a.shuffle;
  out_channels = h.out_channels / (r * r), code_channels = a.y_image ? out_channels : (out_channels + 3) / 4 * 4;
  codes = a.y_image ? a.y_image : a.y_q;
  y_pitch = a.y_pitch ? a.y_pitch : out_channels;
  contiguous = r == 1 || out_channels % kPanel == 0;
  y_lane.resize(h.out_channels), q_lane.resize(h.out_channels);
  for (int o = 0; o < h.out_channels; o++) {
    const int c = o % out_channels, j = o / out_channels % r, i = o / out_channels / r;
    y_lane[o] = (i * out_width * r + j) * out_channels + c;
    q_lane[o] = (i * out_width * r + j) * code_channels + c;
  }
  if (!contiguous) {
    y_runs = runs_of(y_lane), q_runs = runs_of(q_lane);
    for (int o = 0; o < h.out_channels; o++) y_lane[o] = q_lane[o] = o % kBlockOutputs;
  }
}

const int32_t* Convolution::box_rows(int image, const RowGroup& group, Span columns) const {
  if (!a.box_filter || header.general()) return nullptr;
  Scratch& s = thread_scratch();
  const int pad_h = header.kernel_h / 2, pad_w = header.kernel_w / 2;
  s.box.resize(std::max(s.box.size(), static_cast<size_t>(group.rows) * box_stride));
  for (const Span& of_group : *group.spans) {
    const Span span = of_group.within(columns);
    if (span.empty()) continue;
    // Sums of the codes under the pixels of the span, zeros outside the image. Elements written beyond a span are set anew by the next one.
    const Span under = Span{span.begin - pad_w, span.end + pad_w}.within({0, a.width});
    s.pixel_sums.assign(span.columns() + 2 * pad_w + kPanel, 0);
    int32_t* const sums = s.pixel_sums.data() + under.begin - (span.begin - pad_w);
    for (int n = 0; n < group.rows; n++) std::fill_n(s.box.data() + static_cast<ptrdiff_t>(n) * box_stride + span.begin, span.columns(), 0);
    for (int i = std::max(0, group.row - pad_h); i < std::min(a.height, group.row + group.rows + pad_h); i++) {
      const uint8_t* row = a.x_q + (static_cast<ptrdiff_t>(image) * a.height + i) * row_bytes;
      kernels.pixel_sums(row + static_cast<ptrdiff_t>(under.begin) * pixel_bytes, under.columns(), pixel_bytes, sums);
      for (int n = 0; n < group.rows; n++)
        if (std::abs(group.row + n - i) <= pad_h)
          kernels.slide(s.pixel_sums.data(), header.kernel_w, span.columns(), s.box.data() + static_cast<ptrdiff_t>(n) * box_stride + span.begin);
    }
  }
  return s.box.data();
}

void Convolution::run_band(const Band& band) const {
  struct Within {
    const Kernels& kernels;
    explicit Within(const Kernels& k) : kernels(k) {
      if (kernels.enter) kernels.enter();
    }
    ~Within() {
      if (kernels.leave) kernels.leave();
    }
  };
  if (band.first_group < band.end_group) {
    Within within(kernels);
    run_groups(band);
  }
  if (passes_on(a.region)) pass_on(band);
}

void Convolution::run_groups(const Band& band) const {
  const Part all = {band.image, band.first_group, band.end_group, {0, out_width}};
  if (header.general()) return header.depthwise() ? run_depthwise(all) : run_general(all);
  const int tile = header.tile_for_bits[a.x_bits[band.image] - ADABM_MIN_BITS], pad = header.kernel_w / 2;
  const bool tiled = tile != ADABM_TILE_DIRECT;
  if (kTiles[tile].kn2row) return run_kn2row_tiled(all);
  if (!header.border_kernels) return tiled ? run_tiled(all) : header.kn2row ? run_kn2row(all) : run_direct(all);
  const auto end_above = [&](int row) { return std::partition_point(all.begin, all.end, [&](const RowGroup& group) { return group.row < row; }); };
  const RowGroup *const inner = end_above(header.kernel_h / 2), *const inner_end = end_above(a.height - header.kernel_h / 2);
  const Part inside = {band.image, inner, inner_end, {pad, a.width - pad}};
  run_direct({band.image, all.begin, inner, all.columns});
  for (int i = 0; i < pad; i++) run_outer_column(inside, i), run_outer_column(inside, a.width - 1 - i);
  tiled ? run_tiled(inside) : run_direct(inside);
  run_direct({band.image, inner_end, all.end, all.columns});
}

void Convolution::pass_on(const Band& band) const {
  QuantizeArgs q = {};
  q.stride_w = y_pitch, q.stride_c = 1, q.channels = out_channels, q.padded_channels = q.y_stride = code_channels;
  if (a.y_q) set_grid(q, a, band.image);
  for (int row = band.first_row; row < band.end_row; row++)
    for (const Span& span : strip_of(bands.strips(band.image), row).passed) {
      const ptrdiff_t pixel = (static_cast<ptrdiff_t>(band.image) * a.height + row) * a.width + span.begin;
      if (!a.residual) {
        pass_zeros_on(pixel, span.columns(), q);
        continue;
      }
      for (int m = 0; a.y && a.y != a.residual && m < span.columns(); m++) {
        const ptrdiff_t at = (pixel + m) * y_pitch;
        std::memcpy(feature_at(features, a.y, at), feature_at(features, a.residual, at), out_channels * feature_bytes(features));
      }
      if (!a.y_q) continue;
      q.features = features, q.x = feature_at(features, a.residual, pixel * y_pitch), q.width = span.columns(), q.y_q = a.y_q + pixel * code_channels;
      kernels.quantize_row(q);
    }
}

void Convolution::pass_zeros_on(ptrdiff_t pixel, int pixels, const QuantizeArgs& grid) const {
  for (int m = 0; a.y && m < pixels; m++) std::memset(feature_at(features, a.y, (pixel + m) * y_pitch), 0, out_channels * feature_bytes(features));
  if (!a.y_q) return;
  // Makes the codes of one pixel, from a float whatever the features are, and copies them.
  const float zero = 0;
  QuantizeArgs one = grid;
  uint8_t* const to = a.y_q + pixel * code_channels;
  one.x = &zero, one.stride_c = 0, one.width = 1, one.y_q = to;
  kernels.quantize_row(one);
  for (int m = 1; m < pixels; m++) std::memcpy(to + static_cast<ptrdiff_t>(m) * code_channels, to, code_channels);
}

RowOutput::RowOutput(const Convolution& c, int image, int row, const Spans& written) : c_(c), written_(written) {
  const adabm_conv2d_args& a = c.a;
  const int K = c.header.out_channels;
  const bool own = c.header.border_kernels;
  const int row_class = own ? kernel_class(row, a.height, c.header.kernel_h / 2) : c.axes.rows.border_class(row, a.height);
  const int column_classes = own ? c.header.kernel_w : c.axes.columns.classes();
  row_beta_ = a.beta + static_cast<ptrdiff_t>(row_class) * column_classes * K;
  row_alpha_ = a.alpha + static_cast<ptrdiff_t>(a.x_bits[image] - ADABM_MIN_BITS) * K;
  out_row_ = (static_cast<ptrdiff_t>(image) * c.out_height + row) * a.shuffle * c.out_width * a.shuffle;
  e_.activation = a.activation, e_.features = c.features;
  e_.y_stride = a.shuffle * c.y_pitch, e_.q_stride = a.shuffle * c.code_channels;
  e_.beta = beta_;
  if (a.y_image) {
    e_.scale = 1, e_.offset = 0, e_.top = 255;
  } else if (a.y_q) {
    set_grid(e_, a, image);
  }
}

void RowOutput::prefetch(int first_panel, int panels, int column, int pixels) const {
  if (!c_.a.residual || !c_.contiguous || c_.a.shuffle > 1) return;
  constexpr ptrdiff_t kLine = 64;  // bytes of a cache line
  const ptrdiff_t pixel = e_.y_stride * feature_bytes(c_.features);
  const ptrdiff_t bytes = std::min(panels * kPanel, c_.header.out_channels - first_panel * kPanel) * feature_bytes(c_.features);
  const ptrdiff_t first = out_row_ * c_.y_pitch + static_cast<ptrdiff_t>(column) * e_.y_stride + first_panel * kPanel;
  const uint8_t* const at = static_cast<const uint8_t*>(feature_at(c_.features, c_.a.residual, first));
  for (int m = 0; m < pixels; m++)
    for (ptrdiff_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + m * pixel + i, 1);
}

void RowOutput::write(const UntileArgs& products, int first_panel, int column, int pixels, const int32_t* box) {
  for (const Span& of_row : written_) {
    const Span span = of_row.within({column, column + pixels});
    if (span.empty()) continue;
    const int skipped = span.begin - column;
    UntileArgs from = products;
    if (skipped) {
      if (products.outputs > 1) c_.kernels.untile_epilogue(products, EpilogueArgs{});  // an epilogue without pixels: this call only untiles
      from = {1, span.columns(), products.panels, products.acc + static_cast<ptrdiff_t>(skipped) * products.panels * kPanel, nullptr, false, 0};
      from.acc = const_cast<int32_t*>(from.products);
    }
    write_pixels(from, first_panel, span.begin, span.columns(), box ? box + skipped : nullptr);
  }
}

void RowOutput::set_epilogue(int first_panel, int panels, int column, int pixels) {
  const adabm_conv2d_args& a = c_.a;
  const int K = c_.header.out_channels, first = first_panel * kPanel, pad = c_.header.kernel_w / 2;
  const Axis& columns = c_.axes.columns;
  const int begin = std::min(std::max(columns.first_inner() - column, 0), pixels);
  const int end = std::min(std::max(columns.end_inner(a.width) - column, begin), pixels);
  const auto at_border = [&](int m) {
    const int at = c_.header.border_kernels ? kernel_class(column + m, a.width, pad) : columns.border_class(column + m, a.width);
    beta_[m] = row_beta_ + static_cast<ptrdiff_t>(at) * K + first;
  };
  for (int m = 0; m < begin; m++) at_border(m);
  std::fill_n(beta_ + begin, end - begin, row_beta_ + static_cast<ptrdiff_t>(c_.header.border_kernels ? pad : 0) * K + first);
  for (int m = end; m < pixels; m++) at_border(m);
  const ptrdiff_t y_at = out_row_ * c_.y_pitch + column * e_.y_stride;
  e_.acc = nullptr, e_.box = nullptr, e_.pixels = pixels, e_.panels = panels;
  e_.lanes = std::min(panels * kPanel, K - first);
  // The panels of one block may lie apart only where a PixelShuffle separates them.
  e_.together = a.shuffle == 1 || !c_.contiguous || c_.out_channels % kBlockOutputs == 0;
  e_.alpha = row_alpha_ + first;
  e_.slope = a.slope ? a.slope + first : nullptr;
  e_.y_lane = c_.y_lane.data() + first, e_.q_lane = c_.q_lane.data() + first;
  e_.residual = feature_at(c_.features, a.residual, y_at);
  e_.y = feature_at(c_.features, a.y, y_at);
  e_.y_acc = a.y_acc ? a.y_acc + y_at : nullptr;
  e_.y_q = c_.codes ? c_.codes + out_row_ * c_.code_channels + column * e_.q_stride : nullptr;
}

void RowOutput::write_pixels(const UntileArgs& products, int first_panel, int column, int pixels, const int32_t* box) {
  set_epilogue(first_panel, products.panels, column, pixels);
  e_.acc = products.acc, e_.box = box;
  c_.contiguous ? c_.kernels.untile_epilogue(products, e_) : write_parted(products, first_panel);
}

const EpilogueArgs* RowOutput::epilogue_of(int first_panel, int panels, int column, int pixels) {
  const bool whole = std::any_of(written_.begin(), written_.end(), [&](Span span) { return span.begin <= column && column + pixels <= span.end; });
  if (!whole || !c_.contiguous) return nullptr;
  set_epilogue(first_panel, panels, column, pixels);
  return &e_;
}

// Only the outputs of a PixelShuffle are not adjacent; their features are float32.
void RowOutput::write_parted(const UntileArgs& products, int first_panel) {
  Scratch& s = thread_scratch();
  const int block = first_panel / kMaxPanels, pitch = products.panels * kPanel, pixels = e_.pixels;
  const auto &y_runs = c_.y_runs[block], &q_runs = c_.q_runs[block];
  EpilogueArgs e = e_;
  e.y_stride = e.q_stride = pitch;
  if (e_.residual) join(y_runs, static_cast<const float*>(e_.residual), e_.y_stride, s.values, pitch, pixels), e.residual = s.values;
  if (e_.y) e.y = s.values;
  if (e_.y_acc) e.y_acc = products.acc;  // every accumulator is read before its place is written
  if (e_.y_q) e.y_q = s.value_codes;
  c_.kernels.untile_epilogue(products, e);
  if (e_.y) part(y_runs, s.values, pitch, static_cast<float*>(e_.y), e_.y_stride, pixels);
  if (e_.y_acc) part(y_runs, products.acc, pitch, e_.y_acc, e_.y_stride, pixels);
  if (e_.y_q) part(q_runs, s.value_codes, pitch, e_.y_q, e_.q_stride, pixels);
}

void RowOutput::finish() const {
  const adabm_conv2d_args& a = c_.a;
  if (!a.y_q || c_.code_channels == c_.out_channels) return;
  const int channels = c_.code_channels - c_.out_channels, r = a.shuffle;
  for (int i = 0; i < r; i++)
    for (const Span& span : written_) {
      uint8_t* at = a.y_q + (out_row_ + (static_cast<ptrdiff_t>(i) * c_.out_width + span.begin) * r) * c_.code_channels + c_.out_channels;
      for (int m = 0; m < span.columns() * r; m++, at += c_.code_channels) std::memset(at, 0, channels);
    }
}

}  // namespace adabm
