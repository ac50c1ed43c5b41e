// AMX: a matrix unit that multiplies 16 pixels of 64 unsigned codes by 64 signed weights of 16 outputs at a time. It computes
// only the products of the direct form, which take fewer cycles than the transforms of an exact tile. All other kernels are those of
// AVX512-VNNI.
#include "adabm/adabm.h"
#include "cpu/isa/kernels.h"

// Older Clang leaves out the underscore between the two words.
#if (defined(__AMX_TILE__) && defined(__AMX_INT8__)) || (defined(__AMXTILE__) && defined(__AMXINT8__))
#include <immintrin.h>

namespace adabm {
namespace {

constexpr int kRows = 16;   // rows of a tile register: pixels, or quads of channels
constexpr int kQuads = 16;  // quads of channels in a row of a tile register
constexpr int kFewestQuads = 6;  // with fewer quads in a product the matrix unit is no faster

// The operand of the instruction ldtilecfg. Registers 0 to 3 hold sums, 4 codes, 5 to 7 weights.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// The shapes of the tile registers of this thread. Other libraries set them too, so they are set anew for every band of rows.
thread_local int shaped_pixels, shaped_quads;

void shape(int pixels, int quads) {
  if (shaped_pixels == pixels && shaped_quads == quads) return;
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) {
    config.rows[i] = static_cast<uint8_t>(i <= 4 ? pixels : quads);
    config.row_bytes[i] = static_cast<uint16_t>(i == 4 ? 4 * quads : 64);
  }
  // This is asm because GCC 12 assumes that the intrinsic reads no more than the first eight bytes.
  asm volatile("ldtilecfg %0" ::"m"(config));
  shaped_pixels = pixels, shaped_quads = quads;
}

void enter() { shaped_pixels = 0; }

void leave() {
  if (shaped_pixels) _tile_release();
  shaped_pixels = 0;
}

int64_t peak(int64_t rounds) {
  shaped_pixels = 0;
  shape(kRows, kQuads);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < rounds; i++) {
    _tile_dpbusd(0, 4, 5);
    _tile_dpbusd(1, 4, 5);
    _tile_dpbusd(2, 4, 5);
    _tile_dpbusd(3, 4, 5);
  }
  leave();
  return 4 * 16 * 16 * 64;
}

// The number of quads in one step through a run of quads. All steps are equal, as a register has one shape.
int step_of(int quads) {
  int steps = (quads + kQuads - 1) / kQuads;
  while (quads % steps) steps++;
  return quads / steps;
}

template <int Panels>
void product_of(const ProductArgs& a, int step) {
  constexpr ptrdiff_t stride = 64 * Panels;
  asm volatile("" ::: "memory");  // the tile loads of GCC do not state that they read memory: it must be written before them
  if (a.start) {
    // A stride of 0 gives all pixels the same row.
    _tile_loadd(0, a.start, 0);
    if (Panels > 1) _tile_loadd(1, a.start + kPanel, 0);
    if (Panels > 2) _tile_loadd(2, a.start + 2 * kPanel, 0);
    if (Panels > 3) _tile_loadd(3, a.start + 3 * kPanel, 0);
  } else {
    _tile_zero(0);
    if (Panels > 1) _tile_zero(1);
    if (Panels > 2) _tile_zero(2);
    if (Panels > 3) _tile_zero(3);
  }
  const int8_t* w = a.w;
  for (int t = 0; t < a.taps; t++) {
    const uint8_t* x = a.x + a.tap_offset[t];
    for (int k = 0; k < a.quads; k += step, x += 4 * step, w += step * stride) {
      _tile_loadd(4, x, a.pixel_stride);
      _tile_loadd(5, w, stride);
      _tile_dpbusd(0, 4, 5);
      if (Panels > 1) {
        _tile_loadd(6, w + 64, stride);
        _tile_dpbusd(1, 4, 6);
      }
      if (Panels > 2) {
        _tile_loadd(7, w + 128, stride);
        _tile_dpbusd(2, 4, 7);
      }
      if (Panels > 3) {
        _tile_loadd(5, w + 192, stride);
        _tile_dpbusd(3, 4, 5);
      }
    }
  }
  _tile_stored(0, a.acc, stride);
  if (Panels > 1) _tile_stored(1, a.acc + kPanel, stride);
  if (Panels > 2) _tile_stored(2, a.acc + 2 * kPanel, stride);
  if (Panels > 3) _tile_stored(3, a.acc + 3 * kPanel, stride);
}

void product(const ProductArgs& a) {
  const int step = step_of(a.quads);
  if (step < kFewestQuads) {
    static const Kernels& vectors = *kernels_avx512vnni();
    ProductArgs block = a;
    for (int left = a.pixels; left > 0; left -= block.pixels) {
      block.pixels = left < vectors.pixels[a.panels] ? left : vectors.pixels[a.panels];
      vectors.product(block);
      block.x += block.pixels * a.pixel_stride, block.acc += block.pixels * a.panels * kPanel;
    }
    return;
  }
  shape(a.pixels, step);
  switch (a.panels) {
    case 1: return product_of<1>(a, step);
    case 2: return product_of<2>(a, step);
    case 3: return product_of<3>(a, step);
    default: return product_of<4>(a, step);
  }
}

}  // namespace

const Kernels* kernels_amx() {
  static const Kernels* const kernels = [] {
    static Kernels table;
    const Kernels* vectors = kernels_avx512vnni();
    if (!vectors) return static_cast<const Kernels*>(nullptr);
    table = *vectors;
    table.name = "amx", table.peak = peak, table.product = product, table.enter = enter, table.leave = leave;
    for (int p = 1; p <= kMaxPanels; p++) table.pixels[p] = kRows;
    return static_cast<const Kernels*>(&table);
  }();
  return kernels;
}

}  // namespace adabm

#else

namespace adabm {
const Kernels* kernels_amx() { return nullptr; }
}  // namespace adabm

#endif
