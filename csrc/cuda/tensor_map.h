// Describes code tensors to the copy engine (compute capability 9.0).
#pragma once

#include "cuda/ptx_sm90.cuh"

namespace adabm {
namespace cuda {

// Returns the map for boxes of `rows` by `columns` pixels and 16 channels of x_q, uint8 [batch, height, width, channels]. `channels` and the
// address of x_q must be multiples of 16. Throws where the driver cannot make it.
ptx::TensorMap map_of_codes(const uint8_t* x_q, int batch, int height, int width, int channels, int rows, int columns);

}  // namespace cuda
}  // namespace adabm
