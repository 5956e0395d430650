// gaussian_forward and gaussian_backward for Python; see arguments.h.
#include "arguments.h"
#include "gaussian.h"

namespace py = pybind11;

namespace vssn {

namespace {

GaussianRows rows(Arguments& in) {
    const void* data = in.pointer<const void>();
    return {data, in.size()};
}

void forward(const py::args& values) {
    Arguments in(values);
    GaussianForward call;
    call.storage = in.storage();
    call.N = in.size();
    call.Z = in.size();
    call.mu = rows(in);
    call.logvar = rows(in);
    call.eps = rows(in);
    call.prior_mu = rows(in);
    call.prior_logvar = rows(in);
    call.z = in.pointer();
    call.kl = in.pointer();
    call.stream = in.pointer();
    in.done();
    gaussian_forward(call);
}

void backward(const py::args& values) {
    Arguments in(values);
    GaussianBackward call;
    call.storage = in.storage();
    call.N = in.size();
    call.Z = in.size();
    call.mu = rows(in);
    call.logvar = rows(in);
    call.eps = rows(in);
    call.prior_mu = rows(in);
    call.prior_logvar = rows(in);
    call.grad_z = rows(in);
    call.grad_kl = rows(in);
    call.grad_mu = in.pointer();
    call.grad_logvar = in.pointer();
    call.grad_eps = in.pointer();
    call.grad_prior_mu = in.pointer();
    call.grad_prior_logvar = in.pointer();
    call.stream = in.pointer();
    in.done();
    gaussian_backward(call);
}

}  // namespace

void bind_gaussian(py::module_& module) {
    module.def("gaussian_forward", forward);
    module.def("gaussian_backward", backward);
}

}  // namespace vssn
