// Which of a kernel's instantiations a call's storage asks for: host code.
#pragma once

#include "primitives.cuh"
#include "storage.h"

namespace vssn::gpu {

template <class C>
struct Compute {
    using type = C;
};

// What `choose` gives for Compute<C>, where C is the type that products of this storage are computed in.
template <class Choose>
auto by_compute_type(Storage storage, bool tf32_products, const Choose& choose) {
    if (storage == Storage::bfloat16) return choose(Compute<bfloat16>{});
    if (storage == Storage::float16) return choose(Compute<float16>{});
    if (tf32_products) return choose(Compute<tf32>{});
    return choose(Compute<float>{});
}

}  // namespace vssn::gpu
