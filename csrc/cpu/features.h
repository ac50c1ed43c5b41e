// Addresses and sizes of features in memory, which are float32 or int16.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "adabm/adabm.h"
#include "cpu/isa/kernels.h"

namespace adabm {

// format: one of ADABM_FEATURES_*. fraction: as in adabm_conv2d_args.
inline FeatureFormat feature_format(int format, int fraction) {
  return {format == ADABM_FEATURES_INT16, std::ldexp(1.0f, fraction), std::ldexp(1.0f, -fraction)};
}

inline ptrdiff_t feature_bytes(const FeatureFormat& format) { return format.int16 ? sizeof(int16_t) : sizeof(float); }

// The address of an element of features, counted from the first; null where `features` is null.
inline const void* feature_at(const FeatureFormat& format, const void* features, ptrdiff_t element) {
  return features ? static_cast<const uint8_t*>(features) + element * feature_bytes(format) : nullptr;
}
inline void* feature_at(const FeatureFormat& format, void* features, ptrdiff_t element) {
  return features ? static_cast<uint8_t*>(features) + element * feature_bytes(format) : nullptr;
}

}  // namespace adabm
