// What the fuzzer of the C interface draws from: the bytes of an input decide what happens, and noise that begins with some of them fills
// the tensors, so that an input is short and a change of one byte changes one thing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "adabm/adabm.h"

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "failed: %s (last error: %s)\n", what.c_str(), adabm_last_error());
  std::abort();
}

inline void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  // Zeros once the input has ended.
  unsigned take() { return size_ ? (size_--, *data_++) : 0; }
  int below(int n) { return static_cast<int>((n <= 256 ? take() : take() | take() << 8) % static_cast<unsigned>(n)); }
  int from(int low, int high) { return low + below(high - low + 1); }
  bool one_in(int n) { return below(n) == 0; }
  float real(float most) { return (static_cast<float>(take() | take() << 8) / 32767.5f - 1) * most; }
  int32_t word() {
    const unsigned low = take() | take() << 8;
    return static_cast<int32_t>(low | static_cast<unsigned>(take() | take() << 8) << 16);
  }

  // Begins noise anew, with bytes of the input.
  void stir() { noise_ = (static_cast<uint64_t>(static_cast<uint32_t>(word())) << 8 | 1) * 0x9E3779B97F4A7C15u; }
  uint32_t noise() {
    noise_ ^= noise_ << 13, noise_ ^= noise_ >> 7, noise_ ^= noise_ << 17;
    return static_cast<uint32_t>(noise_ >> 32);
  }

  // Bytes of low..high: anywhere between, the two ends alone, one of them, or mostly the lower one.
  template <class Byte>
  void fill(Byte* to, size_t count, int low, int high) {
    const int kind = below(6);
    const uint32_t range = static_cast<uint32_t>(high - low + 1);
    stir();
    for (size_t i = 0; i < count; i++) {
      const uint32_t drawn = noise();
      int value = low + static_cast<int>((drawn & 0xffff) * range >> 16);
      if (kind == 1) value = drawn & 0x10000 ? high : low;
      if (kind == 2) value = high;
      if (kind == 3 && drawn & 0x70000) value = low;
      to[i] = static_cast<Byte>(value);
    }
  }

  // Floats within -most..most; with `any` sometimes ones that are no numbers, infinite, huge or all but zero among them.
  void fill_floats(float* to, size_t count, float most, bool any = false) {
    static constexpr float kOdd[] = {std::numeric_limits<float>::quiet_NaN(),  std::numeric_limits<float>::infinity(),
                                     -std::numeric_limits<float>::infinity(),  std::numeric_limits<float>::max(),
                                     -std::numeric_limits<float>::max(),       std::numeric_limits<float>::denorm_min(), -0.0f, 0.5f};
    any = any && one_in(4);
    stir();
    for (size_t i = 0; i < count; i++) {
      const uint32_t drawn = noise();
      to[i] = (static_cast<float>(drawn >> 8) / (1 << 23) - 1) * most;
      if (any && (drawn & 3) == 0) to[i] = kOdd[drawn >> 2 & 7];
    }
  }

 private:
  const uint8_t* data_;
  size_t size_;
  uint64_t noise_ = 1;
};
