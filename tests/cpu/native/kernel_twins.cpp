// Compares every kernel of one instruction set with its scalar twin on random problems: kernel_twins NAME. Compiled and run by
// tests/cpu/test_twins.py, under an emulator where the processor is another. Exit status 0 when all are equal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "adabm/adabm.h"
#include "cpu/isa/kernels.h"

using namespace adabm;

namespace {

std::mt19937 rng(1);
int below(int n) { return static_cast<int>(rng() % n); }
float real(float most) { return (static_cast<float>(rng() >> 8) / (1 << 24) * 2 - 1) * most; }
FeatureFormat int16_features(int fraction) { return {true, std::ldexp(1.0f, fraction), std::ldexp(1.0f, -fraction)}; }

template <class T>
struct Aligned {  // 64-byte aligned, with slack behind
  explicit Aligned(size_t count) : bytes(count * sizeof(T) + 256), count(count) {}
  T* data() { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64); }
  void fill(int low, int high) {
    for (size_t i = 0; i < count; i++) data()[i] = static_cast<T>(low + below(high - low + 1));
  }
  bool operator==(Aligned& other) { return !std::memcmp(data(), other.data(), count * sizeof(T)); }
  std::vector<uint8_t> bytes;
  size_t count;
};

int failures = 0, checks = 0;
void expect(bool equal, const char* what, int a, int b, int c) {
  checks++;
  if (!equal && failures++ < 20) std::printf("%s differs: %d, %d, %d\n", what, a, b, c);
}

// PackedHeader::depth for any weights of that size.
int depth_of(int code_max, int weight_max) {
  int depth = 0;
  for (int d = 1; 2 * d * code_max * weight_max <= 32767; d *= 2) depth = d;
  return depth;
}

void check_product(const Kernels& twin, const Kernels& k) {
  for (int panels = 1; panels <= kMaxPanels; panels++)
    for (int pixels = 1; pixels <= k.pixels[panels]; pixels++)
      for (int bits = 2; bits <= 8; bits++) {
        const int taps = 1 + below(3), quads = 1 + below(9), most = below(3) ? 1 + below(20) : 128;
        Aligned<uint8_t> x(static_cast<size_t>(taps) * pixels * quads * 4);
        Aligned<int8_t> w(static_cast<size_t>(taps) * quads * panels * 64);
        Aligned<int32_t> start(panels * kPanel), a(pixels * panels * kPanel), b(a.count);
        x.fill(bits == 8 ? 200 : 0, (1 << bits) - 1), w.fill(-most, std::min(most, 127)), start.fill(-100000, 100000);
        std::vector<ptrdiff_t> offsets;
        for (int t = 0; t < taps; t++) offsets.push_back(static_cast<ptrdiff_t>(t) * pixels * quads * 4);
        ProductArgs p = {};
        p.x = x.data(), p.tap_offset = offsets.data(), p.taps = taps, p.quads = quads, p.pixel_stride = quads * 4, p.w = w.data();
        p.pixels = pixels, p.panels = panels, p.eight_bits = bits == 8, p.depth = depth_of((1 << bits) - 1, most);
        p.start = below(2) ? start.data() : nullptr, p.acc = a.data();
        twin.product(p);
        p.acc = b.data();
        k.product(p);
        expect(a == b, "product", panels, pixels, bits);
      }
}

// In both ways that pixels can lie: with columns in common, and without. Columns are missing on both sides.
void check_depthwise(const Kernels& twin, const Kernels& k) {
  for (int round = 0; round < 400; round++) {
    const int panels = 1 + below(kMaxPanels), pixels = 1 + below(40), rows = 1 + below(9), row_quads = (rows + 3) / 4, bits = 2 + below(7);
    const int columns = below(2) ? 3 : 1 + below(7), parts = below(3) ? 1 : 2, step = 1 + below(2), width = 1 + below(40), lanes = panels * kPanel;
    const bool two_rows = rows <= 3 && below(2);
    const int most = below(3) ? 1 + below(20) : 128, quads = parts * columns * row_quads;
    Aligned<uint8_t> x(static_cast<size_t>(rows + 1) * width * lanes);
    Aligned<int8_t> w(static_cast<size_t>(quads) * lanes * 4);
    Aligned<int32_t> a(static_cast<size_t>(2) * pixels * lanes), b(a.count);
    x.fill(bits == 8 ? 200 : 0, (1 << bits) - 1), w.fill(-most, std::min(most, 127));
    for (size_t i = 0; i < w.count; i++)
      if (i / (lanes * 4) % row_quads * 4 + i % 4 >= static_cast<size_t>(rows)) w.data()[i] = 0;
    std::vector<const uint8_t*> pointers;
    for (int r = 0; r < row_quads * 4; r++) pointers.push_back(x.data() + static_cast<ptrdiff_t>(std::min(r, rows)) * width * lanes);
    DepthwiseArgs d = {};
    d.rows = pointers.data(), d.column_bytes = lanes, d.first_column = below(7) - 3, d.width = width;
    d.pixel_step = step, d.column_step = below(2) ? step : 1 + below(3), d.row_quads = row_quads, d.columns = columns, d.parts = parts;
    d.w = w.data(), d.pixels = pixels, d.panels = panels, d.eight_bits = bits == 8, d.depth = depth_of((1 << bits) - 1, most);
    for (auto& [kernels, out] : {std::pair<const Kernels&, Aligned<int32_t>&>(twin, a), {k, b}}) {
      d.acc = out.data(), d.below = two_rows ? out.data() + static_cast<ptrdiff_t>(pixels) * lanes : nullptr;
      kernels.depthwise(d);
    }
    expect(a == b, "depthwise", rows * 10 + columns, pixels, bits);
  }
}

void check_row_product(const Kernels& twin, const Kernels& k, int rows) {
  for (int panels = 1; panels <= kMaxPanels; panels++)
    for (int tiles = 1; tiles <= k.tiles[rows - kMinTileRows][panels]; tiles++)
      for (int parts = 1; parts <= kMaxParts; parts++) {
        const int quads = 1 + below(9), outer = 1 + below(parts), largest = 1 + below(parts), bytes = quads * 4, lanes = panels * kPanel;
        const int most = below(3) ? 1 + below(20) : 128;
        Aligned<uint8_t> x(static_cast<size_t>(rows + 2) * tiles * bytes);
        Aligned<int8_t> w(static_cast<size_t>(2 * (parts + outer) + (rows - 2) * largest) * quads * panels * 64);
        Aligned<int32_t> start(rows * lanes), a(rows * static_cast<size_t>(tiles) * lanes), b(a.count);
        const bool eight = below(2);
        x.fill(0, eight ? 255 : 127), w.fill(-most, std::min(most, 127)), start.fill(-9999, 9999);
        RowProductArgs p = {};
        p.rows = rows, p.x = x.data(), p.tap_stride = tiles * bytes, p.tile_stride = bytes, p.quads = quads, p.w = w.data();
        for (int i = 0; i < rows + 2; i++) p.parts[i] = i < 2 ? parts : i < rows ? largest : outer;
        p.tiles = tiles, p.panels = panels, p.eight_bits = eight;
        const int depth = depth_of(eight ? 255 : 127, most);  // which fits every tap, as half of it does
        for (int& of_tap : p.depth) of_tap = depth >> below(2);
        p.start = start.data(), p.start_stride = lanes, p.sums = a.data(), p.row_stride = tiles * lanes;
        // The divisions are exact only where codes are transformed ones, but both round alike.
        twin.row_product(p);
        p.sums = b.data();
        k.row_product(p);
        expect(a == b, rows == 2 ? "row_product" : "row_product of three rows", panels, tiles, parts);
      }
}

void check_word_row_product(const Kernels& twin, const Kernels& k, int outputs) {
  for (int panels = 1; panels <= kMaxPanels; panels++)
    for (int tiles = 1; tiles <= kMaxPixels; tiles++) {
      const int pairs = 2 * (1 + below(9)), bytes = pairs * 4, lanes = panels * kPanel;
      Aligned<int16_t> x(static_cast<size_t>(6) * tiles * pairs * 2), w(static_cast<size_t>(6) * pairs * panels * 32);
      Aligned<int32_t> a(static_cast<size_t>(4) * tiles * lanes), b(a.count);
      x.fill(-68 * 255, 68 * 255), w.fill(-49 * 128, 49 * 128);  // sums may wrap
      RowProductArgs p = {};
      p.x = reinterpret_cast<const uint8_t*>(x.data()), p.tap_stride = tiles * bytes, p.tile_stride = bytes, p.quads = pairs;
      p.w = reinterpret_cast<const int8_t*>(w.data()), p.tiles = tiles, p.panels = panels, p.row_stride = tiles * lanes;
      p.sums = a.data(), p.rows = outputs;
      twin.word_row_product(p);
      p.sums = b.data();
      k.word_row_product(p);
      expect(a == b, "word_row_product", panels, tiles, pairs);
    }
}

void check_word_transform_rows(const Kernels& twin, const Kernels& k) {
  for (int bytes = 4; bytes <= 148; bytes += 4) {
    const int tiles = 1 + below(kMaxPixels), threes = 1 + 2 * below(3);
    const ptrdiff_t plane = static_cast<ptrdiff_t>(tiles) * threes * bytes * 2;
    Aligned<uint8_t> x(static_cast<size_t>(3 * threes + 3) * tiles * bytes), a(6 * plane), b(a.count);
    x.fill(0, 255);
    TransformArgs t = {};
    t.x = x.data(), t.row_stride = tiles * bytes, t.tiles = tiles, t.pixel_bytes = bytes, t.plane = plane;
    t.out = a.data();
    twin.word_transform_rows(t, threes);
    t.out = b.data();
    k.word_transform_rows(t, threes);
    expect(a == b, "word_transform_rows", bytes, tiles, threes);
  }
}

struct Outputs {
  Outputs(size_t count) : y(count), y_int16(count), codes(count), sums(count) {}
  bool operator==(Outputs& o) { return y == o.y && y_int16 == o.y_int16 && codes == o.codes && sums == o.sums; }
  Aligned<float> y;
  Aligned<int16_t> y_int16;
  Aligned<uint8_t> codes;
  Aligned<int32_t> sums;
};

// Products of a channel each and their epilogue in one, against one after the other; some results are not finite.
void check_depthwise_epilogue(const Kernels& twin, const Kernels& k) {
  for (int round = 0; k.depthwise_epilogue && round < 300; round++) {
    const int panels = 2 + 2 * below(2), lanes = panels * kPanel, pixels = 1 + below(40), width = 1 + below(40), used = 4;
    const bool two_rows = below(2);
    Aligned<uint8_t> x(static_cast<size_t>(used) * width * lanes);
    Aligned<int8_t> w(static_cast<size_t>(3) * lanes * 4);
    Aligned<int32_t> sums(static_cast<size_t>(2) * pixels * lanes);
    x.fill(0, 255), w.fill(-128, 127);
    for (size_t i = 3; i < w.count; i += 4) w.data()[i] = 0;
    std::vector<const uint8_t*> pointers;
    for (int r = 0; r < 4; r++) pointers.push_back(x.data() + static_cast<ptrdiff_t>(r) * width * lanes);
    DepthwiseArgs d = {};
    d.rows = pointers.data(), d.column_bytes = lanes, d.first_column = below(4) - 2, d.width = width, d.pixel_step = d.column_step = 1 + below(2);
    d.row_quads = 1, d.columns = 3, d.parts = 1, d.w = w.data(), d.pixels = pixels, d.panels = panels, d.eight_bits = true;
    d.acc = sums.data(), d.below = two_rows ? sums.data() + static_cast<ptrdiff_t>(pixels) * lanes : nullptr;
    Aligned<float> alpha(lanes), beta(lanes), beta_below(lanes), slope(lanes), residual(static_cast<size_t>(2) * pixels * lanes);
    for (int i = 0; i < lanes; i++) {
      alpha.data()[i] = real(0.001f), beta.data()[i] = real(9), beta_below.data()[i] = real(9), slope.data()[i] = real(1);
      if (!below(20)) beta.data()[i] = below(2) ? NAN : below(2) ? INFINITY : -INFINITY;
    }
    for (size_t i = 0; i < residual.count; i++) residual.data()[i] = real(20);
    std::vector<const float*> betas(pixels, beta.data()), betas_below(pixels, beta_below.data());
    std::vector<int32_t> lane(lanes);
    for (int i = 0; i < lanes; i++) lane[i] = i;
    Outputs a(residual.count), b(residual.count);
    const bool with_residual = !below(3), in_place = below(2);
    const int wanted = 1 + below(3), activation = below(3), bits = 2 + below(7);
    const float scale = below(9) ? 3.0f : -3.0f, offset = real(9);
    for (auto& [kernels, out] : {std::pair<const Kernels&, Outputs&>(twin, a), {k, b}}) {
      EpilogueArgs e[2] = {};
      for (int row = 0; row < 2; row++) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(row) * pixels * lanes;
        e[row].pixels = pixels, e[row].panels = panels, e[row].lanes = lanes, e[row].alpha = alpha.data(), e[row].slope = slope.data();
        e[row].beta = row ? betas_below.data() : betas.data(), e[row].activation = activation, e[row].acc = sums.data() + at;
        e[row].y_stride = e[row].q_stride = lanes, e[row].y_lane = e[row].q_lane = lane.data(), e[row].together = true;
        e[row].scale = scale, e[row].offset = offset, e[row].top = static_cast<float>((1 << bits) - 1);
        e[row].y = wanted & 1 ? out.y.data() + at : nullptr, e[row].y_q = wanted & 2 ? out.codes.data() + at : nullptr;
        if (with_residual) e[row].residual = residual.data() + at;
        if (with_residual && in_place && e[row].y) e[row].residual = std::memcpy(e[row].y, residual.data() + at, sizeof(float) * pixels * lanes);
      }
      if (kernels.depthwise_epilogue) {
        expect(kernels.depthwise_epilogue(d, e[0], two_rows ? &e[1] : nullptr), "the form of depthwise_epilogue", panels, pixels, wanted);
        continue;
      }
      kernels.depthwise(d);
      for (int row = 0; row < (two_rows ? 2 : 1); row++) {
        int32_t* const acc = sums.data() + static_cast<ptrdiff_t>(row) * pixels * lanes;
        kernels.untile_epilogue({1, pixels, panels, acc, acc, false, 0}, e[row]);
      }
    }
    expect(a == b, "depthwise_epilogue", panels, pixels, wanted);
  }
}

// With outputs == 1 the epilogue alone, else the sums of a tile's products first; words: of a tile on words. int16: features in 16 bits,
// of which some are too large for their fraction, some half way between two, some not finite.
void check_epilogue(const Kernels& twin, const Kernels& k, int outputs, bool words, bool int16) {
  for (int round = 0; round < 200; round++) {
    const int panels = 1 + below(kMaxPanels), lanes_all = panels * kPanel, lanes = lanes_all - below(2) * below(kPanel), tiles = 1 + below(4);
    const int pixels = outputs * tiles - below(outputs), taps = outputs == 1 ? 1 : words ? kMaxTaps : outputs + 2, activation = below(3);
    Aligned<int32_t> products(static_cast<size_t>(taps) * tiles * lanes_all), box(pixels), acc(static_cast<size_t>(tiles) * outputs * lanes_all);
    products.fill(-50000, 50000), box.fill(0, 5000);
    Aligned<float> alpha(lanes_all), beta(lanes_all), slope(lanes_all), residual(static_cast<size_t>(pixels) * lanes_all);
    for (int i = 0; i < lanes_all; i++) alpha.data()[i] = real(0.001f), beta.data()[i] = real(9), slope.data()[i] = real(1);
    for (size_t i = 0; i < residual.count; i++) residual.data()[i] = real(20);
    const int fraction = below(4) ? 7 + below(5) : ADABM_MIN_FRACTION + below(ADABM_MAX_FRACTION - ADABM_MIN_FRACTION + 1);
    Aligned<int16_t> residual_int16(residual.count);
    residual_int16.fill(-32767, 32767);
    for (int i = 0; int16 && i < lanes_all; i++) {
      if (!below(3)) alpha.data()[i] = std::ldexp(1.0f, -fraction - 1), beta.data()[i] = 0;
      if (!below(20)) beta.data()[i] = below(2) ? NAN : below(2) ? INFINITY : -INFINITY;
    }
    std::vector<const float*> betas(pixels, beta.data());
    std::vector<int32_t> lane(lanes);
    const bool together = below(2);
    for (int i = 0; i < lanes; i++) lane[i] = (together ? i / kPanel : panels - 1 - i / kPanel) * kPanel + i % kPanel;
    Outputs a(residual.count), b(residual.count);
    EpilogueArgs e = {};
    e.box = below(2) ? box.data() : nullptr, e.pixels = pixels, e.panels = panels, e.lanes = lanes;
    e.alpha = alpha.data(), e.beta = betas.data(), e.activation = activation, e.slope = slope.data();
    if (int16) e.features = int16_features(fraction);
    e.residual = below(3) ? nullptr : int16 ? static_cast<const void*>(residual_int16.data()) : residual.data();
    e.y_stride = e.q_stride = lanes_all, e.y_lane = e.q_lane = lane.data();
    const bool in_place = e.residual && below(2);
    e.together = together, e.scale = 3, e.offset = 1.5f, e.top = static_cast<float>((2 << below(8)) - 1);
    const int wanted = 1 + below(int16 ? 3 : 7);
    for (auto& [kernels, out] : {std::pair<const Kernels&, Outputs&>(twin, a), {k, b}}) {
      void* const y = int16 ? static_cast<void*>(out.y_int16.data()) : out.y.data();
      if (in_place) e.residual = std::memcpy(y, int16 ? static_cast<const void*>(residual_int16.data()) : residual.data(), residual.count * (int16 ? 2 : 4));
      e.y = wanted & 1 ? y : nullptr, e.y_q = wanted & 2 ? out.codes.data() : nullptr;
      e.y_acc = wanted & 4 ? out.sums.data() : nullptr;
      e.acc = outputs == 1 ? products.data() : acc.data();
      kernels.untile_epilogue({outputs, tiles, panels, products.data(), acc.data(), words, words ? round % outputs : 0}, e);
    }
    expect(a == b, int16 ? "untile_epilogue on int16" : "untile_epilogue", outputs, lanes, wanted);
  }
}

void check_transform(const Kernels& twin, const Kernels& k, int rows) {
  for (int outputs = rows == 2 ? 1 : 3; outputs <= kMaxTileOutputs; outputs++)
    for (int bytes = 4; bytes <= 148; bytes += 12) {
      const int tiles = 1 + below(4), columns = tiles * outputs + 2, taps = outputs == 1 ? 1 : outputs + 2;
      Aligned<uint8_t> x(static_cast<size_t>(rows + 2) * columns * bytes), a(static_cast<size_t>(taps) * (rows + 2) * tiles * bytes), b(a.count);
      x.fill(0, 15);
      TransformArgs t = {};
      t.rows = rows, t.outputs = outputs, t.x = x.data(), t.row_stride = columns * bytes, t.tiles = tiles, t.pixel_bytes = bytes;
      t.plane = static_cast<ptrdiff_t>(tiles) * bytes;
      for (auto& column : t.shift)
        for (auto& shift : column) shift = 0x01010101u * static_cast<unsigned>(below(200));
      t.out = a.data();
      twin.transform(t);
      t.out = b.data();
      k.transform(t);
      expect(a == b, "transform", 10 * rows + outputs, bytes, tiles);
    }
}

void check_word_transform(const Kernels& twin, const Kernels& k, int outputs) {
  for (int bytes = 4; bytes <= 148; bytes += 4) {
    const int tiles = 1 + below(4), columns = (tiles - 1) * outputs + kMaxTaps;
    Aligned<uint8_t> x(static_cast<size_t>(6) * columns * bytes), a(static_cast<size_t>(36) * tiles * bytes * 2), b(a.count);
    x.fill(0, 255);
    TransformArgs t = {};
    t.outputs = outputs, t.x = x.data(), t.row_stride = columns * bytes, t.tiles = tiles, t.pixel_bytes = bytes;
    t.plane = static_cast<ptrdiff_t>(tiles) * bytes * 2;
    t.out = a.data();
    twin.word_transform(t);
    t.out = b.data();
    k.word_transform(t);
    expect(a == b, "word_transform", bytes, tiles, outputs);
  }
}

void check_rest(const Kernels& twin, const Kernels& k) {
  for (int round = 0; round < 100; round++) {
    const int width = 1 + below(20), bytes = 4 * (1 + below(30)), taps = 1 + below(9);
    Aligned<uint8_t> row(static_cast<size_t>(width) * bytes);
    row.fill(0, 255);
    Aligned<int32_t> a(64), b(64), from(64);
    twin.pixel_sums(row.data(), width, bytes, a.data());
    k.pixel_sums(row.data(), width, bytes, b.data());
    expect(a == b, "pixel_sums", width, bytes, 0);
    from.fill(-999, 999);
    twin.slide(from.data(), taps, width, a.data());
    k.slide(from.data(), taps, width, b.data());
    expect(!std::memcmp(a.data(), b.data(), sizeof(int32_t) * width), "slide", width, taps, 0);

    const int outputs = 1 + below(20), columns = 1 + below(kMaxPanels * kPanel / outputs), pitch = (outputs * columns + 15) / 16 * 16;
    const int padded = (outputs + 15) / 16 * 16;
    Aligned<int32_t> spread(static_cast<size_t>(width + columns) * pitch), c(static_cast<size_t>(width) * padded), d(c.count);
    spread.fill(-99999, 99999);
    const bool words = below(2);
    twin.gather_columns({spread.data(), pitch, columns, outputs, width, words, outputs % 4, c.data()});
    k.gather_columns({spread.data(), pitch, columns, outputs, width, words, outputs % 4, d.data()});
    expect(c == d, "gather_columns", outputs, columns, width);

    const int channels = bytes - below(4), codes = bytes + 4 * below(10);
    Aligned<float> x(static_cast<size_t>(width) * bytes), shift(bytes);
    for (size_t i = 0; i < x.count; i++) x.data()[i] = below(50) ? real(300) : static_cast<float>(below(2) ? NAN : INFINITY);
    for (int i = 0; i < bytes; i++) shift.data()[i] = real(100);
    Aligned<uint8_t> p(static_cast<size_t>(width) * codes), q(p.count);
    const bool planar = below(2);
    Aligned<int16_t> x_int16(x.count);
    x_int16.fill(-32768, 32767);
    QuantizeArgs z = {{}, x.data(), planar ? 1 : bytes, planar ? width : 1, below(2) ? shift.data() : nullptr, width, channels, codes, codes,
                      0.5f, 40.5f, 255.0f, p.data()};
    twin.quantize_row(z);
    z.y_q = q.data();
    k.quantize_row(z);
    expect(p == q, "quantize_row", width, channels, planar);
    z.features = int16_features(below(12)), z.x = x_int16.data(), z.shift = nullptr;
    k.quantize_row(z);
    z.y_q = p.data();
    twin.quantize_row(z);
    expect(p == q, "quantize_row of int16", width, channels, planar);
  }
}

template <class T>
void check_interpolation(const Kernels& twin, const Kernels& k, double most) {
  for (int round = 0; round < 60; round++) {
    const int rows = 1 + below(8), columns = 1 + below(32), channels = 1 + below(4), scale = 1 + below(4), y_pitch = channels + below(2);
    InterpolateArgs t = {};
    t.rows = rows, t.columns = columns, t.channels = channels, t.scale = scale, t.element = sizeof(T);
    t.x_pitch = columns + kCubicTaps + 16, t.pitch = static_cast<ptrdiff_t>(columns) * scale * channels + 16;
    const size_t held = rows + kCubicTaps - 1;
    Aligned<float> x(held * channels * t.x_pitch), shares(held * t.x_pitch), cubic(scale * kCubicTaps), linear(scale * kLinearTaps);
    Aligned<float> enlarged(held * t.pitch), enlarged_shares(held * t.pitch);
    for (size_t i = 0; i < x.count; i++) x.data()[i] = static_cast<float>(below(static_cast<int>(most)));
    for (size_t i = 0; i < shares.count; i++) shares.data()[i] = static_cast<float>(below(5)) / 4;
    for (size_t i = 0; i < cubic.count; i++) cubic.data()[i] = below(5) ? real(0.5) : 0.0f;
    for (size_t i = 0; i < linear.count; i++) linear.data()[i] = below(4) ? real(0.5) : 0.0f;
    t.x = x.data(), t.shares = below(3) ? shares.data() : nullptr, t.cubic = cubic.data(), t.linear = linear.data();
    t.enlarged = enlarged.data(), t.enlarged_shares = enlarged_shares.data();
    t.y_pitch = y_pitch, t.y_stride = static_cast<ptrdiff_t>(columns) * scale * y_pitch + below(9);
    Aligned<T> a(t.y_stride * rows * scale), b(a.count);
    for (size_t i = 0; i < a.count; i++) a.data()[i] = b.data()[i] = static_cast<T>(below(static_cast<int>(most)));
    t.y = a.data();
    twin.interpolate_tile(t);
    t.y = b.data();
    k.interpolate_tile(t);
    expect(a == b, "interpolate_tile", static_cast<int>(sizeof(T)), channels, scale);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "";
  const Kernels* found = nullptr;
  for (const Kernels* k : {kernels_neon(), kernels_avx2(), kernels_avxvnni(), kernels_avx512vnni(), kernels_amx()})
    if (k && name == k->name) found = k;
  if (!found) return std::printf("no kernels named '%s' in this program\n", name.c_str()), 2;
  check_product(*kernels_scalar(), *found);
  check_depthwise(*kernels_scalar(), *found);
  for (int rows : {2, 3}) check_row_product(*kernels_scalar(), *found, rows), check_transform(*kernels_scalar(), *found, rows);
  for (const bool int16 : {false, true}) {
    for (int outputs = 1; outputs <= kMaxTileOutputs; outputs++) check_epilogue(*kernels_scalar(), *found, outputs, false, int16);
    for (const int outputs : {2, 4}) check_epilogue(*kernels_scalar(), *found, outputs, true, int16);
  }
  check_depthwise_epilogue(*kernels_scalar(), *found);
  for (const int outputs : {2, 4}) {
    check_word_row_product(*kernels_scalar(), *found, outputs);
    check_word_transform(*kernels_scalar(), *found, outputs);
  }
  check_word_transform_rows(*kernels_scalar(), *found);
  check_rest(*kernels_scalar(), *found);
  check_interpolation<uint8_t>(*kernels_scalar(), *found, 255);
  check_interpolation<uint16_t>(*kernels_scalar(), *found, 65535);
  check_interpolation<float>(*kernels_scalar(), *found, 255);
  std::printf("%s: %d checks, %d failures\n", found->name, checks, failures);
  return failures != 0;
}
