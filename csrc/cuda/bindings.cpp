// vssn_kernels._cuda: the CUDA kernels for Python; use them through vssn_kernels.backend.cuda. Compiled by the C++
// compiler: device code is in the .cu files, behind the launchers that gru.h, posterior.h, interleaved.h and gaussian.h
// declare.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace vssn {

void bind_gru(py::module_& module);
void bind_posterior(py::module_& module);
void bind_interleaved(py::module_& module);
void bind_gaussian(py::module_& module);

namespace {

void require(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

// 10 * major + minor of every device that this module's CUDA runtime sees; creates no context.
std::vector<int> capabilities() {
    int count = 0;
    require(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    std::vector<int> found;
    for (int device = 0; device < count; ++device) {
        int major = 0, minor = 0;
        require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
        require(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
        found.push_back(10 * major + minor);
    }
    return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "The CUDA kernels of vssn_kernels; use them through vssn_kernels.backend.cuda.";
    bind_gru(module);
    bind_posterior(module);
    bind_interleaved(module);
    bind_gaussian(module);
    module.def("capabilities", capabilities);
    module.def("set_device", [](int device) { require(cudaSetDevice(device), "cudaSetDevice"); });
    module.attr("runtime") = CUDART_VERSION;
    module.attr("architectures") = VSSN_CUDA_ARCHITECTURES;  // joined by "+"
}

}  // namespace vssn
