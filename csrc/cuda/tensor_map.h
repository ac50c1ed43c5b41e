// Describes code tensors to the copy engine (compute capability 9.0).
#pragma once

#include "cuda/ptx_sm90.cuh"

namespace adabm {
namespace cuda {

// Boxes of `rows` by `columns` pixels of x_q, uint8 [batch, height, width, channels], 16 channels of each: channels must be a
// multiple of 16 and x_q lie at one. Throws where the driver does not know how.
ptx::TensorMap map_of_codes(const uint8_t* x_q, int batch, int height, int width, int channels, int rows, int columns);

}  // namespace cuda
}  // namespace adabm
