// Finds the devices that the driver shows. The driver is found at run time, so the library loads on machines without one.
#include <cuda_runtime.h>

#include <cstdio>

#include "common/status.h"
#include "cuda/conv2d_configs.cuh"
#include "cuda/launch.cuh"

namespace adabm {
namespace {

__global__ void probe(int) {}

}  // namespace

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which would else be reported at the next launch of the caller
  const bool here =
      error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  throw Error(here ? ADABM_UNSUPPORTED : ADABM_INTERNAL, "%s: %s", what, cudaGetErrorString(error));
}

DeviceScope::DeviceScope(int device) : device_(device) {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "no CUDA device can be used");
  ADABM_REQUIRE(device >= 0 && device < count, "device must be 0..%d, got %d", count - 1, device);
  check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != device) check_cuda(cudaSetDevice(device), "cudaSetDevice");
  const cudaError_t error = cudaDeviceGetAttribute(&compute_major_, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess && before_ != device) cudaSetDevice(before_);  // the destructor does not run if the constructor throws
  check_cuda(error, "cudaDeviceGetAttribute");
}

DeviceScope::~DeviceScope() {
  if (before_ != device_) cudaSetDevice(before_);
}

void DeviceScope::check_pointer(const void* pointer, const char* name) const {
  if (!pointer) return;
  cudaPointerAttributes attributes;
  check_cuda(cudaPointerGetAttributes(&attributes, pointer), "cudaPointerGetAttributes");
  ADABM_REQUIRE(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged,
                "%s must be device memory of device %d, got memory of the host", name, device_);
  ADABM_REQUIRE(attributes.type == cudaMemoryTypeManaged || attributes.device == device_, "%s must be memory of device %d, got memory of device %d", name,
                device_, attributes.device);
}

}  // namespace adabm

extern "C" adabm_status adabm_device_count_cuda(int32_t* count) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(count, "count must not be null");
    int found = 0;
    adabm::check_cuda(cudaGetDeviceCount(&found), "no CUDA device can be used");
    *count = found;
  });
}

extern "C" adabm_status adabm_device_cuda(int32_t index, adabm_device* device) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(device && device->struct_bytes == sizeof(adabm_device), "device must be a struct of %zu bytes", sizeof(adabm_device));
    int count = 0;
    adabm::check_cuda(cudaGetDeviceCount(&count), "no CUDA device can be used");
    ADABM_REQUIRE(index >= 0 && index < count, "index must be 0..%d, got %d", count - 1, index);
    cudaDeviceProp properties;
    adabm::check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    device->compute_major = properties.major, device->compute_minor = properties.minor;
    device->multiprocessors = properties.multiProcessorCount;
    device->memory_bytes = properties.totalGlobalMem;
    std::snprintf(device->name, sizeof device->name, "%s", properties.name);
  });
}

extern "C" adabm_status adabm_usable_cuda(int32_t device) {
  return adabm::guarded([&] {
    adabm::DeviceScope scope(device);
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(adabm::probe));
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
      int minor = 0;
      cudaGetLastError();
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      throw adabm::Error(ADABM_UNSUPPORTED, "the library holds no kernels for device %d of compute capability %d.%d: they are built for 8.0 and newer", device,
                         scope.compute_major(), minor);
    }
    adabm::check_cuda(error, "cudaFuncGetAttributes");
  });
}

extern "C" adabm_status adabm_config_cuda(int32_t kernel, int32_t index, adabm_config* config) {
  return adabm::guarded([&] {
    using namespace adabm::cuda::sm90;
    ADABM_REQUIRE(config && config->struct_bytes == sizeof(adabm_config), "config must be a struct of %zu bytes", sizeof(adabm_config));
    ADABM_REQUIRE(kernel >= 0 && kernel < ADABM_KERNEL_COUNT, "kernel must be 0..%d, got %d", ADABM_KERNEL_COUNT - 1, kernel);
    const Configs all = configs(kernel);
    ADABM_REQUIRE(index >= 0 && index < all.count, "index must be 0..%d for kernel %d, got %d", all.count - 1, kernel, index);
    const TileConfig& row = all.rows[index];
    config->count = all.count, config->tile_height = kStripRows, config->tile_width = row.strips * kStripColumns;
    config->stages = row.stages, config->middles = row.middles, config->tensor_copies = row.tensor_copies;
  });
}
