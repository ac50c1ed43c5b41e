// AMX's tile registers and the instructions that isa/amx.cpp uses, in plain C++, for processors without them: as Intel's manual
// (Software Developer's Manual, volume 2) defines them, with a check of every shape.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_in_c {

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct Unit {
  Config config;
  uint8_t tile[8][16][64];
};

inline Unit& unit() {
  static thread_local Unit one = {};
  return one;
}

inline void require(bool rule, const char* what) {
  if (!rule) std::printf("amx: %s\n", what), std::abort();
}

inline void load_config(const void* config) {
  Unit& u = unit();
  std::memcpy(&u.config, config, sizeof u.config);
  require(sizeof u.config == 64 && u.config.palette == 1 && u.config.start_row == 0, "palette 1 from its first row on");
  for (int i = 0; i < 16; i++) {
    require(u.config.rows[i] <= (i < 8 ? 16 : 0) && u.config.row_bytes[i] <= (i < 8 ? 64 : 0), "at most 8 registers of 16 rows of 64 bytes");
    require(!u.config.rows[i] == !u.config.row_bytes[i], "rows and their bytes are both there, or neither");
  }
  std::memset(u.tile, 0, sizeof u.tile);
}

inline void load(int tile, const void* from, int64_t stride) {
  Unit& u = unit();
  require(u.config.rows[tile], "the register has a shape");
  std::memset(u.tile[tile], 0, sizeof u.tile[tile]);
  for (int row = 0; row < u.config.rows[tile]; row++)
    std::memcpy(u.tile[tile][row], static_cast<const uint8_t*>(from) + row * stride, u.config.row_bytes[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
  const Unit& u = unit();
  require(u.config.rows[tile], "the register has a shape");
  for (int row = 0; row < u.config.rows[tile]; row++)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, u.tile[tile][row], u.config.row_bytes[tile]);
}

inline void zero(int tile) { std::memset(unit().tile[tile], 0, sizeof unit().tile[tile]); }

inline void multiply(int sums, int codes, int weights) {
  Unit& u = unit();
  const Config& c = u.config;
  require(c.rows[sums] == c.rows[codes] && c.row_bytes[sums] == c.row_bytes[weights] && c.row_bytes[codes] == 4 * c.rows[weights],
          "the shapes of a product fit");
  for (int m = 0; m < c.rows[sums]; m++)
    for (int n = 0; n < c.row_bytes[sums] / 4; n++) {
      uint32_t sum;
      std::memcpy(&sum, u.tile[sums][m] + 4 * n, 4);
      for (int k = 0; k < c.row_bytes[codes]; k++)
        sum += static_cast<uint32_t>(u.tile[codes][m][k] * static_cast<int8_t>(u.tile[weights][k / 4][4 * n + k % 4]));
      std::memcpy(u.tile[sums][m] + 4 * n, &sum, 4);
    }
}

}  // namespace amx_in_c

#define _tile_loadd(tile, from, stride) amx_in_c::load(tile, from, stride)
#define _tile_stored(tile, to, stride) amx_in_c::store(tile, to, stride)
#define _tile_zero(tile) amx_in_c::zero(tile)
#define _tile_dpbusd(sums, codes, weights) amx_in_c::multiply(sums, codes, weights)
#define _tile_release() (amx_in_c::unit() = {})
