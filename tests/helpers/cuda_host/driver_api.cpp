// The functions of CUDA's driver that benchmarks/gpu/card_memory.py calls, on memory of the host: what a pretended card has to say of itself
// comes from driver.cpp, and a context is any pointer.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_runtime.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
constexpr int kInvalidValue = 1, kNoDevice = 100, kClockRate = 13, kAlignment = 256;
}

EXPORT int cuInit(unsigned flags) { return flags ? kInvalidValue : 0; }
EXPORT int cuDeviceGet(int* device, int index) {
  int count = 0;
  cudaGetDeviceCount(&count);
  *device = index;
  return index < count ? 0 : kNoDevice;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
  static int held;
  *context = &held;
  return 0;
}
EXPORT int cuCtxSetCurrent(void* context) { return context ? 0 : kInvalidValue; }
EXPORT int cuCtxSynchronize() { return 0; }
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (attribute == kClockRate) return *value = 1'000'000, 0;
  return cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device);
}
EXPORT int cuDeviceGetName(char* name, int length, int) {
  std::snprintf(name, static_cast<size_t>(length), "host runtime");
  return 0;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t{1} << 30, 0; }
EXPORT int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
EXPORT int cuGetErrorString(int error, const char** text) {
  *text = error == kNoDevice ? "no CUDA-capable device is detected" : "invalid argument";
  return 0;
}
EXPORT int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
  *pointer = reinterpret_cast<uint64_t>(std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
  return *pointer && bytes ? 0 : kInvalidValue;
}
EXPORT int cuMemFree_v2(uint64_t pointer) { return std::free(reinterpret_cast<void*>(pointer)), 0; }
EXPORT int cuMemsetD8_v2(uint64_t pointer, unsigned char value, size_t bytes) {
  std::memset(reinterpret_cast<void*>(pointer), value, bytes);
  return 0;
}
EXPORT int cuMemcpyHtoD_v2(uint64_t pointer, const void* from, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(pointer), from, bytes);
  return 0;
}
EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t pointer, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void*>(pointer), bytes);
  return 0;
}
