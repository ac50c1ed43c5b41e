// What a call on AMX leaves behind where it fails: no matrix registers in use. Prints "released", or what is wrong.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "adabm/adabm.h"

namespace {

long allowed = -1;  // allocations that still succeed; -1: all

bool in_use() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));  // the states of the processor that are not at rest
  return low >> 18 & 1;
}

}  // namespace

void* operator new(std::size_t size) {
  if (allowed == 0) throw std::bad_alloc();
  if (allowed > 0) allowed--;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
  // A kernel for each border class: the outer rows are products of the matrix unit, the inner ones need memory for a tile after them.
  constexpr int kOutputs = 16, kChannels = 16, kHeight = 12, kWidth = 40;
  std::vector<int8_t> weight(9 * kOutputs * 9 * kChannels, 1);
  adabm_weights w = {};
  w.struct_bytes = sizeof w, w.out_channels = kOutputs, w.channels = kChannels, w.kernel_h = w.kernel_w = 3, w.border_kernels = 1;
  w.weight = weight.data();
  for (int32_t& tile : w.tile_for_bits) tile = ADABM_TILE_DIRECT;
  w.tile_for_bits[2] = ADABM_TILE_F2X2;
  uint64_t bytes = 0;
  if (adabm_pack_bytes_cpu(&w, &bytes)) return std::puts(adabm_last_error()), 1;
  void* packed = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (adabm_pack_cpu(&w, packed)) return std::puts(adabm_last_error()), 1;
  std::vector<uint8_t> x(kHeight * kWidth * kChannels, 1);
  std::vector<float> alpha(7 * kOutputs, 1.0f), beta(9 * kOutputs, 0.0f);
  std::vector<int32_t> sums(kHeight * kWidth * kOutputs);
  const int32_t bits = 4;
  adabm_conv2d_args a = {};
  a.struct_bytes = sizeof a, a.isa = ADABM_ISA_AMX, a.threads = a.batch = a.shuffle = 1, a.height = kHeight, a.width = kWidth;
  a.out_channels = kOutputs, a.channels = kChannels, a.kernel_h = a.kernel_w = 3;
  a.x_q = x.data(), a.x_bits = &bits, a.packed = packed, a.packed_bytes = bytes;
  a.alpha = alpha.data(), a.beta = beta.data(), a.y_acc = sums.data();
  int failures = 0;
  for (long first = 0;; first++) {
    allowed = first;
    const adabm_status status = adabm_conv2d_cpu(&a);
    allowed = -1;
    if (in_use()) return std::printf("in use after status %d with %ld allocations\n", status, first), 1;
    if (status == ADABM_OK) break;
    if (std::strcmp(adabm_last_error(), "out of memory")) return std::puts(adabm_last_error()), 1;
    failures++;
  }
  if (failures < 3) return std::printf("only %d failures\n", failures), 1;
  for (int32_t sum : sums)
    if (sum < 4 * kChannels || sum > 9 * kChannels) return std::printf("sum %d\n", sum), 1;
  std::free(packed);
  std::puts("released");
  return 0;
}
