// Chooses among the instruction sets that were built and that the processor has.
#pragma once

#include "cpu/isa/kernels.h"

namespace adabm {

// Throws ADABM_UNSUPPORTED with the reason where an explicit choice cannot run; ADABM_ISA_AUTO takes the fastest.
const Kernels& choose_kernels(int isa);

}  // namespace adabm
