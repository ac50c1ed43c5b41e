// Rules of the header that every backend checks alike.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "adabm/adabm.h"

namespace adabm {

constexpr int kMaxKernel = 15;  // pixels a side

// Whether a region has pixels that are passed on.
inline bool passes_on(const adabm_region& region) { return region.depth && region.pass_least <= region.pass_most; }

struct NamedPointer {
  const void* pointer;
  const char* name;
};
// Elements of more than one byte must lie at multiples of their size: compilers count on it, and some processors fail elsewhere.
void check_aligned(std::initializer_list<NamedPointer> pointers, size_t bytes);

// Sizes, what must not be null, alignment, outputs, activation, shuffle, pitch and region; bit-widths and the packed weights are the backend's.
void check_rules(const adabm_conv2d_args& args);
// Also fills in y_channels and y_pitch where they are 0.
void check_rules(adabm_quantize_args& args);
void check_rules(const adabm_depths_args& args);
void check_rules(const adabm_weights& weights);

}  // namespace adabm
