// Checks of the rules of adabm.h that every backend shares. Each throws Error with ADABM_INVALID_ARGUMENT where a rule is broken.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "adabm/adabm.h"

namespace adabm {

constexpr int kMaxKernel = 15;  // largest side of a kernel, in pixels

// Returns whether a region has pixels that are passed on.
inline bool passes_on(const adabm_region& region) { return region.depth && region.pass_least <= region.pass_most; }

struct NamedPointer {
  const void* pointer;
  const char* name;
};
// Checks that pointers are multiples of the size of their elements: compilers count on it, and some processors fail otherwise.
void check_aligned(std::initializer_list<NamedPointer> pointers, size_t bytes);

// Checks sizes, null pointers, alignment, outputs, activation, shuffle, pitch and region. Bit-widths and packed weights are checked by each
// backend.
void check_rules(const adabm_conv2d_args& args);
// Also fills in y_channels and y_pitch where they are 0.
void check_rules(adabm_quantize_args& args);
void check_rules(const adabm_depths_args& args);
void check_rules(const adabm_weights& weights);
// Throws ADABM_UNSUPPORTED where a geometry is not plain: the CUDA library has no kernels for it.
void require_plain(const adabm_geometry& geometry);

}  // namespace adabm
