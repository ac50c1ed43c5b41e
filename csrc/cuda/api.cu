// What the machine's driver shows. The driver is found at run time, so the library loads on machines without one.
#include <cuda_runtime.h>

#include <cstdio>

#include "common/status.h"

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // an error of a query must not stick to the caller's next launch
    throw adabm::Error(ADABM_UNSUPPORTED, "%s: %s", what, cudaGetErrorString(error));
  }
}

}  // namespace

extern "C" adabm_status adabm_device_count_cuda(int32_t* count) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(count, "count must not be null");
    int found = 0;
    check(cudaGetDeviceCount(&found), "no CUDA device can be used");
    *count = found;
  });
}

extern "C" adabm_status adabm_device_cuda(int32_t index, adabm_device* device) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(device && device->struct_bytes == sizeof(adabm_device), "device must be a struct of %zu bytes", sizeof(adabm_device));
    int count = 0;
    check(cudaGetDeviceCount(&count), "no CUDA device can be used");
    ADABM_REQUIRE(index >= 0 && index < count, "index must be 0..%d, got %d", count - 1, index);
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    device->compute_major = properties.major, device->compute_minor = properties.minor;
    device->multiprocessors = properties.multiProcessorCount;
    device->memory_bytes = properties.totalGlobalMem;
    std::snprintf(device->name, sizeof device->name, "%s", properties.name);
  });
}
