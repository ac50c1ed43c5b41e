// Makes the map of a tensor for the copy engine, by the driver's function for it, which is found at run time (cuda/tensor_map.h).
#include "cuda/tensor_map.h"

#include <cstring>

#include "common/status.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace adabm {
namespace cuda {

#if defined(__CUDACC__)

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// Gets the function from the driver. The library is not linked with the driver, so that it loads where there is none.
Encode encode() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result), "cuTensorMapEncodeTiled");
#else
    check_cuda(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &result), "cuTensorMapEncodeTiled");
#endif
    if (!entry || result != cudaDriverEntryPointSuccess) throw Error(ADABM_UNSUPPORTED, "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
    return reinterpret_cast<Encode>(entry);
  }();
  return found;
}

}  // namespace

ptx::TensorMap map_of_codes(const uint8_t* x_q, int batch, int height, int width, int channels, int rows, int columns) {
  const cuuint64_t pixel = channels, row = pixel * width;
  const cuuint64_t sizes[] = {pixel, static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(height), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {pixel, row, row * height};
  const cuuint32_t box[] = {kRowBytes, static_cast<cuuint32_t>(columns), static_cast<cuuint32_t>(rows), 1}, steps[] = {1, 1, 1, 1};
  static_assert(sizeof(ptx::TensorMap) == sizeof(CUtensorMap) && alignof(ptx::TensorMap) >= 64, "");
  ptx::TensorMap map;
  const CUresult result =
      encode()(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, const_cast<uint8_t*>(x_q), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw Error(ADABM_INTERNAL, "cuTensorMapEncodeTiled: error %d", static_cast<int>(result));
  return map;
}

#else

ptx::TensorMap map_of_codes(const uint8_t* x_q, int batch, int height, int width, int channels, int rows, int columns) {
  const int64_t pixel = channels, row = pixel * width;
  ptx::TensorMap map = {x_q, {channels, width, height, batch}, {pixel, row, row * height}, {kRowBytes, columns, rows, 1}};
  if (const char* wrong = cuda_host::why_not_encoded(map)) throw Error(ADABM_INTERNAL, "cuTensorMapEncodeTiled: %s", wrong);
  return map;
}

#endif

}  // namespace cuda
}  // namespace adabm
