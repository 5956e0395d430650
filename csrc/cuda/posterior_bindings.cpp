// posterior_forward, posterior_backward and posterior_plan for Python; see arguments.h.
#include "arguments.h"
#include "posterior.h"

namespace py = pybind11;

namespace vssn {

namespace {

PosteriorRows rows(Arguments& in) {
    const void* data = in.pointer<const void>();
    return {data, in.size()};
}

PosteriorSteps steps(Arguments& in) {
    const void* data = in.pointer<const void>();
    const int64_t step_stride = in.size();
    return {data, step_stride, in.size()};
}

PosteriorVariant variant(Arguments& in) {
    const int value = in.integer();
    if (value < 0 || value > static_cast<int>(PosteriorVariant::streamed))
        throw std::logic_error("vssn_kernels._cuda: unknown variant " + std::to_string(value));
    return static_cast<PosteriorVariant>(value);
}

void problem(Arguments& in, PosteriorProblem& call) {
    call.storage = in.storage();
    call.tf32 = in.flag();
    call.float_state = in.flag();
    call.variant = variant(in);
    call.steps = in.size();
    call.B = in.size();
    call.M = in.size();
    call.Z = in.size();
    call.activation = static_cast<Activation>(in.integer());
    call.min_logvar = in.real();
    call.lengths = in.pointer<const int64_t>();
    call.eps = steps(in);
    call.weight_z = rows(in);
    call.weight_out = rows(in);
    call.prior_weight_z = rows(in);
    call.prior_weight_mu = rows(in);
    call.workspace = in.pointer();
    call.stream = in.pointer();
}

void forward(const py::args& values) {
    Arguments in(values);
    PosteriorForward call;
    problem(in, call);
    call.context = steps(in);
    call.prior_context = steps(in);
    call.z0 = rows(in);
    call.bias_out = in.pointer<const void>();
    call.prior_bias_mu = in.pointer<const void>();
    call.z = in.pointer();
    call.mu = in.pointer();
    call.logvar = in.pointer();
    call.hidden = in.pointer();
    call.prior_hidden = in.pointer();
    in.done();
    posterior_forward(call);
}

void backward(const py::args& values) {
    Arguments in(values);
    PosteriorBackward call;
    problem(in, call);
    call.grad_z = steps(in);
    call.grad_mu = steps(in);
    call.grad_logvar = steps(in);
    call.logvar = in.pointer<const void>();
    call.hidden = in.pointer<const void>();
    call.prior_hidden = in.pointer<const void>();
    call.grad_context = in.pointer();
    call.grad_prior_context = in.pointer();
    call.grad_out = in.pointer();
    call.grad_eps = in.pointer();
    call.grad_z0 = in.pointer();
    in.done();
    posterior_backward(call);
}

// (variant, blocks of a cluster, warps, weight tiles of a block, of these in shared memory, bytes of shared memory,
// bytes of workspace, batch tiles at once, estimated cycles of a step)
py::tuple plan(const py::args& values) {
    Arguments in(values);
    const Storage storage = in.storage();
    const bool tf32 = in.flag();
    const int64_t B = in.size(), M = in.size(), Z = in.size();
    const bool prior = in.flag(), backward = in.flag();
    const PosteriorVariant wanted = variant(in);
    in.done();
    const PosteriorPlan plan = posterior_plan(storage, tf32, B, M, Z, prior, backward, wanted);
    return py::make_tuple(static_cast<int>(plan.variant), plan.cluster, plan.warps, plan.tiles, plan.kept,
                          plan.shared_bytes, plan.workspace_bytes, plan.at_once, plan.step_cycles);
}

}  // namespace

void bind_posterior(py::module_& module) {
    module.def("posterior_plan", plan);
    module.def("posterior_forward", forward);
    module.def("posterior_backward", backward);
}

}  // namespace vssn
