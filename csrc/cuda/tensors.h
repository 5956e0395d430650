// Tensors as the caller gives them: an address in device memory, null where there is none, and strides in elements; the
// last dimension is contiguous.
#pragma once

#include <cstdint>

#include "../common/fields.h"

namespace vssn {

struct TensorRows {  // [rows, width]
    const void* data = nullptr;
    int64_t stride = 0;
    VSSN_TENSOR(data, stride)
};

struct TensorSteps {  // [T, B, width]
    const void* data = nullptr;
    int64_t step_stride = 0, row_stride = 0;
    VSSN_TENSOR(data, step_stride, row_stride)
};

}  // namespace vssn
