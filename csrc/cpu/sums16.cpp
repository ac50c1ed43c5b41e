// Bounds of sums of products in 16 bits (cpu/sums16.h).
#include "cpu/sums16.h"

#include <algorithm>
#include <vector>

namespace adabm {

void add_largest_sums(const int8_t* weights, ptrdiff_t quad_bytes, int count, int reach, Sums& sums) {
  static thread_local std::vector<int> above, below;
  above.resize(count), below.resize(count);
  for (int pair = 0; pair < 4; pair += 2) {
    const int8_t* w = weights + pair;
    for (int q = 0; q < count; q++, w += quad_bytes) {
      above[q] = std::max<int>(w[0], 0) + std::max<int>(w[1], 0);
      below[q] = above[q] - w[0] - w[1];
    }
    for (int n = 0, left = count; n < kDepths; n++) {
      int largest = 0;
      for (int q = 0; q < left; q++) largest = std::max({largest, above[q], below[q]});
      sums[n] = std::max(sums[n], static_cast<int64_t>(largest) * reach);
      if (left == 1) continue;
      for (int q = 0; q < left / 2; q++) above[q] = above[2 * q] + above[2 * q + 1], below[q] = below[2 * q] + below[2 * q + 1];
      if (left % 2) above[left / 2] = above[left - 1], below[left / 2] = below[left - 1];
      left = (left + 1) / 2;
    }
  }
}

uint16_t sum_depth(const Sums& sums, int bits) {
  int fits = 0;
  while (fits < kDepths && sums[fits] * ((1 << bits) - 1) <= INT16_MAX) fits++;
  return static_cast<uint16_t>(fits ? 1 << (fits - 1) : 0);
}

}  // namespace adabm
