// gaussian_forward and gaussian_backward for Python.
#include "../common/arguments.h"
#include "gaussian.h"

namespace vssn {

void bind_gaussian(pybind11::module_& module) {
    define<GaussianForward>(module, "gaussian_forward", gaussian_forward);
    define<GaussianBackward>(module, "gaussian_backward", gaussian_backward);
}

}  // namespace vssn
