// gru_forward, gru_backward and what their calls need, for Python.
#include "../common/arguments.h"
#include "gru.h"

namespace py = pybind11;

namespace vssn {

namespace {

struct GruSizes {
    Storage storage;
    bool tf32, backward;
    int64_t B, H;
    GruWish wish;
    VSSN_FIELDS(storage, tf32, backward, B, H, wish)
};

GruPlan plan(const GruSizes& k) { return gru_plan(k.storage, k.tf32, k.backward, k.B, k.H, k.wish); }

}  // namespace

void bind_gru(py::module_& module) {
    define<GruForward>(module, "gru_forward", gru_forward);
    define<GruBackward>(module, "gru_backward", gru_backward);
    // Bytes of the zeroed counters, of the workspace, and of its start that is to be blank: all ones.
    define<GruSizes>(module, "gru_workspace", [](const GruSizes& k) {
        const GruPlan p = plan(k);
        return py::make_tuple(p.counter_bytes, p.workspace_bytes, p.blank_bytes);
    });
    define<GruSizes>(module, "gru_plan", [](const GruSizes& k) { return describe(plan(k)); });
}

}  // namespace vssn
