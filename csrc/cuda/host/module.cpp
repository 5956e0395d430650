// vssn_kernels._cuda as the tests build it: the bindings of the real one on the host implementation of the primitives,
// and what sets and tests that implementation.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../primitives.cuh"
#include "planted.h"

namespace py = pybind11;

namespace vssn {

// Weak: a build of some ops alone (make OPS=gru) has no others.
__attribute__((weak)) void bind_gru(py::module_& module);
__attribute__((weak)) void bind_posterior(py::module_& module);
__attribute__((weak)) void bind_interleaved(py::module_& module);
__attribute__((weak)) void bind_gaussian(py::module_& module);

namespace {

template <class T>
T* pointer(intptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    for (auto* bind : {bind_gru, bind_posterior, bind_interleaved, bind_gaussian})
        if (bind) bind(module);
    module.def("set_order", gpu::host::set_order);
    module.def("set_device_limits", [](int compute_capability, int multiprocessors, int shared_bytes, int max_cluster) {
        gpu::host::limits = {compute_capability, multiprocessors, shared_bytes, max_cluster};
        gpu::host::clusters.clear();
    });
    // How many clusters of a size run at once, where the multiprocessors alone do not say it.
    module.def("set_clusters_at_once", [](int size, int count) { gpu::host::clusters[size] = count; });
    // From now on each launch keeps a trace of its first block: (what, number of the counter or None), in order.
    module.def("start_trace", [] {
        gpu::host::tracing = true;
        gpu::host::trace.clear();
    });
    module.def("end_trace", [] {
        gpu::host::tracing = false;
        py::list events;
        const unsigned* first = nullptr;
        for (const auto& event : gpu::host::trace)
            if (event.counter && (!first || event.counter < first)) first = event.counter;
        for (const auto& event : gpu::host::trace)
            events.append(py::make_tuple(event.what, event.counter ? py::cast(event.counter - first) : py::none()));
        return events;
    });
    module.def("exchange", [](intptr_t out, int threads, bool barrier) {
        return gpu::host::exchange(pointer<float>(out), threads, barrier);
    });
    module.def("hand_round", [](intptr_t out, bool cluster, int steps) {
        unsigned flag = 0;
        return gpu::host::hand_round(pointer<float>(out), &flag, cluster, steps);
    });
    module.def("plant", [](const std::string& name, intptr_t data, int64_t count) {
        return gpu::host::plant(name, pointer<float>(data), count);
    });
    module.def("product", [](const std::string& kind, intptr_t a, int64_t row_stride, int64_t k_stride, int rows,
                             int depth, intptr_t b, intptr_t c) {
        return gpu::host::product(kind, pointer<void>(a), row_stride, k_stride, rows, depth, pointer<void>(b),
                                  pointer<float>(c));
    });
    // Rounds `count` floats: to = "bfloat16", "float16", "tf32"; and widens bfloat16 and float16.
    module.def("round", [](const std::string& to, intptr_t from, intptr_t out, int64_t count) {
        const float* x = pointer<const float>(from);
        for (int64_t i = 0; i < count; ++i)
            if (to == "bfloat16")
                pointer<gpu::bfloat16>(out)[i] = gpu::host::round_to_bfloat16(x[i]);
            else if (to == "float16")
                pointer<gpu::float16>(out)[i] = gpu::host::round_to_float16(x[i]);
            else if (to == "tf32")
                pointer<float>(out)[i] = gpu::host::round_to_tf32(x[i]);
            else
                throw std::invalid_argument("round: to must be bfloat16, float16 or tf32");
    });
    module.def("widen", [](const std::string& type, intptr_t from, intptr_t out, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            pointer<float>(out)[i] = type == "bfloat16" ? gpu::host::widen(pointer<const gpu::bfloat16>(from)[i])
                                                        : gpu::host::widen(pointer<const gpu::float16>(from)[i]);
    });
    module.def("math", [](const std::string& function, float x) {
        if (function == "sigmoid") return gpu::Math::sigmoid(x);
        if (function == "tanh") return gpu::Math::tanh(x);
        if (function == "softplus") return gpu::Math::softplus(x);
        throw std::invalid_argument("math: sigmoid, tanh or softplus");
    });
}

}  // namespace vssn
