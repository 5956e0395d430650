// How the elements of a call's tensors are stored.
#pragma once

#include "../common/fields.h"

namespace vssn {

VSSN_ENUM(Storage, float32, bfloat16, float16)

}  // namespace vssn
