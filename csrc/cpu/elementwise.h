// What the elementwise kernels share.
#pragma once

#include "math.h"
#include "threads.h"

namespace vssn::VSSN_ISA {

// Below this many elements to a thread, waking it costs more than it saves.
constexpr int64_t kGrain = 8192;

VSSN_INLINE int useful_threads(int threads, int64_t elements) {
    const int64_t useful = elements / kGrain + 1;
    return useful < threads ? static_cast<int>(useful) : threads;
}

}  // namespace vssn::VSSN_ISA
