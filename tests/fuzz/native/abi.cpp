// Fuzzes the C interface of the CPU library: valid problems of every entry, whose results are compared with a reference that is
// written out here from adabm.h, and the same problems with one thing wrong, which must be refused without a byte written.
//
// What happens is decided by the bytes of the input alone. Every array ends where a page begins that may not be touched, or begins
// where one ends; outputs hold a pattern first. With clang it is a target of libFuzzer (-fsanitize=fuzzer); with -DADABM_FUZZ_MAIN it
// has a main of its own: abi SEED SECONDS [MOST_INPUTS] draws inputs, abi FILE runs one.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "adabm/adabm.h"

namespace {

long valid_calls = 0, refused_calls = 0;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "failed: %s (last error: %s)\n", what.c_str(), adabm_last_error());
  std::abort();
}

void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

// The input as numbers; zeros once it has ended.
struct Bytes {
  const uint8_t* data;
  size_t size;
  unsigned take() { return size ? (size--, *data++) : 0; }
  int below(int n) { return static_cast<int>((take() | take() << 8) % static_cast<unsigned>(n)); }
  int from(int low, int high) { return low + below(high - low + 1); }
  bool one_in(int n) { return below(n) == 0; }
  float real(float most) { return (static_cast<float>(take() | take() << 8) / 32767.5f - 1) * most; }
};

// Memory between two pages that may not be touched.
class Guarded {
 public:
  Guarded(size_t size, size_t alignment, bool at_end) : size_(size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pages = (size + page - 1) / page + !size;
    mapped_ = (pages + 2) * page;
    void* room = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) fail("mmap");
    base_ = static_cast<uint8_t*>(room);
    mprotect(base_, page, PROT_NONE), mprotect(base_ + (pages + 1) * page, page, PROT_NONE);
    data_ = at_end ? base_ + ((pages + 1) * page - size) / alignment * alignment : base_ + page;
    std::memset(data_, kPattern, size);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, mapped_); }
  uint8_t* bytes() const { return data_; }
  size_t size() const { return size_; }
  bool untouched() const {
    for (size_t i = 0; i < size_; i++)
      if (data_[i] != kPattern) return false;
    return true;
  }
  static constexpr uint8_t kPattern = 0xA7;

 private:
  uint8_t *base_, *data_;
  size_t size_, mapped_;
};

struct Arena {
  Bytes& in;
  std::vector<Guarded*> held;
  explicit Arena(Bytes& in) : in(in) {}
  ~Arena() {
    for (Guarded* one : held) delete one;
  }
  template <class T>
  T* make(size_t count, size_t alignment = alignof(T)) {
    held.push_back(new Guarded(count * sizeof(T), alignment, in.below(4) > 0));
    return reinterpret_cast<T*>(held.back()->bytes());
  }
  Guarded* last() { return held.back(); }
};

float* floats(Arena& room, size_t count, float most) {
  float* made = room.make<float>(count);
  for (size_t i = 0; i < count; i++) made[i] = room.in.real(most);
  return made;
}

int32_t* widths(Arena& room, int batch) {
  int32_t* made = room.make<int32_t>(batch);
  for (int n = 0; n < batch; n++) made[n] = room.in.from(2, 8);
  return made;
}

// An instruction set that runs here.
int an_isa(Bytes& in) {
  int32_t built = 0, present = 0;
  const int isa = in.below(ADABM_ISA_COUNT);
  if (isa == ADABM_ISA_AUTO) return isa;
  require(adabm_isa_cpu(isa, &built, &present) == ADABM_OK, "adabm_isa_cpu");
  return built && present ? isa : ADABM_ISA_AUTO;
}

// ---- the reference

int border_class(int position, int size, int pad) { return std::max(0, pad - position) * (pad + 1) + std::max(0, position + pad - (size - 1)); }
int kernel_class(int position, int size, int pad) { return position < pad ? position : std::max(pad, position + 2 * pad + 1 - size); }

uint8_t code_of(float value, const float* grid, int bits) {
  const float unit = std::nearbyintf(std::fmaf(value, grid[(bits - 2) * 2], grid[(bits - 2) * 2 + 1]));
  return static_cast<uint8_t>(std::min(std::max(unit, 0.0f), static_cast<float>((1 << bits) - 1)));
}

int16_t fixed(float value, int fraction) {
  return static_cast<int16_t>(std::nearbyintf(std::min(std::max(std::ldexp(value, fraction), -32767.0f), 32767.0f)));
}

enum Kind { kAlone, kComputed, kPassed };  // left alone

Kind kind_of(const adabm_region& r, int image, int y, int x, int height, int width) {
  if (!r.depth) return kComputed;
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
  if (own >= r.own_least && own <= r.own_most && near(r.reach, r.near_least, r.near_most)) return kComputed;
  return r.pass_least <= r.pass_most && near(r.pass_reach, r.pass_least, r.pass_most) ? kPassed : kAlone;
}

void set_region(Arena& room, adabm_region& r, int batch, int height, int width, bool passes) {
  Bytes& in = room.in;
  if (!in.one_in(3)) return;
  r.tile = in.from(1, 9), r.top = in.below(r.tile), r.left = in.below(r.tile);
  const size_t count = static_cast<size_t>(batch) * ((r.top + height + r.tile - 1) / r.tile) * ((r.left + width + r.tile - 1) / r.tile);
  uint8_t* depth = room.make<uint8_t>(count);
  for (size_t i = 0; i < count; i++) depth[i] = static_cast<uint8_t>(in.below(4));
  r.depth = depth, r.own_least = in.below(3), r.own_most = in.from(r.own_least, 4), r.near_least = in.below(3);
  r.near_most = in.from(r.near_least, 4), r.reach = in.below(r.tile + 1);
  r.pass_least = 1, r.pass_most = 0;
  if (passes && in.one_in(2)) r.pass_least = in.below(4), r.pass_most = in.from(r.pass_least, 4), r.pass_reach = in.below(r.tile + 1);
}

// ---- one thing wrong

// A member of a struct, and values that break its rule whatever the others are.
struct Rule {
  size_t offset;
  std::vector<int32_t> wrong;
};
struct Pointer {
  size_t offset;
  size_t element;  // what it must be aligned to, 1 for anything; null is wrong as well where it is needed
  bool needed;
};

// Breaks one rule of the struct. False where the input chose one that cannot be broken here.
template <class Args>
bool break_one(Bytes& in, Args& args, const std::vector<Rule>& rules, const std::vector<Pointer>& pointers) {
  char* base = reinterpret_cast<char*>(&args);
  const int chosen = in.below(static_cast<int>(rules.size() + pointers.size()));
  if (chosen < static_cast<int>(rules.size())) {
    const Rule& rule = rules[chosen];
    std::memcpy(base + rule.offset, &rule.wrong[in.below(static_cast<int>(rule.wrong.size()))], sizeof(int32_t));
    return true;
  }
  const Pointer& pointer = pointers[chosen - rules.size()];
  char* held;
  std::memcpy(&held, base + pointer.offset, sizeof held);
  if (pointer.needed && in.one_in(2)) held = nullptr;
  else if (held && pointer.element > 1) held += 1 + in.below(static_cast<int>(pointer.element) - 1);
  else return false;
  std::memcpy(base + pointer.offset, &held, sizeof held);
  return true;
}

// That a broken call is refused in words, and has written nothing.
void refused(adabm_status status, const std::vector<Guarded*>& outputs, const char* what) {
  require(status == ADABM_INVALID_ARGUMENT && *adabm_last_error(), std::string(what) + " took a broken rule, status " + std::to_string(status));
  for (const Guarded* output : outputs) require(output->untouched(), std::string(what) + " wrote although it refused");
  refused_calls++;
}

#define AT(type, member) offsetof(type, member)
const std::vector<int32_t> kNoSize = {0, -1, INT_MIN}, kNoThreads = {0, -1, 257, INT_MAX, INT_MIN}, kNoIsa = {-1, ADABM_ISA_COUNT, INT_MAX, INT_MIN};

// ---- entries

void fuzz_conv2d(Bytes& in) {
  Arena room(in);
  const bool borders = in.one_in(6), int16 = in.one_in(4), image = !int16 && in.one_in(5);
  const int r = 1 + 2 * in.below(in.one_in(4) ? 8 : 3), s = in.one_in(5) ? 1 + 2 * in.below(3) : r;
  const int shuffle = int16 || in.below(3) ? 1 : in.from(2, 3), k = in.from(1, in.one_in(4) ? 40 : 18) * shuffle * shuffle, c = in.from(1, in.one_in(4) ? 70 : 12);
  const int h = in.from(borders ? r : 1, borders ? r + 6 : 12), w = in.from(borders ? s : 1, borders ? s + 9 : 30), batch = in.from(1, 2);
  const int c4 = (c + 3) / 4 * 4, classes = borders ? r * s : 1;
  adabm_weights weights = {};
  weights.struct_bytes = sizeof weights, weights.out_channels = k, weights.channels = c, weights.kernel_h = r, weights.kernel_w = s;
  weights.border_kernels = borders;
  const size_t kernel = static_cast<size_t>(k) * r * s * c;
  int8_t* weight = room.make<int8_t>(kernel * classes);
  const int most = in.below(3) ? in.from(1, 15) : 127;
  for (size_t i = 0; i < kernel * classes; i++) weight[i] = static_cast<int8_t>(in.from(-most, most));
  weights.weight = weight;
  const int tile = in.below(ADABM_TILE_COUNT);
  for (int32_t& of_bits : weights.tile_for_bits) of_bits = in.below(3) ? tile : ADABM_TILE_DIRECT;
  uint64_t bytes = 0;
  adabm_status status = adabm_pack_bytes_cpu(&weights, &bytes);
  if (status != ADABM_OK) {  // a tile that this kernel has not, or that would not be exact
    require(status == ADABM_INVALID_ARGUMENT && *adabm_last_error(), "a tile is refused");
    for (int32_t& of_bits : weights.tile_for_bits) of_bits = ADABM_TILE_DIRECT;
    require(adabm_pack_bytes_cpu(&weights, &bytes) == ADABM_OK, "the direct form takes all weights");
  }
  void* packed = room.make<uint8_t>(bytes, 64);
  if (in.one_in(12)) {
    std::vector<Guarded*> outputs = {room.last()};
    const std::vector<Rule> rules = {{AT(adabm_weights, struct_bytes), {0, 4, INT_MAX}}, {AT(adabm_weights, out_channels), {0, -1, 65537, INT_MAX}},
                                     {AT(adabm_weights, channels), {0, -1, 65537, INT_MAX}}, {AT(adabm_weights, kernel_h), {0, 2, -1, 17, INT_MAX}},
                                     {AT(adabm_weights, kernel_w), {0, 2, -1, 17, INT_MAX}}, {AT(adabm_weights, border_kernels), {-1, 2}},
                                     {AT(adabm_weights, tile_for_bits), {-1, ADABM_TILE_COUNT, INT_MAX}}};
    if (break_one(in, weights, rules, {{AT(adabm_weights, weight), 1, true}})) {
      uint64_t unwritten = 77;
      refused(adabm_pack_bytes_cpu(&weights, &unwritten), {}, "adabm_pack_bytes_cpu");
      require(unwritten == 77, "adabm_pack_bytes_cpu wrote although it refused");
      refused(adabm_pack_cpu(&weights, packed), outputs, "adabm_pack_cpu");
    }
    return;
  }
  status = adabm_pack_cpu(&weights, packed);
  if (status != ADABM_OK) {  // weights of such a tile that words do not hold show as they are transformed
    require(status == ADABM_INVALID_ARGUMENT && *adabm_last_error(), "weights that do not fit are refused");
    refused_calls++;
    return;
  }

  adabm_conv2d_args a = {};
  a.struct_bytes = sizeof a, a.isa = an_isa(in), a.threads = in.from(1, 3), a.batch = batch, a.height = h, a.width = w;
  a.out_channels = k, a.channels = c, a.kernel_h = r, a.kernel_w = s, a.packed = packed, a.packed_bytes = bytes;
  const size_t pixels = static_cast<size_t>(batch) * h * w;
  int32_t* bits = widths(room, batch);
  uint8_t* x = room.make<uint8_t>(pixels * c4);
  for (size_t p = 0; p < pixels; p++)
    for (int i = 0; i < c4; i++) x[p * c4 + i] = static_cast<uint8_t>(i < c ? in.below(1 << bits[p / (static_cast<size_t>(h) * w)]) : 0);
  a.x_q = x, a.x_bits = bits, a.box_filter = !borders && most < 64 && in.one_in(3), a.activation = in.below(3), a.shuffle = shuffle;
  const int rows = borders ? r : (r / 2 + 1) * (r / 2 + 1), columns = borders ? s : (s / 2 + 1) * (s / 2 + 1);
  const int fraction = int16 ? in.from(0, 8) : 0;
  float* alpha = floats(room, static_cast<size_t>(7) * k, 0.01f);
  float* beta = floats(room, static_cast<size_t>(rows) * columns * k, 20);
  float* slope = floats(room, k, 1);
  float* out_grid = floats(room, 14, 2);
  a.alpha = alpha, a.beta = beta, a.slope = a.activation == ADABM_ACT_PRELU || in.one_in(2) ? slope : nullptr;
  a.y_format = int16, a.y_fraction = fraction;
  const int outputs = k / (shuffle * shuffle), q4 = (outputs + 3) / 4 * 4;
  const int pitch = !int16 && !image && shuffle == 1 && in.one_in(5) ? k + in.below(5) : outputs;
  a.y_pitch = pitch == outputs ? 0 : pitch;
  const size_t out_pixels = pixels * shuffle * shuffle, element = int16 ? 2 : 4;
  // Of a pitched slice the last pixel ends with its own outputs.
  const size_t span = (out_pixels - 1) * pitch + outputs;
  const int wanted = image ? in.below(2) : 1 + in.below(7);
  const bool acc = !int16 && (wanted & 4) && !image;
  uint8_t *y = nullptr, *y_q = nullptr, *y_image = nullptr;
  int32_t* y_acc = nullptr;
  std::vector<Guarded*> written;
  if (wanted & 1) y = room.make<uint8_t>(span * element, element), written.push_back(room.last());
  if (!image && ((wanted & 2) || !(y || acc))) y_q = room.make<uint8_t>(out_pixels * q4), written.push_back(room.last());
  if (acc) y_acc = room.make<int32_t>(span), written.push_back(room.last());
  if (image) y_image = room.make<uint8_t>(out_pixels * outputs), written.push_back(room.last());
  a.y = y, a.y_q = y_q, a.y_acc = y_acc, a.y_image = y_image;
  if (y_q) a.out_grid = out_grid, a.out_bits = widths(room, batch);
  std::vector<uint8_t> residual;
  if (in.one_in(3)) {
    uint8_t* held = y && in.one_in(3) ? y : room.make<uint8_t>(span * element, element);
    for (size_t i = 0; i < span; i++)
      if (int16) reinterpret_cast<int16_t*>(held)[i] = static_cast<int16_t>(in.from(-32767, 32767));
      else reinterpret_cast<float*>(held)[i] = in.real(50);
    a.residual = held, residual.assign(held, held + span * element);
  }
  set_region(room, a.region, batch, h, w, shuffle == 1 && !y_acc && !y_image);

  if (in.one_in(4)) {
    std::vector<Rule> rules = {{AT(adabm_conv2d_args, struct_bytes), {0, 8, INT_MAX}}, {AT(adabm_conv2d_args, isa), kNoIsa},
                               {AT(adabm_conv2d_args, threads), kNoThreads}, {AT(adabm_conv2d_args, batch), {0, -1, INT_MIN, INT_MAX}},
                               {AT(adabm_conv2d_args, height), {0, -1, INT_MIN, (1 << 20) + 1, INT_MAX}}, {AT(adabm_conv2d_args, width), {0, -1, INT_MIN, (1 << 20) + 1, INT_MAX}},
                               {AT(adabm_conv2d_args, out_channels), {0, -1, k + 1, INT_MAX, INT_MIN}}, {AT(adabm_conv2d_args, channels), {0, -1, c + 1, INT_MAX, INT_MIN}},
                               {AT(adabm_conv2d_args, kernel_h), {0, r + 1, r + 2, -1, INT_MAX}}, {AT(adabm_conv2d_args, kernel_w), {0, s + 1, s + 2, -1, INT_MAX}},
                               {AT(adabm_conv2d_args, packed_bytes), {0, 8, INT_MAX}}, {AT(adabm_conv2d_args, activation), {-1, 3, INT_MAX}},
                               {AT(adabm_conv2d_args, shuffle), {0, -1, 17, 1 << 16, INT_MAX, INT_MIN}}, {AT(adabm_conv2d_args, packed_codes), {1, 2, -1}},
                               {AT(adabm_conv2d_args, y_pitch), {-1, 1 << 20, INT_MAX, INT_MIN}}, {AT(adabm_conv2d_args, y_format), {-1, 2, INT_MAX}},
                               {AT(adabm_conv2d_args, y_fraction), {-17, 25, INT_MAX, INT_MIN}}};
    if (a.region.depth)
      for (size_t member : {AT(adabm_region, tile), AT(adabm_region, top), AT(adabm_region, left), AT(adabm_region, reach), AT(adabm_region, pass_reach)})
        rules.push_back({AT(adabm_conv2d_args, region) + member, {-1, INT_MIN, INT_MAX}});
    std::vector<Pointer> pointers = {{AT(adabm_conv2d_args, x_q), 1, true}, {AT(adabm_conv2d_args, x_bits), 4, true}, {AT(adabm_conv2d_args, packed), 64, true},
                                     {AT(adabm_conv2d_args, alpha), 4, true}, {AT(adabm_conv2d_args, beta), 4, true}, {AT(adabm_conv2d_args, y), element, false},
                                     {AT(adabm_conv2d_args, residual), element, false}, {AT(adabm_conv2d_args, y_acc), 4, false}};
    if (a.activation == ADABM_ACT_PRELU) pointers.push_back({AT(adabm_conv2d_args, slope), 4, true});
    if (y_q) pointers.push_back({AT(adabm_conv2d_args, out_grid), 4, true}), pointers.push_back({AT(adabm_conv2d_args, out_bits), 4, true});
    if (a.residual == y && y) written.erase(written.begin());  // it holds the residual
    if (in.one_in(8)) {
      bits[in.below(batch)] = in.one_in(2) ? in.from(-2, 1) : in.from(9, 300);
    } else if (!break_one(in, a, rules, pointers)) {
      return;
    }
    refused(adabm_conv2d_cpu(&a), written, "adabm_conv2d_cpu");
    return;
  }

  require(adabm_conv2d_cpu(&a) == ADABM_OK, "adabm_conv2d_cpu");
  valid_calls++;
  const bool codes_only = y_q && !y && !y_acc && !a.residual && a.region.depth && a.region.pass_least > a.region.pass_most;
  for (int n = 0; n < batch; n++)
    for (int i = 0; i < h; i++)
      for (int j = 0; j < w; j++) {
        const Kind kind = kind_of(a.region, n, i, j, h, w);
        const int row = borders ? kernel_class(i, h, r / 2) : border_class(i, h, r / 2), column = borders ? kernel_class(j, w, s / 2) : border_class(j, w, s / 2);
        const int8_t* of_class = weight + (borders ? static_cast<size_t>(row) * s + column : 0) * kernel;
        for (int o = 0; o < k; o++) {
          const int sub = o / outputs, channel = o % outputs;
          const size_t pixel = shuffle == 1 ? (static_cast<size_t>(n) * h + i) * w + j
                                            : ((static_cast<size_t>(n) * h + i) * shuffle + sub / shuffle) * w * shuffle + static_cast<size_t>(j) * shuffle + sub % shuffle;
          const size_t place = pixel * pitch + channel;
          if (kind == kAlone) {
            const auto kept = [&](const uint8_t* out, size_t at, size_t bytes) {
              for (size_t b = 0; b < bytes; b++)
                require(out[at * bytes + b] == (out == y && a.residual == y ? residual[at * bytes + b] : Guarded::kPattern), "a pixel left alone was written");
            };
            if (y) kept(y, place, element);
            if (y_acc) kept(reinterpret_cast<uint8_t*>(y_acc), place, 4);
            if (y_q && !codes_only) kept(y_q, pixel * q4 + channel, 1);
            if (y_image) kept(y_image, pixel * outputs + channel, 1);
            continue;
          }
          float v = 0;
          int32_t sum = 0;
          if (kind == kComputed) {
            int32_t codes = 0;
            for (int u = 0; u < r; u++)
              for (int t = 0; t < s; t++) {
                const int from = i + u - r / 2, across = j + t - s / 2;
                if (from < 0 || from >= h || across < 0 || across >= w) continue;
                const uint8_t* at = x + ((static_cast<size_t>(n) * h + from) * w + across) * c4;
                const int8_t* by = of_class + ((static_cast<size_t>(o) * r + u) * s + t) * c;
                for (int q = 0; q < c; q++) sum += at[q] * by[q], codes += at[q];
              }
            if (a.box_filter) sum = 2 * sum + codes;
            v = std::fmaf(static_cast<float>(sum), alpha[(bits[n] - 2) * k + o], beta[(static_cast<size_t>(row) * columns + column) * k + o]);
            if (a.activation == ADABM_ACT_RELU) v = std::max(v, 0.0f);
            if (a.activation == ADABM_ACT_PRELU && v < 0) v = slope[o] * v;
          }
          if (a.residual) {
            float added;
            if (int16) {
              int16_t stored;
              std::memcpy(&stored, residual.data() + place * 2, 2);
              added = std::ldexp(static_cast<float>(stored), -fraction);
            } else {
              std::memcpy(&added, residual.data() + place * 4, 4);
            }
            v = kind == kComputed ? added + v : added;
          }
          if (int16) v = std::ldexp(static_cast<float>(fixed(v, fraction)), -fraction);
          const std::string at = " at " + std::to_string(i) + ", " + std::to_string(j) + ", " + std::to_string(o);
          if (y && !int16) {
            float got;
            std::memcpy(&got, y + place * 4, 4);
            require(got == v, "y" + at);
          }
          if (y && int16) {
            int16_t got;
            std::memcpy(&got, y + place * 2, 2);
            require(got == fixed(v, fraction), "y of int16" + at);
          }
          if (y_q) require(y_q[pixel * q4 + channel] == code_of(v, out_grid, a.out_bits[n]), "y_q" + at);
          if (y_acc) require(y_acc[place] == sum, "y_acc" + at);
          if (y_image) require(y_image[pixel * outputs + channel] == static_cast<uint8_t>(std::nearbyintf(std::min(std::max(v, 0.0f), 255.0f))), "y_image" + at);
        }
        if (y_q && kind != kAlone && shuffle == 1)
          for (int q = outputs; q < q4; q++) require(!y_q[((static_cast<size_t>(n) * h + i) * w + j) * q4 + q], "channels that pad codes are 0");
      }
}

void fuzz_quantize(Bytes& in) {
  Arena room(in);
  const int batch = in.from(1, 3), h = in.from(1, 7), w = in.from(1, 40), c = in.from(1, 40), c4 = (c + 3) / 4 * 4;
  const bool int16 = in.one_in(3), planar = in.one_in(2);
  adabm_quantize_args a = {};
  a.struct_bytes = sizeof a, a.isa = an_isa(in), a.threads = in.from(1, 3), a.batch = batch, a.height = h, a.width = w, a.channels = c;
  a.stride_n = static_cast<int64_t>(h) * w * c;
  if (planar) a.stride_c = static_cast<int64_t>(h) * w, a.stride_h = w, a.stride_w = 1;
  else a.stride_c = 1, a.stride_w = c, a.stride_h = static_cast<int64_t>(w) * c;
  const size_t count = static_cast<size_t>(batch) * h * w * c, element = int16 ? 2 : 4;
  uint8_t* x = room.make<uint8_t>(count * element, element);
  for (size_t i = 0; i < count; i++)
    if (int16) reinterpret_cast<int16_t*>(x)[i] = static_cast<int16_t>(in.from(-32767, 32767));
    else reinterpret_cast<float*>(x)[i] = in.real(300);
  const int fraction = int16 ? in.from(0, 10) : 0;
  a.x = x, a.x_format = int16, a.x_fraction = fraction;
  const float* grid = floats(room, 14, 3);
  const float* shift = !int16 && in.one_in(2) ? floats(room, c, 50) : nullptr;
  int32_t* bits = widths(room, batch);
  a.grid = grid, a.shift = shift, a.bits = bits;
  const int codes = in.one_in(3) ? c + in.below(9) : c4, pitch = in.one_in(3) ? codes + in.below(9) : codes;
  a.y_channels = codes == c4 ? 0 : codes, a.y_pitch = pitch;
  uint8_t* y_q = room.make<uint8_t>((static_cast<size_t>(batch) * h * w - 1) * pitch + codes);
  a.y_q = y_q;
  std::vector<Guarded*> written = {room.last()};
  set_region(room, a.region, batch, h, w, false);
  if (in.one_in(4)) {
    const std::vector<Rule> rules = {{AT(adabm_quantize_args, struct_bytes), {0, 8, INT_MAX}}, {AT(adabm_quantize_args, isa), kNoIsa},
                                     {AT(adabm_quantize_args, threads), kNoThreads}, {AT(adabm_quantize_args, batch), {0, -1, INT_MIN, INT_MAX}},
                                     {AT(adabm_quantize_args, height), kNoSize}, {AT(adabm_quantize_args, width), kNoSize},
                                     {AT(adabm_quantize_args, channels), {0, -1, INT_MIN, INT_MAX}}, {AT(adabm_quantize_args, y_channels), {-1, INT_MAX, INT_MIN}},
                                     {AT(adabm_quantize_args, y_pitch), {-1, 1 << 20, INT_MAX, INT_MIN}}, {AT(adabm_quantize_args, packed_codes), {1, 2, -1}},
                                     {AT(adabm_quantize_args, y_start), {4, -4, INT_MAX}}, {AT(adabm_quantize_args, x_format), {-1, 2, INT_MAX}},
                                     {AT(adabm_quantize_args, x_fraction), {-17, 25, INT_MAX, INT_MIN}}};
    std::vector<Pointer> pointers = {{AT(adabm_quantize_args, x), element, true}, {AT(adabm_quantize_args, grid), 4, true}, {AT(adabm_quantize_args, bits), 4, true},
                                     {AT(adabm_quantize_args, shift), 4, false}, {AT(adabm_quantize_args, y_q), 1, true}};
    if (in.one_in(8)) bits[in.below(batch)] = in.one_in(2) ? in.from(-2, 1) : in.from(9, 300);
    else if (in.one_in(8)) a.stride_c = in.one_in(2) ? -1 : INT64_MAX;
    else if (!break_one(in, a, rules, pointers)) return;
    refused(adabm_quantize_cpu(&a), written, "adabm_quantize_cpu");
    return;
  }
  require(adabm_quantize_cpu(&a) == ADABM_OK, "adabm_quantize_cpu");
  valid_calls++;
  for (int n = 0; n < batch; n++)
    for (int i = 0; i < h; i++)
      for (int j = 0; j < w; j++) {
        const uint8_t* got = y_q + ((static_cast<size_t>(n) * h + i) * w + j) * pitch;
        const bool computed = kind_of(a.region, n, i, j, h, w) == kComputed;
        for (int q = 0; q < codes; q++) {
          uint8_t want = computed ? 0 : Guarded::kPattern;
          if (computed && q < c) {
            const size_t place = n * a.stride_n + i * a.stride_h + j * a.stride_w + q * a.stride_c;
            const float value = int16 ? std::ldexp(static_cast<float>(reinterpret_cast<int16_t*>(x)[place]), -fraction) : reinterpret_cast<float*>(x)[place];
            want = code_of(shift ? value - shift[q] : value, grid, bits[n]);
          }
          require(got[q] == want, "code " + std::to_string(q) + " at " + std::to_string(i) + ", " + std::to_string(j));
        }
        if (n + 1 < batch || i + 1 < h || j + 1 < w)
          for (int q = codes; q < pitch; q++) require(got[q] == Guarded::kPattern, "between the channels of two pixels");
      }
}

void fuzz_depths(Bytes& in) {
  Arena room(in);
  const int batch = in.from(1, 3), h = in.from(1, 20), w = in.from(1, 20);
  adabm_depths_args a = {};
  a.struct_bytes = sizeof a, a.threads = in.from(1, 3), a.batch = batch, a.height = h, a.width = w, a.tile = in.from(1, 24);
  a.top = in.below(a.tile), a.left = in.below(a.tile), a.threshold = in.one_in(3) ? in.below(511) : in.below(60), a.deep = in.from(1, 255);
  const size_t pixels = static_cast<size_t>(batch) * h * w;
  const int most = in.one_in(2) ? 255 : 20;
  uint8_t* x = room.make<uint8_t>(pixels * 4);
  for (size_t i = 0; i < pixels * 4; i++) x[i] = static_cast<uint8_t>(i % 4 < 3 ? in.below(most + 1) : 0);
  const int rows = (a.top + h + a.tile - 1) / a.tile, columns = (a.left + w + a.tile - 1) / a.tile;
  uint8_t* depth = room.make<uint8_t>(static_cast<size_t>(batch) * rows * columns);
  a.x_q = x, a.depth = depth;
  if (in.one_in(4)) {
    std::vector<Guarded*> written = {room.last()};
    const std::vector<Rule> rules = {{AT(adabm_depths_args, struct_bytes), {0, 8, INT_MAX}}, {AT(adabm_depths_args, threads), kNoThreads},
                                     {AT(adabm_depths_args, batch), {0, -1, INT_MIN, INT_MAX}}, {AT(adabm_depths_args, height), {0, -1, (1 << 20) + 1, INT_MAX}},
                                     {AT(adabm_depths_args, width), {0, -1, (1 << 20) + 1, INT_MAX}}, {AT(adabm_depths_args, tile), {0, -1, (1 << 20) + 1, INT_MAX}},
                                     {AT(adabm_depths_args, top), {-1, INT_MAX}}, {AT(adabm_depths_args, left), {-1, INT_MAX}},
                                     {AT(adabm_depths_args, threshold), {-1, 511, INT_MAX}}, {AT(adabm_depths_args, deep), {0, -1, 256, INT_MAX}}};
    if (break_one(in, a, rules, {{AT(adabm_depths_args, x_q), 1, true}, {AT(adabm_depths_args, depth), 1, true}}))
      refused(adabm_depths_cpu(&a), written, "adabm_depths_cpu");
    return;
  }
  require(adabm_depths_cpu(&a) == ADABM_OK, "adabm_depths_cpu");
  valid_calls++;
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
  for (size_t i = 0; i < bends.size(); i++) require(depth[i] == (bends[i] > a.threshold ? a.deep : 0), "depth of tile " + std::to_string(i));
}

void fuzz_interpolate(Bytes& in) {
  Arena room(in);
  const int h = in.from(1, 18), w = in.from(1, 70), channels = in.from(1, 4), scale = in.from(1, 5), element = 1 << in.below(3);
  adabm_interpolate_args a = {};
  a.struct_bytes = sizeof a, a.isa = an_isa(in), a.threads = in.from(1, 3), a.height = h, a.width = w, a.channels = channels, a.scale = scale;
  a.element = element, a.top = in.below(3), a.left = in.below(3), a.x_height = h + a.top + in.below(3), a.x_width = w + a.left + in.below(3);
  const size_t count = static_cast<size_t>(a.x_height) * a.x_width * channels;
  a.x_stride_c = 1, a.x_stride_w = channels, a.x_stride_h = static_cast<int64_t>(a.x_width) * channels;
  const auto fill = [&](uint8_t* to, size_t values) {
    for (size_t i = 0; i < values; i++)
      if (element == 1) to[i] = static_cast<uint8_t>(in.take());
      else if (element == 2) reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(in.below(65536));
      else reinterpret_cast<float*>(to)[i] = static_cast<float>(in.below(256));
  };
  uint8_t* x = room.make<uint8_t>(count * element, element);
  fill(x, count);
  a.x = x, a.full = in.from(1, 300), a.y_pitch = channels + in.below(2);
  int16_t* shares = room.make<int16_t>(static_cast<size_t>(h + 2) * (w + 2));
  const int kind = in.below(3);
  for (int i = 0; i < (h + 2) * (w + 2); i++) shares[i] = static_cast<int16_t>(kind == 0 ? 0 : kind == 1 ? a.full : in.below(a.full + 1));
  a.shares = shares, a.cubic = floats(room, static_cast<size_t>(scale) * 5, 0.5f), a.linear = floats(room, static_cast<size_t>(scale) * 3, 0.5f);
  a.y_stride_h = static_cast<int64_t>(w) * scale * a.y_pitch + in.below(4);
  uint8_t* y = room.make<uint8_t>(((static_cast<size_t>(h) * scale - 1) * a.y_stride_h + static_cast<size_t>(w) * scale * a.y_pitch) * element, element);
  a.y = y;
  if (in.one_in(4)) {
    std::vector<Guarded*> written = {room.last()};
    const std::vector<Rule> rules = {{AT(adabm_interpolate_args, struct_bytes), {0, 8, INT_MAX}}, {AT(adabm_interpolate_args, isa), kNoIsa},
                                     {AT(adabm_interpolate_args, threads), kNoThreads}, {AT(adabm_interpolate_args, height), {0, -1, h + 9, INT_MAX}},
                                     {AT(adabm_interpolate_args, width), {0, -1, w + 9, INT_MAX}}, {AT(adabm_interpolate_args, channels), {0, -1, 5, INT_MAX}},
                                     {AT(adabm_interpolate_args, scale), {0, -1, 17, INT_MAX}}, {AT(adabm_interpolate_args, element), {0, 3, 8, -1}},
                                     {AT(adabm_interpolate_args, x_height), {0, -1, h - 1, INT_MIN}}, {AT(adabm_interpolate_args, x_width), {0, -1, w - 1, INT_MIN}},
                                     {AT(adabm_interpolate_args, top), {-1, INT_MAX, INT_MIN}}, {AT(adabm_interpolate_args, left), {-1, INT_MAX, INT_MIN}},
                                     {AT(adabm_interpolate_args, full), {0, -1, 32768, INT_MAX}}, {AT(adabm_interpolate_args, y_pitch), {0, channels - 1, -1, INT_MIN}}};
    const size_t size = static_cast<size_t>(element);
    if (break_one(in, a, rules,
                  {{AT(adabm_interpolate_args, x), size, true}, {AT(adabm_interpolate_args, shares), 2, true}, {AT(adabm_interpolate_args, cubic), 4, true},
                   {AT(adabm_interpolate_args, linear), 4, true}, {AT(adabm_interpolate_args, y), size, true}}))
      refused(adabm_interpolate_cpu(&a), written, "adabm_interpolate_cpu");
    return;
  }
  // Every instruction set gives what the scalar one gives; what that is tests/upscaling holds to numpy.
  fill(y, room.last()->size() / element);
  const std::vector<uint8_t> before(y, y + room.last()->size());
  require(adabm_interpolate_cpu(&a) == ADABM_OK, "adabm_interpolate_cpu");
  const std::vector<uint8_t> first(y, y + room.last()->size());
  std::copy(before.begin(), before.end(), y);
  a.isa = ADABM_ISA_SCALAR, a.threads = 1;
  require(adabm_interpolate_cpu(&a) == ADABM_OK && std::equal(first.begin(), first.end(), y), "adabm_interpolate_cpu differs from its scalar form");
  valid_calls++;
  if (kind == 0) require(first == before, "where nothing is smooth, y stays");
}

void fuzz_rest(Bytes& in) {
  int32_t built = 7, present = 7;
  int64_t macs = 0;
  const int isa = in.one_in(2) ? in.below(12) - 3 : INT_MAX - in.below(3);
  const bool known = isa > ADABM_ISA_AUTO && isa < ADABM_ISA_COUNT;
  const adabm_status status = adabm_isa_cpu(isa, in.one_in(4) ? nullptr : &built, &present);
  require(status == ADABM_OK || status == ADABM_INVALID_ARGUMENT, "adabm_isa_cpu");
  if (!known) require(status == ADABM_INVALID_ARGUMENT && built == 7 && present == 7, "adabm_isa_cpu took an unknown instruction set");
  const int threads = in.one_in(2) ? in.below(4) - 1 : INT_MAX - in.below(3);
  const adabm_status peak = adabm_peak_cpu(known ? isa : 99, threads, in.one_in(3) ? -in.below(3) : in.from(1, 9), &macs);
  require(peak == ADABM_OK ? known && threads >= 1 : *adabm_last_error() != 0, "adabm_peak_cpu");
  for (const adabm_status null : {adabm_conv2d_cpu(nullptr), adabm_quantize_cpu(nullptr), adabm_depths_cpu(nullptr), adabm_interpolate_cpu(nullptr),
                                  adabm_pack_cpu(nullptr, nullptr), adabm_pack_bytes_cpu(nullptr, nullptr)})
    require(null == ADABM_INVALID_ARGUMENT, "null is refused");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in = {data, size};
  switch (in.below(8)) {
    case 0: fuzz_quantize(in); break;
    case 1: fuzz_depths(in); break;
    case 2: fuzz_interpolate(in); break;
    case 3: fuzz_rest(in); break;
    default: fuzz_conv2d(in);
  }
  return 0;
}

#ifdef ADABM_FUZZ_MAIN
#include <chrono>
#include <csignal>
#include <random>

namespace {

std::vector<uint8_t> running;

// Whatever ends the process leaves its input behind.
void keep(int number) {
  if (FILE* file = std::fopen("abi.failed", "wb")) std::fwrite(running.data(), 1, running.size(), file), std::fclose(file);
  std::signal(number, SIG_DFL);
  std::raise(number);
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2) {
    FILE* file = std::fopen(arguments[1], "rb");
    if (!file) return std::perror(arguments[1]), 2;
    for (int byte; (byte = std::fgetc(file)) != EOF;) running.push_back(static_cast<uint8_t>(byte));
    std::fclose(file);
    return LLVMFuzzerTestOneInput(running.data(), running.size());
  }
  if (count < 3) return std::fprintf(stderr, "usage: %s SEED SECONDS [MOST_INPUTS], or %s FILE\n", arguments[0], arguments[0]), 2;
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(number, keep);
  std::mt19937_64 random(std::strtoull(arguments[1], nullptr, 10));
  const long most = count > 3 ? std::atol(arguments[3]) : LONG_MAX;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(arguments[2]));
  long inputs = 0;
  for (; inputs < most && std::chrono::steady_clock::now() < end; inputs++) {
    running.resize(64 + random() % 16384);
    for (uint8_t& byte : running) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(running.data(), running.size());
  }
  std::printf("%ld inputs, %ld valid calls equal to the reference, %ld broken ones refused\n", inputs, valid_calls, refused_calls);
  return 0;
}
#endif
