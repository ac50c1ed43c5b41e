// Convolutions: valid problems, whose results are compared with loops that are written out here from adabm.h, and broken ones.
#pragma once

#include <cmath>

#include "wrong.h"

// How often each instruction set was asked for in a call that was computed.
inline long calls_of_isa[ADABM_ISA_COUNT];

// An instruction set that runs here.
inline int an_isa(Input& in) {
  int32_t built = 0, present = 0;
  const int isa = in.below(ADABM_ISA_COUNT);
  if (isa == ADABM_ISA_AUTO) return isa;
  require(adabm_isa_cpu(isa, &built, &present) == ADABM_OK, "adabm_isa_cpu");
  return built && present ? isa : ADABM_ISA_AUTO;
}

// More threads than one now and then: they take longer to wake than small problems take.
inline int some_threads(Input& in) { return in.one_in(16) ? in.from(2, 3) : 1; }

// ---- numbers

inline uint8_t code_of(float value, const float* grid, int bits) {
  const float unit = std::fmaf(value, grid[(bits - 2) * 2], grid[(bits - 2) * 2 + 1]), top = static_cast<float>((1 << bits) - 1);
  if (!(unit > 0)) return 0;  // NaN too
  return static_cast<uint8_t>(std::nearbyintf(std::min(unit, top)));
}

inline int16_t fixed(float value, int fraction) {
  const float scaled = std::ldexp(value, fraction);
  if (!(scaled > -32767.0f)) return -32767;  // NaN too
  return static_cast<int16_t>(std::nearbyintf(std::min(scaled, 32767.0f)));
}

inline bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <class T>
T held_at(const uint8_t* from, size_t element) {
  T value;
  std::memcpy(&value, from + element * sizeof value, sizeof value);
  return value;
}

// A feature of either format.
inline float feature(const uint8_t* from, size_t element, bool int16, int fraction) {
  return int16 ? std::ldexp(static_cast<float>(held_at<int16_t>(from, element)), -fraction) : held_at<float>(from, element);
}

// ---- regions

enum Pixel { kLeft, kOwn, kPassed };  // left alone, computed, passed on

inline Pixel pixel_of(const adabm_region& r, int image, int y, int x, int height, int width) {
  if (!r.depth) return kOwn;
  const int rows = (r.top + height + r.tile - 1) / r.tile, columns = (r.left + width + r.tile - 1) / r.tile;
  const auto depth = [&](int row, int column) { return r.depth[(static_cast<ptrdiff_t>(image) * rows + row) * columns + column]; };
  const auto near = [&](int reach, int least, int most) {
    for (int a = std::max(y - reach, 0); a <= std::min(y + reach, height - 1); a++)
      for (int b = std::max(x - reach, 0); b <= std::min(x + reach, width - 1); b++) {
        const int d = depth((r.top + a) / r.tile, (r.left + b) / r.tile);
        if (d >= least && d <= most) return true;
      }
    return false;
  };
  const int own = depth((r.top + y) / r.tile, (r.left + x) / r.tile);
  if (own >= r.own_least && own <= r.own_most && near(r.reach, r.near_least, r.near_most)) return kOwn;
  return r.pass_least <= r.pass_most && near(r.pass_reach, r.pass_least, r.pass_most) ? kPassed : kLeft;
}

inline void set_region(Arena& room, adabm_region& r, int batch, int height, int width, bool passes) {
  Input& in = room.in;
  if (!in.one_in(3)) return;
  r.tile = in.from(1, 9), r.top = in.below(r.tile), r.left = in.below(r.tile);
  const size_t count = static_cast<size_t>(batch) * ((r.top + height + r.tile - 1) / r.tile) * ((r.left + width + r.tile - 1) / r.tile);
  uint8_t* depth = room.make<uint8_t>(count);
  in.fill(depth, count, 0, 3);
  r.depth = depth, r.own_least = in.below(3), r.own_most = in.from(r.own_least, 4), r.near_least = in.below(3);
  r.near_most = in.from(r.near_least, 4), r.reach = in.below(r.tile + 1);
  r.pass_least = 1, r.pass_most = 0;
  if (passes && in.one_in(2)) r.pass_least = in.below(4), r.pass_most = in.from(r.pass_least, 4), r.pass_reach = in.below(r.tile + 1);
}

inline void add_region_rules(std::vector<Rule>& rules, size_t region, const adabm_region& r) {
  if (!r.depth) return;
  rules.push_back({region + AT(adabm_region, tile), std::max(r.top, r.left) + 1, kMostSide});
  for (const size_t member : {AT(adabm_region, top), AT(adabm_region, left)}) rules.push_back({region + member, 0, r.tile - 1});
  for (const size_t member : {AT(adabm_region, reach), AT(adabm_region, pass_reach)}) rules.push_back({region + member, 0, r.tile});
  for (const size_t member : {AT(adabm_region, own_least), AT(adabm_region, own_most), AT(adabm_region, near_least), AT(adabm_region, near_most),
                              AT(adabm_region, pass_least), AT(adabm_region, pass_most)})
    rules.push_back({region + member, 0, 255});
}

// ---- problems

enum Form { kPlain, kGeneral, kDepthwise };

// One convolution: its sizes, and its geometry as it is, which a plain one does not say in words.
struct Problem {
  bool plain, borders;
  int r, s, c, k, shuffle, batch, h, w, out_h, out_w;
  adabm_geometry g;

  int group_channels() const { return c / g.groups; }
  int group_of(int o) const { return (o % (k / (shuffle * shuffle)) * shuffle * shuffle + o / (k / (shuffle * shuffle))) / (k / g.groups); }
  size_t kernel() const { return static_cast<size_t>(k) * r * s * group_channels(); }
  size_t kernels() const { return borders ? static_cast<size_t>(r) * s : 1; }
  static int most_outside(int side, int pad, int dilation) { return std::min(side, (pad + dilation - 1) / dilation); }
  int row_classes() const {
    return borders ? r : (most_outside(r, g.pad_top, g.dilation_h) + 1) * (most_outside(r, g.pad_bottom, g.dilation_h) + 1);
  }
  int column_classes() const {
    return borders ? s : (most_outside(s, g.pad_left, g.dilation_w) + 1) * (most_outside(s, g.pad_right, g.dilation_w) + 1);
  }
  size_t beta() const { return static_cast<size_t>(row_classes()) * column_classes() * k; }
  void find_outputs() {
    const auto outputs = [](int size, int before, int after, int side, int dilation, int stride) {
      const int room = size + before + after - dilation * (side - 1) - 1;
      return room < 0 ? 0 : room / stride + 1;
    };
    out_h = outputs(h, g.pad_top, g.pad_bottom, r, g.dilation_h, g.stride_h);
    out_w = outputs(w, g.pad_left, g.pad_right, s, g.dilation_w, g.stride_w);
  }
  double work() const { return static_cast<double>(kernel()) * out_h * out_w * batch; }
};

inline int border_class(int position, int size, int side, int stride, int dilation, int pad_before, int pad_after) {
  int before = 0, after = 0;
  for (int tap = 0; tap < side; tap++) {
    const int at = position * stride - pad_before + tap * dilation;
    before += at < 0, after += at >= size;
  }
  return before * (Problem::most_outside(side, pad_after, dilation) + 1) + after;
}
inline int kernel_class(int position, int size, int pad) { return position < pad ? position : std::max(pad, position + 2 * pad + 1 - size); }

// Draws sizes, whose work is bounded.
inline Problem a_problem(Input& in, Form form, bool small) {
  Problem p = {};
  p.plain = form == kPlain, p.borders = p.plain && in.one_in(6), p.batch = in.from(1, 2);
  const auto side = [&] { return small ? in.from(1, 3) : in.from(1, in.one_in(4) ? 15 : 5); };
  p.r = side(), p.s = in.one_in(4) ? side() : p.r;
  if (p.plain) p.r |= 1, p.s |= 1;
  p.shuffle = in.below(3) ? 1 : in.from(2, in.one_in(8) ? 16 : 3);
  int outputs = in.from(1, small ? 4 : in.one_in(4) ? 70 : 18), channels = in.from(1, small ? 4 : in.one_in(4) ? 70 : 12);
  p.g = {1, 1, 1, 1, 1, p.r / 2, p.s / 2, p.r / 2, p.s / 2};
  if (!p.plain) {
    const auto step = [&] { return in.one_in(2) ? 1 : in.from(1, in.one_in(8) ? 40 : 3); };
    p.g.stride_h = step(), p.g.stride_w = step(), p.g.dilation_h = step(), p.g.dilation_w = step();
    for (int32_t* pad : {&p.g.pad_top, &p.g.pad_left, &p.g.pad_bottom, &p.g.pad_right}) *pad = in.from(0, in.one_in(8) ? 40 : p.r);
    p.g.groups = form == kDepthwise ? channels : in.one_in(3) ? 1 : in.from(1, 6);
    if (form == kDepthwise) channels = 1, outputs = in.one_in(2) ? 1 : in.from(1, 3);
    else if (p.g.groups > 1) channels = std::min(channels, 20), outputs = std::min(outputs, 20);
  }
  p.h = in.from(1, small ? 4 : 12), p.w = in.from(1, small ? 6 : 40);
  if (p.borders) p.h += p.r - 1, p.w += p.s - 1;
  for (;;) {
    p.c = p.g.groups * channels, p.k = p.g.groups * outputs * p.shuffle * p.shuffle;
    p.find_outputs();
    if (p.work() * (p.borders ? 4 : 1) <= 4e5 && static_cast<double>(p.kernel()) * p.kernels() <= 1e6 && p.beta() <= 60000) return p;
    if (p.shuffle > 2) p.shuffle = 2;
    else if (p.batch > 1) p.batch = 1;
    else if (outputs > 4) outputs /= 2;
    else if (channels > 4) channels /= 2;
    else if (!p.borders && p.h > 4) p.h /= 2;
    else if (!p.borders && p.w > 4) p.w /= 2;
    else if (p.g.groups > 4) p.g.groups /= 2;
    else if (!p.plain && p.g.pad_bottom + p.g.pad_right) p.g.pad_bottom = p.g.pad_right = 0;
    else if (p.r > 5 || p.s > 5) p.r = std::min(p.r, 5), p.s = std::min(p.s, 5), p.h = p.borders ? 9 : p.h, p.w = p.borders ? 9 : p.w;
    else if (!p.plain && p.g.pad_top + p.g.pad_left) p.g.pad_top = p.g.pad_left = 0;
    else if (outputs + channels > 2) outputs = channels = 1;
    else p.shuffle = 1, p.h = std::min(p.h, 9), p.w = std::min(p.w, 9);
    if (p.plain) p.g.pad_top = p.g.pad_bottom = p.r / 2, p.g.pad_left = p.g.pad_right = p.s / 2;
  }
}

// ---- packing

struct Packed {
  const int8_t* weight;
  void* packed;  // null where the input ends with the packing
  uint64_t bytes;
  bool box_filter;
};

inline Packed pack(Arena& room, const Problem& p, bool broken) {
  Input& in = room.in;
  adabm_weights weights = {};
  weights.struct_bytes = sizeof weights, weights.out_channels = p.k, weights.channels = p.c, weights.kernel_h = p.r, weights.kernel_w = p.s;
  weights.border_kernels = p.borders, weights.shuffle = p.shuffle;
  if (!p.plain) weights.geometry = p.g;
  const size_t count = p.kernel() * p.kernels();
  int8_t* weight = room.make<int8_t>(count);
  const int most = in.below(3) ? in.from(1, 15) : 128;
  in.fill(weight, count, -most, std::min(most, 127));
  const bool box_filter = !p.borders && in.one_in(3);
  weights.weight = weight, weights.box_filter = box_filter;
  if (p.plain && !in.one_in(3)) {
    const int tile = in.below(ADABM_TILE_COUNT);
    for (int32_t& of_bits : weights.tile_for_bits) of_bits = in.below(3) ? tile : ADABM_TILE_DIRECT;
  }
  uint64_t bytes = 0;
  adabm_status status = adabm_pack_bytes_cpu(&weights, &bytes);
  if (status != ADABM_OK) {  // a tile that this kernel has not, or that would not be exact
    require(p.plain && status == ADABM_INVALID_ARGUMENT && *adabm_last_error(), "a tile is refused in words");
    for (int32_t& of_bits : weights.tile_for_bits) of_bits = ADABM_TILE_DIRECT;
    require(adabm_pack_bytes_cpu(&weights, &bytes) == ADABM_OK, "the direct form takes all weights");
  }
  void* packed = room.make<uint8_t>(bytes, 64);
  const std::vector<Guarded*> written = {room.last()};
  if (broken) {
    std::vector<Rule> rules = {{AT(adabm_weights, struct_bytes), sizeof weights, sizeof weights}, {AT(adabm_weights, out_channels), 1, 65536},
                               {AT(adabm_weights, channels), 1, 65536}, {AT(adabm_weights, kernel_h), 1, 15}, {AT(adabm_weights, kernel_w), 1, 15},
                               {AT(adabm_weights, border_kernels), 0, p.plain}};
    for (int b = 0; b < ADABM_BIT_WIDTHS; b++) rules.push_back({AT(adabm_weights, tile_for_bits) + 4 * b, 0, p.plain ? ADABM_TILE_COUNT - 1 : 0});
    if (!p.plain) {
      rules.push_back({AT(adabm_weights, box_filter), 0, 1}), rules.push_back({AT(adabm_weights, shuffle), 1, 16});
      for (size_t i = 1; i < sizeof(adabm_geometry) / 4; i++) {
        const size_t member = AT(adabm_weights, geometry) + 4 * i;
        i == 4 ? rules.push_back({member, 1, std::max(p.c, p.k)}) : rules.push_back({member, i < 4, ADABM_MAX_STEP});
      }
      rules.push_back({AT(adabm_weights, geometry), 0, ADABM_MAX_STEP});
    }
    for (int ways = in.from(1, 8); ways; ways--) {
      adabm_weights wrong = weights;
      if (!break_one(in, wrong, rules, {{AT(adabm_weights, weight), 1, true}})) continue;
      uint64_t unwritten = 77;
      refused(adabm_pack_bytes_cpu(&wrong, &unwritten), {}, "adabm_pack_bytes_cpu");
      require(unwritten == 77, "adabm_pack_bytes_cpu wrote although it refused");
      refused(adabm_pack_cpu(&wrong, packed), written, "adabm_pack_cpu");
    }
    return {weight, nullptr, 0, false};
  }
  status = adabm_pack_cpu(&weights, packed);
  if (status != ADABM_OK) {  // weights of such a tile that words do not hold show as they are transformed
    require(status == ADABM_INVALID_ARGUMENT && *adabm_last_error(), "weights that do not fit are refused in words");
    calls.refused++;
    return {weight, nullptr, 0, false};
  }
  return {weight, packed, bytes, box_filter};
}

inline void fuzz_pack(Input& in, bool broken) {
  Arena room(in);
  const Problem p = a_problem(in, static_cast<Form>(in.below(3)), broken);
  if (pack(room, p, broken).packed) calls.computed++;
}

// ---- calls

// What was given to a call and what it must give, beside the struct itself.
struct Call {
  const Problem& p;
  const adabm_conv2d_args& a;
  const int8_t* weight;
  const std::vector<uint8_t>& residual;  // as it was before the call, which may write y over it
  int outputs, code_pitch, pitch;        // channels of an output pixel, and elements from one pixel to the next
  bool int16;
};

// v of adabm.h, and the accumulator, of output o of a pixel of the image that is computed.
inline float value_of(const Call& call, int n, int i, int j, int o, int32_t* acc) {
  const Problem& p = call.p;
  const adabm_conv2d_args& a = call.a;
  const adabm_geometry& g = p.g;
  const int row = p.borders ? kernel_class(i, p.h, p.r / 2) : border_class(i, p.h, p.r, g.stride_h, g.dilation_h, g.pad_top, g.pad_bottom);
  const int column = p.borders ? kernel_class(j, p.w, p.s / 2) : border_class(j, p.w, p.s, g.stride_w, g.dilation_w, g.pad_left, g.pad_right);
  const int of_group = p.group_channels(), first = p.group_of(o) * of_group, c4 = (p.c + 3) / 4 * 4;
  const int8_t* by = call.weight + (p.borders ? static_cast<size_t>(row) * p.s + column : 0) * p.kernel() + static_cast<size_t>(o) * p.r * p.s * of_group;
  int32_t sum = 0, codes = 0;
  for (int u = 0; u < p.r; u++)
    for (int t = 0; t < p.s; t++, by += of_group) {
      const int y = i * g.stride_h - g.pad_top + u * g.dilation_h, x = j * g.stride_w - g.pad_left + t * g.dilation_w;
      if (y < 0 || y >= p.h || x < 0 || x >= p.w) continue;
      const uint8_t* at = a.x_q + ((static_cast<size_t>(n) * p.h + y) * p.w + x) * c4 + first;
      for (int q = 0; q < of_group; q++) sum += at[q] * by[q], codes += at[q];
    }
  if (a.box_filter) sum = 2 * sum + codes;
  *acc = sum;
  float v = std::fmaf(static_cast<float>(sum), a.alpha[(a.x_bits[n] - 2) * p.k + o], a.beta[(static_cast<size_t>(row) * p.column_classes() + column) * p.k + o]);
  if (a.activation == ADABM_ACT_RELU) v = std::max(v, 0.0f);
  if (a.activation == ADABM_ACT_PRELU && v < 0) v = a.slope[o] * v;
  return v;
}

inline void compare(const Call& call) {
  const Problem& p = call.p;
  const adabm_conv2d_args& a = call.a;
  const int shuffle = p.shuffle, outputs = call.outputs;
  const size_t element = call.int16 ? 2 : 4;
  const bool codes_only = a.y_q && !a.y && !a.y_acc && !a.residual && a.region.depth && a.region.pass_least > a.region.pass_most;
  uint8_t* const y = static_cast<uint8_t*>(a.y);
  const auto kept = [&](const void* out, size_t at, size_t bytes) {
    for (size_t b = at * bytes; b < (at + 1) * bytes; b++)
      require(static_cast<const uint8_t*>(out)[b] == (out == y && a.residual == y ? call.residual[b] : kPattern), "what is left alone was written");
  };
  for (int n = 0; n < p.batch; n++)
    for (int i = 0; i < p.out_h; i++)
      for (int j = 0; j < p.out_w; j++) {
        const Pixel kind = pixel_of(a.region, n, i, j, p.out_h, p.out_w);
        for (int o = 0; o < p.k; o++) {
          const int sub = o / outputs, channel = o % outputs;
          const size_t pixel =
              ((static_cast<size_t>(n) * p.out_h + i) * shuffle + sub / shuffle) * p.out_w * shuffle + static_cast<size_t>(j) * shuffle + sub % shuffle;
          const size_t place = pixel * call.pitch + channel;
          if (kind == kLeft) {
            if (y) kept(y, place, element);
            if (a.y_acc) kept(a.y_acc, place, 4);
            if (a.y_q && !codes_only) kept(a.y_q, pixel * call.code_pitch + channel, 1);
            if (a.y_image) kept(a.y_image, pixel * outputs + channel, 1);
            continue;
          }
          int32_t sum = 0;
          float v = kind == kOwn ? value_of(call, n, i, j, o, &sum) : 0;
          if (a.residual) {
            const float added = feature(call.residual.data(), place, call.int16, a.y_fraction);
            v = kind == kOwn ? added + v : added;
          }
          if (call.int16) v = std::ldexp(static_cast<float>(fixed(v, a.y_fraction)), -a.y_fraction);
          const auto right = [&](bool holds, const char* what) {
            if (!holds) fail(std::string(what) + " at " + std::to_string(i) + ", " + std::to_string(j) + ", " + std::to_string(o));
          };
          if (y) right(same(feature(y, place, call.int16, a.y_fraction), v), "y");
          if (a.y_q) right(a.y_q[pixel * call.code_pitch + channel] == code_of(v, a.out_grid, a.out_bits[n]), "y_q");
          if (a.y_acc) right(a.y_acc[place] == sum, "y_acc");
          if (a.y_image) right(a.y_image[pixel * outputs + channel] == (v > 0 ? std::nearbyintf(std::min(v, 255.0f)) : 0), "y_image");
        }
        if (a.y_q && kind != kLeft && shuffle == 1)
          for (int q = outputs; q < call.code_pitch; q++)
            require(!a.y_q[((static_cast<size_t>(n) * p.out_h + i) * p.out_w + j) * call.code_pitch + q], "channels that pad codes are 0");
        if (shuffle == 1 && (n + 1 < p.batch || i + 1 < p.out_h || j + 1 < p.out_w))
          for (int q = outputs; q < call.pitch; q++) {
            const size_t beside = ((static_cast<size_t>(n) * p.out_h + i) * p.out_w + j) * call.pitch + q;
            if (y) kept(y, beside, element);
            if (a.y_acc) kept(a.y_acc, beside, 4);
          }
      }
}

inline void broken_conv2d(Input& in, const Problem& p, const adabm_conv2d_args& a, int32_t* bits, std::vector<Guarded*> written) {
  using Args = adabm_conv2d_args;
  std::vector<Rule> rules = common_rules<Args>();
  const std::vector<Rule> more = {{AT(Args, isa), 0, ADABM_ISA_COUNT - 1}, {AT(Args, batch), 1, INT_MAX - 1}, {AT(Args, height), 1, kMostSide},
                                  {AT(Args, width), 1, kMostSide}, {AT(Args, out_channels), p.k, p.k}, {AT(Args, channels), p.c, p.c},
                                  {AT(Args, kernel_h), p.r, p.r}, {AT(Args, kernel_w), p.s, p.s}, {AT(Args, box_filter), 0, 1}, {AT(Args, activation), 0, 2}, {AT(Args, shuffle), 1, 16},
                                  {AT(Args, packed_codes), 0, 0}, {AT(Args, y_pitch), 0, kMostSide - 1}, {AT(Args, y_format), 0, 1}};
  rules.insert(rules.end(), more.begin(), more.end());
  a.y_format ? rules.push_back({AT(Args, y_fraction), ADABM_MIN_FRACTION, ADABM_MAX_FRACTION}) : rules.push_back({AT(Args, y_fraction), 0, 0});
  // Of the size of the packed weights, a uint64_t, the lower half.
  rules.push_back({AT(Args, packed_bytes), static_cast<int32_t>(a.packed_bytes), static_cast<int32_t>(a.packed_bytes)});
  if (!p.plain) {
    const int32_t* geometry = &a.geometry.stride_h;
    for (size_t i = 0; i < sizeof(adabm_geometry) / 4; i++) rules.push_back({AT(Args, geometry) + 4 * i, geometry[i], geometry[i]});
    rules.push_back({AT(Args, box_filter), a.box_filter, a.box_filter}), rules.push_back({AT(Args, shuffle), a.shuffle, a.shuffle});
  }
  add_region_rules(rules, AT(Args, region), a.region);
  const size_t element = a.y_format ? 2 : 4;
  std::vector<Pointer> pointers = {{AT(Args, x_q), 1, true}, {AT(Args, x_bits), 4, true}, {AT(Args, packed), 64, true}, {AT(Args, alpha), 4, true},
                                   {AT(Args, beta), 4, true}, {AT(Args, y), element, false}, {AT(Args, residual), element, false}, {AT(Args, y_acc), 4, false}};
  if (a.activation == ADABM_ACT_PRELU) pointers.push_back({AT(Args, slope), 4, true});
  if (a.y_q) pointers.push_back({AT(Args, out_grid), 4, true}), pointers.push_back({AT(Args, out_bits), 4, true});
  if (a.residual == a.y && a.y) written.erase(written.begin());  // it holds the residual
  refuse_broken(in, a, rules, pointers, adabm_conv2d_cpu, written, "adabm_conv2d_cpu");
  refuse_bits(in, a, bits, p.batch, adabm_conv2d_cpu, written, "adabm_conv2d_cpu");
}

inline void fuzz_conv2d(Input& in, Form form, bool broken) {
  Arena room(in);
  const Problem p = a_problem(in, form, broken);
  const Packed packed = pack(room, p, false);
  if (!packed.packed) return;
  const bool int16 = p.shuffle == 1 && in.one_in(4), image = !int16 && in.one_in(5);
  const int shuffle = p.shuffle, k = p.k, c4 = (p.c + 3) / 4 * 4, outputs = k / (shuffle * shuffle), q4 = (outputs + 3) / 4 * 4;
  adabm_conv2d_args a = {};
  a.struct_bytes = sizeof a, a.isa = an_isa(in), a.threads = some_threads(in), a.batch = p.batch, a.height = p.h, a.width = p.w;
  a.out_channels = k, a.channels = p.c, a.kernel_h = p.r, a.kernel_w = p.s, a.packed = packed.packed, a.packed_bytes = packed.bytes;
  if (!p.plain) a.geometry = p.g;
  int32_t* bits = room.widths(p.batch);
  const size_t pixels = static_cast<size_t>(p.h) * p.w;
  uint8_t* x = room.make<uint8_t>(p.batch * pixels * c4);
  for (int n = 0; n < p.batch; n++) in.fill(x + n * pixels * c4, pixels * c4, 0, (1 << bits[n]) - 1);
  for (size_t pixel = 0; p.c < c4 && pixel < p.batch * pixels; pixel++) std::memset(x + pixel * c4 + p.c, 0, c4 - p.c);
  a.x_q = x, a.x_bits = bits, a.box_filter = packed.box_filter, a.activation = in.below(3), a.shuffle = shuffle;
  a.alpha = room.floats(static_cast<size_t>(7) * k, 0.01f), a.beta = room.floats(p.beta(), 20);
  if (a.activation == ADABM_ACT_PRELU || in.one_in(2)) a.slope = room.floats(k, 1);
  a.y_format = int16, a.y_fraction = !int16 ? 0 : in.one_in(4) ? in.from(ADABM_MIN_FRACTION, ADABM_MAX_FRACTION) : in.from(0, 8);
  const int pitch = !int16 && !image && shuffle == 1 && in.one_in(5) ? k + in.below(5) : outputs;
  a.y_pitch = pitch == outputs ? 0 : pitch;
  const size_t out_pixels = static_cast<size_t>(p.batch) * p.out_h * p.out_w * shuffle * shuffle, element = int16 ? 2 : 4;
  // Of a pitched slice the last pixel ends with its own outputs.
  const size_t span = out_pixels ? (out_pixels - 1) * pitch + outputs : 0;
  const int wanted = image ? in.below(2) : 1 + in.below(7);
  const bool acc = !int16 && (wanted & 4) && !image;
  std::vector<Guarded*> written;
  if (wanted & 1) a.y = room.make<uint8_t>(span * element, element), written.push_back(room.last());
  if (!image && ((wanted & 2) || !(a.y || acc))) a.y_q = room.make<uint8_t>(out_pixels * q4), written.push_back(room.last());
  if (acc) a.y_acc = room.make<int32_t>(span), written.push_back(room.last());
  if (image) a.y_image = room.make<uint8_t>(out_pixels * outputs), written.push_back(room.last());
  if (a.y_q) a.out_grid = room.floats(14, 2), a.out_bits = room.widths(p.batch);
  std::vector<uint8_t> residual;
  if (in.one_in(3)) {
    uint8_t* held = a.y && in.one_in(3) ? static_cast<uint8_t*>(a.y) : room.make<uint8_t>(span * element, element);
    if (int16) {
      in.stir();
      for (size_t i = 0; i < span; i++) reinterpret_cast<int16_t*>(held)[i] = static_cast<int16_t>(in.noise() % 65535 - 32767);
    } else {
      in.fill_floats(reinterpret_cast<float*>(held), span, 50, true);
    }
    a.residual = held, residual.assign(held, held + span * element);
  }
  const bool same_size = p.out_h == p.h && p.out_w == p.w;
  if (same_size || in.one_in(8)) set_region(room, a.region, p.batch, p.h, p.w, shuffle == 1 && !a.y_acc && !a.y_image);
  if (!p.out_h || !p.out_w || (a.region.depth && !same_size)) {  // a kernel that does not fit, or a region of another size
    if (!a.residual || a.residual != a.y) return refused(adabm_conv2d_cpu(&a), written, "adabm_conv2d_cpu");
    return refused(adabm_conv2d_cpu(&a), {}, "adabm_conv2d_cpu");
  }
  if (broken) return broken_conv2d(in, p, a, bits, written);
  if (adabm_conv2d_cpu(&a) != ADABM_OK) fail("adabm_conv2d_cpu refuses a valid call");
  calls_of_isa[a.isa]++;
  compare({p, a, packed.weight, residual, outputs, q4, pitch, int16});
  calls.computed++;
}
