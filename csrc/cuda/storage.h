// How the elements of a call's tensors are stored, as vssn_kernels/backend/cuda/launch.py numbers them.
#pragma once

namespace vssn {

enum class Storage : int { float32 = 0, bfloat16 = 1, float16 = 2 };

}  // namespace vssn
