// interleaved_forward, interleaved_backward and how their calls are laid out, for Python.
#include "../common/arguments.h"
#include "interleaved.h"

namespace py = pybind11;

namespace vssn {

namespace {

struct SizesOfCall {
    InterleavedSizes sizes;
    bool backward;
    VSSN_FIELDS(sizes, backward)
};

// As the tests and tables want it.
py::dict describe(const SizesOfCall& k) {
    using namespace py::literals;
    const InterleavedPlan plan = interleaved_plan(k.sizes, k.backward);
    return py::dict("variant"_a = name_of(plan.variant), "cluster"_a = plan.cluster, "warps"_a = plan.warps,
                    "tiles"_a = plan.tiles, "kept"_a = plan.kept, "shared_bytes"_a = plan.shared_bytes,
                    "workspace_bytes"_a = plan.workspace_bytes, "at_once"_a = plan.at_once,
                    "step_cycles"_a = plan.step_cycles);
}

}  // namespace

void bind_interleaved(py::module_& module) {
    define<SizesOfCall>(module, "interleaved_plan", describe);
    define<SizesOfCall>(module, "interleaved_workspace",
                        [](const SizesOfCall& k) { return interleaved_plan(k.sizes, k.backward).workspace_bytes; });
    define<InterleavedForward>(module, "interleaved_forward", interleaved_forward);
    define<InterleavedBackward>(module, "interleaved_backward", interleaved_backward);
}

}  // namespace vssn
