// The functions that the kernels of compute capability 9.0 offer to the C entries. They are compiled for sm_90a alone, in files of their own.
#pragma once

#include <cstdint>

namespace adabm {
namespace cuda {

struct Conv2dParams;

namespace sm90 {

int multiprocessors(int device);

// Returns why conv2d cannot compute this; null where it can. Throws for a configuration that its kernel does not have.
const char* why_not_conv2d(const Conv2dParams& p, int device);
void conv2d(const Conv2dParams& p, int device, void* stream);

// Does the same for two convolutions as one residual block.
const char* why_not_resblock(const Conv2dParams& first, const Conv2dParams& second);
void resblock(const Conv2dParams& first, const Conv2dParams& second, int device, void* stream);

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
