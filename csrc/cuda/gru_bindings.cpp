// gru_forward, gru_backward and what their calls need, for Python; see arguments.h.
#include "arguments.h"
#include "gru.h"

namespace py = pybind11;

namespace vssn {

namespace {

GruWish wish(Arguments& in) {
    GruWish wish;
    wish.exchange = in.integer();
    wish.blocks = in.integer();
    wish.row_tiles = in.integer();
    return wish;
}

void read_problem(Arguments& in, GruProblem& k) {
    k.storage = in.storage();
    k.state_storage = in.storage();
    k.tf32 = in.flag();
    k.wish = wish(in);
    k.steps = in.size();
    k.B = in.size();
    k.H = in.size();
    k.reverse = in.flag();
    k.lengths = in.pointer<const int64_t>();
    k.h0 = in.pointer<const void>();
    k.h0_row = in.size();
    k.weight = in.pointer<const void>();
    k.weight_row = in.size();
    k.counters = in.pointer();
    k.workspace = in.pointer();
    k.stream = in.pointer();
}

void forward(const py::args& values) {
    Arguments in(values);
    GruForward k;
    read_problem(in, k);
    k.gates_x = in.pointer<const void>();
    k.gates_x_step = in.size();
    k.gates_x_row = in.size();
    k.bias = in.pointer<const void>();
    k.output = in.pointer();
    k.h_n = in.pointer();
    k.gates = in.pointer();
    in.done();
    gru_forward(k);
}

void backward(const py::args& values) {
    Arguments in(values);
    GruBackward k;
    read_problem(in, k);
    k.grad_output = in.pointer<const void>();
    k.grad_output_step = in.size();
    k.grad_output_row = in.size();
    k.grad_h_n = in.pointer<const void>();
    k.grad_h_n_row = in.size();
    k.output = in.pointer<const void>();
    k.gates = in.pointer<const void>();
    k.grad_gates_x = in.pointer();
    k.grad_a = in.pointer();
    k.grad_h0 = in.pointer();
    in.done();
    gru_backward(k);
}

GruPlan plan(const py::args& values) {
    Arguments in(values);
    const Storage storage = in.storage();
    const bool tf32 = in.flag(), of_backward = in.flag();
    const int64_t B = in.size(), H = in.size();
    const GruWish wanted = wish(in);
    in.done();
    return gru_plan(storage, tf32, of_backward, B, H, wanted);
}

}  // namespace

void bind_gru(py::module_& module) {
    module.def("gru_forward", forward);
    module.def("gru_backward", backward);
    // Bytes of the zeroed counters and of the workspace.
    module.def("gru_workspace", [](const py::args& values) {
        const GruPlan p = plan(values);
        return py::make_tuple(p.counter_bytes, p.workspace_bytes);
    });
    module.def("gru_plan", [](const py::args& values) { return describe(plan(values)); });
}

}  // namespace vssn
