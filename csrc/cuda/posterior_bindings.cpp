// posterior_forward, posterior_backward and how their calls are laid out, for Python.
#include "../common/arguments.h"
#include "posterior.h"

namespace py = pybind11;

namespace vssn {

namespace {

struct PosteriorSizes {
    Storage storage;
    bool tf32;
    int64_t B, M, Z;
    bool prior, backward;
    PosteriorVariant variant;
    VSSN_FIELDS(storage, tf32, B, M, Z, prior, backward, variant)
};

PosteriorPlan plan_of(const PosteriorSizes& k) {
    return posterior_plan(k.storage, k.tf32, k.B, k.M, k.Z, k.prior, k.backward, k.variant);
}

// As the tests and tables want it.
py::dict describe(const PosteriorSizes& k) {
    using namespace py::literals;
    const PosteriorPlan plan = plan_of(k);
    return py::dict("variant"_a = name_of(plan.variant), "cluster"_a = plan.cluster, "warps"_a = plan.warps,
                    "tiles"_a = plan.tiles, "kept"_a = plan.kept, "shared_bytes"_a = plan.shared_bytes,
                    "workspace_bytes"_a = plan.workspace_bytes, "at_once"_a = plan.at_once,
                    "step_cycles"_a = plan.step_cycles);
}

}  // namespace

void bind_posterior(py::module_& module) {
    define<PosteriorSizes>(module, "posterior_plan", describe);
    define<PosteriorSizes>(module, "posterior_workspace",
                           [](const PosteriorSizes& k) { return plan_of(k).workspace_bytes; });
    define<PosteriorForward>(module, "posterior_forward", posterior_forward);
    define<PosteriorBackward>(module, "posterior_backward", posterior_backward);
}

}  // namespace vssn
